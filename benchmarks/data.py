"""Measure clips per second against upstream: ``python -m benchmarks.data [--data DAVIS]``.

Upstream's ``VOSDataset`` with the transforms of its MOSE fine-tuning and sam2kit's ``ClipDataset``
with ``augmentation=official`` (the same transforms) alternately load clips of the same videos, in
one process and one thread. CPU time is measured, because other processes affect it least. Upstream
returns normalized floats. sam2kit returns bytes, which are normalized on the model's device; for a
fair comparison, the last column includes normalization. Without DAVIS, 480p videos are generated.
Upstream's dataset needs pandas. Writes ``benchmarks/results/data.{json,md}``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import torch

from benchmarks.measure import write_davis
from sam2kit.config.loading import load_config
from sam2kit.data import ClipDataset, SyntheticDataset, VideoDataset
from sam2kit.data.transforms import IMAGE_DEVIATION, IMAGE_MEAN, normalize
from sam2kit.viz.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
DAVIS = Path(__file__).parents[2] / "shared" / "davis"
FRAMES, OBJECTS = 8, 3  # per clip, as in upstream's fine-tuning


def kit_clips(root: Path, size: int, augment: bool) -> ClipDataset:
    overrides = [
        f"dataset.image_size={size}",
        f"dataset.video_clip_length={FRAMES}",
        f"dataset.max_objects={OBJECTS}",
    ]
    config = load_config(None, overrides + ["augmentation=official"] * augment)
    return ClipDataset(
        VideoDataset(root), config.dataset, training=True, seed=0, augmentation=config.augmentation
    )


def upstream_clips(root: Path, size: int, augment: bool):  # type: ignore[no-untyped-def]
    """Create a ``VOSDataset`` of the same directory, as in upstream's MOSE fine-tuning."""
    from training.dataset import transforms as T
    from training.dataset.vos_dataset import VOSDataset
    from training.dataset.vos_raw_dataset import PNGRawDataset
    from training.dataset.vos_sampler import RandomUniformSampler

    source = VideoDataset(root)
    frame = source.frame_path(0, 0)
    assert frame is not None
    raw = PNGRawDataset(
        str(frame.parents[1]), str(source.mask_paths(0, 0)[0].parents[1]), is_palette=True
    )
    resize = T.RandomResizeAPI(sizes=size, square=True, consistent_transform=True)
    end = [T.ToTensorAPI(), T.NormalizeAPI(mean=IMAGE_MEAN, std=IMAGE_DEVIATION)]
    steps = [resize, *end]
    if augment:
        steps = [
            T.RandomHorizontalFlip(consistent_transform=True),
            T.RandomAffine(
                degrees=25, shear=20, image_interpolation="bilinear", consistent_transform=True
            ),
            resize,
            T.ColorJitter(True, brightness=0.1, contrast=0.03, saturation=0.03, hue=None),
            T.RandomGrayscale(p=0.05, consistent_transform=True),
            T.ColorJitter(False, brightness=0.1, contrast=0.05, saturation=0.05, hue=None),
            *end,
        ]
    with contextlib.redirect_stdout(io.StringIO()):
        return VOSDataset(
            [T.ComposeAPI(steps)], True, raw, RandomUniformSampler(FRAMES, OBJECTS), multiplier=1
        )


def generated_davis(root: Path) -> Path:
    """Generate three 480p videos in DAVIS layout."""
    return write_davis(SyntheticDataset(3, 2 * FRAMES, (480, 854), OBJECTS, seed=0), root)


def compare(root: Path, size: int, augment: bool, rounds: int) -> dict[str, object]:
    """Measure clips per second: medians over ``rounds`` passes over the videos."""
    theirs, ours = upstream_clips(root, size, augment), kit_clips(root, size, augment)
    sides: dict[str, Callable[[int], object]] = {
        "upstream": theirs.__getitem__,
        "sam2kit": ours.__getitem__,
        "sam2kit, normalised": lambda k: [normalize(frame) for frame in ours[k].frames],
    }
    times: dict[str, list[float]] = {side: [] for side in sides}
    for read in sides.values():  # warm up
        read(0)
    for r in range(rounds):
        ours.set_epoch(r)
        for k in range(len(ours.source)):
            for side, read in sides.items():
                begin = time.process_time()
                read(k)
                times[side].append(time.process_time() - begin)
    rates = {side: 1 / statistics.median(seconds) for side, seconds in times.items()}
    return {
        "size": size,
        "augmented": "yes" if augment else "no",
        **{side: round(rate, 2) for side, rate in rates.items()},
        "ratio": round(rates["sam2kit"] / rates["upstream"], 2),
        "ratio, normalised": round(rates["sam2kit, normalised"] / rates["upstream"], 2),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=DAVIS, help="a folder in DAVIS layout")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=3, help="passes over the videos")
    parser.add_argument("--out", type=Path, default=RESULTS / "data.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        has_davis = arguments.data.is_dir()
        root = arguments.data if has_davis else generated_davis(Path(folder))
        rows = [
            compare(root, size, augment, arguments.rounds)
            for size in arguments.sizes
            for augment in (False, True)
        ]
    kind = "DAVIS" if has_davis else "generated"
    head = (
        f"# Loading clips\n\nClips per second, of {FRAMES} frames each, from {kind} videos of 480p "
        "(one process, one thread, medians of processor time; "
        f"load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores).\n\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"frames": FRAMES, "videos": kind, "cpu_cores": os.cpu_count(), "rows": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(head + markdown_table(rows))
    sys.stdout.write(head + markdown_table(rows))


if __name__ == "__main__":
    main()
