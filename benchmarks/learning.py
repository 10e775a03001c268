"""Compare learning with fast and with official settings: ``python -m benchmarks.learning``.

The quick start, which trains the memory modules of the shipped nano model on the sample clips, and
the same training on DAVIS (``--davis DAVIS``) are each run with upstream's settings (float32,
dropout 0.1, no cache) and with fast settings (bf16, dropout 0, cached features), with three seeds,
for the same number of steps on the same clips. The only augmentations are flipping and reversing,
so that cached features can be used. Then whole validation videos are tracked and scored. Writes
``learning.{json,md}`` after each run, so that an interrupted command can be resumed. Takes 15
minutes on one CPU core.
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
CACHEABLE = ("flip", "reverse")  # augmentations that do not change pixel values


def data_sets(davis: Path) -> dict[str, list[str]]:
    """Return overrides of ``configs/quickstart.yaml`` by dataset."""
    overrides: dict[str, list[str]] = {"quick start": []}
    if davis.is_dir():
        overrides["DAVIS"] = [
            f"dataset.data_path={davis}",
            "dataset.split=2016/train",
            f"valdataset.data_path={davis}",
            "valdataset.split=2016/val",
            "dataset.clips_per_video=20",
        ]
    return overrides


def run_config(data: list[str], setting: str, seed: int, cache: Path, quick: bool) -> Config:
    """Return the configuration of a run; ``cache`` is the directory of cached features."""
    disabled = [f.name for f in fields(AugmentationConfig) if f.name not in CACHEABLE]
    overrides = [
        *data,
        *SETTINGS[setting],
        *(f"augmentation.{name}=0" for name in disabled),
        f"features.folder={cache}",
        f"seed={seed}",
        "dataset.num_workers=0",
        "trainer.accelerator=cpu",
        "trainer.audit=off",
        "log_level=WARNING",
        *(["dataset.image_size=64", "trainer.max_steps=1"] if quick else []),
    ]
    return load_config(ROOT / "configs" / "quickstart.yaml", overrides)


def train_and_score(config: Config, folder: Path) -> dict[str, float]:
    """Train, and return J&F on the validation videos and the training time in seconds."""
    begin = time.perf_counter()
    result = fit(config, folder / "run")
    seconds = time.perf_counter() - begin
    run_config, model = load_run(result.last_checkpoint)
    evaluation = evaluate(run_config, [TrackerRun("tuned", model)], folder / "evaluation")
    return {"J&F": evaluation.scores["tuned"], "seconds": seconds}


def table(runs: list[dict[str, Any]]) -> str:
    """Return one row per dataset: means, their difference, and the deviation between seeds."""
    rows = []
    for name in dict.fromkeys(run["data"] for run in runs):
        runs_by_setting = {
            setting: [r for r in runs if r["data"] == name and r["setting"] == setting]
            for setting in SETTINGS
        }
        scores = {k: [100 * r["J&F"] for r in group] for k, group in runs_by_setting.items()}
        if not all(scores.values()):  # one of the settings has no run yet
            continue
        row: dict[str, object] = {"data": name, "seeds": len(scores["fast"])}
        for setting, values in scores.items():
            values_by_seed = " ".join(f"{value:.1f}" for value in values)
            row[f"J&F, {setting}"] = f"{statistics.mean(values):.1f} ({values_by_seed})"
        row["difference"] = (
            f"{statistics.mean(scores['fast']) - statistics.mean(scores['official']):+.1f}"
        )
        spread = [statistics.stdev(v) if len(v) > 1 else float("nan") for v in scores.values()]
        row["deviation between seeds"] = " / ".join(f"{value:.1f}" for value in spread)
        for setting, group in runs_by_setting.items():
            row[f"training, s, {setting}"] = round(statistics.median(r["seconds"] for r in group))
        rows.append(row)
    return markdown_table(rows) + "\n" if rows else ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--davis", type=Path, default=DAVIS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one step of toy size per run")
    arguments = parser.parse_args(argv)
    out = (arguments.out / "learning").absolute()
    davis = arguments.davis.absolute()
    os.chdir(ROOT)  # the configuration names the sample clips relative to the repository
    use_threads(arguments.threads)
    logger.disable("sam2kit")  # this script prints its own progress
    saved = out.with_suffix(".json")
    runs = json.loads(saved.read_text())["runs"] if saved.exists() else []
    machine_info, report = machine(), ""
    with TemporaryDirectory() as cache:
        # Run all settings of a seed before the next seed, so that partial results are comparable.
        for seed in arguments.seeds:
            for name, data in data_sets(davis).items():
                for setting in SETTINGS:
                    run_key = {"data": name, "setting": setting, "seed": seed}
                    if any(run_key.items() <= run.items() for run in runs):
                        continue
                    print(run_key, file=sys.stderr, flush=True)
                    config = run_config(data, setting, seed, Path(cache), arguments.quick)
                    with TemporaryDirectory() as folder:
                        runs.append(run_key | train_and_score(config, Path(folder)))
                    report = (
                        f"# Learning with fast settings\n\nNano, J&F in percent on whole "
                        f"validation videos. `python -m benchmarks.learning`\n\n{table(runs)}\n"
                        f"{machine_line(machine_info)}\n"
                    )
                    write(out, {"machine": machine_info, "runs": runs}, report)
    print(report or table(runs))


if __name__ == "__main__":
    main()
