"""Whether fast settings learn as well: ``python -m benchmarks.learning [--davis DAVIS]``.

The quick start (the shipped nano, its memory modules trained anew on the sample clips) and DAVIS
(likewise, on its training sequences) are trained with upstream's settings (float32, dropout 0.1, no
cache) and with the fast ones (bf16, dropout 0, cached features), from three seeds each, for the
same number of steps, on the same clips. Clips are mirrored and reversed, no more, so that the cache
can serve them. Then whole validation videos are tracked and scored. Writes ``learning.{json,md}``;
runs that are done are kept, and the command goes on. A quarter of an hour on a CPU core.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loguru import logger

from benchmarks.measure import RESULTS, machine, machine_line, use_threads, write
from sam2kit.config.loading import load_config
from sam2kit.config.schema import AugmentationConfig, Config
from sam2kit.evaluation.evaluate import evaluate
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.checkpoints import load_run
from sam2kit.training.trainer import fit
from sam2kit.viz.tables import markdown_table

ROOT = Path(__file__).parent.parent
DAVIS = ROOT.parent / "shared" / "davis"
SEEDS = (1, 2, 3)
SETTINGS = {
    "official": ["model.memory_dropout=0.1", "trainer.precision=32-true", "features.cache=off"],
    "fast": ["model.memory_dropout=0", "trainer.precision=bf16-mixed", "features.cache=on"],
}
KEPT = ("flip", "reverse")  # what augmentation may do without making new pixels


def data_sets(davis: Path) -> dict[str, list[str]]:
    """Overrides of ``configs/quickstart.yaml`` for each data set."""
    found = {"quick start": []}
    if davis.is_dir():
        found["DAVIS"] = [
            f"dataset.data_path={davis}",
            "dataset.split=2016/train",
            f"valdataset.data_path={davis}",
            "valdataset.split=2016/val",
            "dataset.clips_per_video=20",
        ]
    return found


def run_config(data: list[str], setting: str, seed: int, cache: Path, quick: bool) -> Config:
    still = [f.name for f in fields(AugmentationConfig) if f.name not in KEPT]
    overrides = [
        *data,
        *SETTINGS[setting],
        *(f"augmentation.{name}=0" for name in still),
        f"features.folder={cache}",
        f"seed={seed}",
        "dataset.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.audit=off",
        "log_level=WARNING",
        *(["dataset.image_size=64", "trainer.max_steps=1"] if quick else []),
    ]
    return load_config(ROOT / "configs" / "quickstart.yaml", overrides)


def trained(config: Config, folder: Path) -> dict[str, float]:
    """J&F on the validation videos after training, and what the training took."""
    begin = time.perf_counter()
    result = fit(config, folder / "run")
    took = time.perf_counter() - begin
    run_config, model = load_run(result.last_checkpoint)
    found = evaluate(run_config, [TrackerRun("tuned", model)], folder / "evaluation")
    return {"J&F": found.scores["tuned"], "seconds": took}


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each data set: means, their difference, and how far seeds lie apart."""
    rows = []
    for name in dict.fromkeys(run["data"] for run in runs):
        of = {
            setting: [r for r in runs if r["data"] == name and r["setting"] == setting]
            for setting in SETTINGS
        }
        scores = {k: [100 * run["J&F"] for run in found] for k, found in of.items()}
        if not all(scores.values()):
            continue
        row: dict[str, object] = {"data": name, "seeds": len(scores["fast"])}
        for setting, values in scores.items():
            each = " ".join(f"{value:.1f}" for value in values)
            row[f"J&F, {setting}"] = f"{statistics.mean(values):.1f} ({each})"
        row["difference"] = (
            f"{statistics.mean(scores['fast']) - statistics.mean(scores['official']):+.1f}"
        )
        spread = [statistics.stdev(v) if len(v) > 1 else float("nan") for v in scores.values()]
        row["deviation between seeds"] = " / ".join(f"{value:.1f}" for value in spread)
        for setting, found in of.items():
            row[f"training, s, {setting}"] = round(statistics.median(r["seconds"] for r in found))
        rows.append(row)
    return markdown_table(rows) + "\n" if rows else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--davis", type=Path, default=DAVIS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one step each, of toy size")
    given = parser.parse_args(argv)
    out = (given.out / "learning").absolute()
    davis = given.davis.absolute()
    os.chdir(ROOT)  # where the quick start's sample clips are
    use_threads(given.threads)
    logger.disable("sam2kit")  # progress is told here
    done = out.with_suffix(".json")
    runs = json.loads(done.read_text())["runs"] if done.exists() else []
    where, report = machine(), ""
    with TemporaryDirectory() as cache:
        for seed in given.seeds:
            for name, data in data_sets(davis).items():
                for setting in SETTINGS:
                    own = {"data": name, "setting": setting, "seed": seed}
                    if any(own.items() <= run.items() for run in runs):
                        continue
                    print(own, file=sys.stderr, flush=True)
                    config = run_config(data, setting, seed, Path(cache), given.quick)
                    with TemporaryDirectory() as folder:
                        runs.append(own | trained(config, Path(folder)))
                    report = (
                        f"# Learning with fast settings\n\nNano, J&F in percent on whole "
                        f"validation videos. `python -m benchmarks.learning`\n\n{table(runs)}\n"
                        f"{machine_line(where)}\n"
                    )
                    write(out, {"machine": where, "runs": runs}, report)
    print(report or table(runs))


if __name__ == "__main__":
    main()
