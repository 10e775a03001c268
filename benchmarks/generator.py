"""Measure the speed of the clip generator: ``python benchmarks/generator.py [--workers 0 1 2]``.

As in training, clips are loaded as batches from a DataLoader with the given numbers of workers (0
loads in the main process). Plain and lifelike clips are measured. Writes
``benchmarks/results/generator.{json,md}``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sam2kit.config.loading import load_config
from sam2kit.data.build import build_datasets
from sam2kit.data.loader import create_dataloader
from sam2kit.viz.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
FRAMES, BATCH = 4, 4


def clips_per_second(size: int, lifelike: float, workers: int, batches: int, repeats: int) -> float:
    """Return the median over ``repeats`` epochs, without the time to start the workers."""
    config = load_config(
        None,
        [
            "dataset=synthetic",
            "valdataset=synthetic",
            f"dataset.image_size={size}",
            f"dataset.synthetic_lifelike={lifelike}",
            f"dataset.synthetic_videos={BATCH * (batches + 1 + 4 * workers)}",
            f"dataset.video_clip_length={FRAMES}",
            f"dataset.batch_size={BATCH}",
            f"dataset.num_workers={workers}",
        ],
    )
    clips, _ = build_datasets(config)
    rates = []
    for epoch in range(repeats):
        loader = create_dataloader(clips, config.dataset, training=True, seed=epoch)
        arriving = iter(loader)
        # Skip the batches that the workers prefetched during startup.
        for _ in range(1 + 4 * workers):
            next(arriving)
        begin = time.perf_counter()
        for _ in range(batches):
            next(arriving)
        rates.append(BATCH * batches / (time.perf_counter() - begin))
    return statistics.median(rates)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "generator.json")
    arguments = parser.parse_args(argv)
    rows = []
    for size in arguments.sizes:
        for kind, lifelike in (("plain", 0.0), ("lifelike", 1.0)):
            row: dict[str, str | int | float] = {"size": size, "clips": kind}
            for workers in arguments.workers:
                rate = clips_per_second(
                    size, lifelike, workers, arguments.batches, arguments.repeats
                )
                row[f"{workers} workers"] = round(rate, 1)
            rows.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"frames": FRAMES, "cpu_cores": os.cpu_count(), "clips_per_second": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    head = (
        f"# Generating clips\n\nClips per second, of {FRAMES} frames each; "
        f"{os.cpu_count()} CPU cores.\n\n"
    )
    arguments.out.with_suffix(".md").write_text(head + markdown_table(rows))
    sys.stdout.write(head + markdown_table(rows))


if __name__ == "__main__":
    main()
