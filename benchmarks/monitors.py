"""Compare what selects the best checkpoint: ``python -m benchmarks.monitors``.

Models are trained on one block of DAVIS sequences (``benchmarks.recipes``), and the checkpoint of
every epoch is kept. Each checkpoint is validated on a second block, by ``val_loss``, ``val_iou``
and ``val_jf``, and tested on the third. A good monitor orders the checkpoints as the test does, and
selects one that tests well. The same is done on the filtered copies of ``benchmarks.recipes``.
Writes ``monitors.{json,md}`` to ``--out``. Each training run and each scored checkpoint is kept in
``--work``: repeat an interrupted command to resume it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from loguru import logger
from scipy import stats

from benchmarks.adaptation import (
    AFTER,
    Job,
    MissingDataError,
    Sizes,
    argument_parser,
    blocks,
    job_config,
    score,
    sequences,
    split_file,
    train,
    training_key,
    tuned_model,
    weights_folder,
)
from benchmarks.measure import RESULTS, machine, machine_line, use_threads, write
from benchmarks.recipes import RECIPES, SEEDS, data_set, plan, points
from sam2kit.config.loading import override, override_config
from sam2kit.config.schema import Config
from sam2kit.data import SelectedVideos, VideoDataset
from sam2kit.data.domains import DOMAINS
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.sam2 import SAM2Model
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.module import SAM2LightningModule
from sam2kit.utils.files import write_text
from sam2kit.utils.text import plural
from sam2kit.viz.tables import markdown_table

# Whether a larger value is better.
MONITORS = {"val_loss": False, "val_iou": True, "val_jf": True}
JF = "val_jf"
EPOCHS = "dataset.clips_per_video=20"  # 200 steps are five epochs, so there are five checkpoints
Values = dict[str, float]  # value by name of the metric


def validated(model: SAM2Model, config: Config) -> Values:
    """Return ``val_loss`` and ``val_iou`` on the validation clips of a configuration."""
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    module = SAM2LightningModule(config, model=model)
    trainer.validate(module, datamodule=SAM2LightningDataModule(config), verbose=False)
    return {name: float(trainer.callback_metrics[name]) for name in ("val_loss", "val_iou")}


def score_checkpoint(
    checkpoint: Path, job: Job, names: Sequence[str], work: Path, sizes: Sizes
) -> Values:
    """Return the metrics of a checkpoint on some videos, or read those of an earlier call."""
    file = checkpoint.with_name(f"{checkpoint.stem}-{'+'.join(names)}-{sizes.frames}.json")
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    config = job_config(job, work, sizes)
    model = tuned_model(checkpoint, job.start_share, config)
    videos = VideoDataset(job.davis)
    chosen = SelectedVideos(videos, [videos.names.index(name) for name in names])
    scores = score(TrackerRun(AFTER, model), chosen, config, sizes.frames)
    settings = {"data_path": str(job.davis.resolve()), "split": str(split_file(names, work))}
    overrides = [override(f"valdataset.{key}", value) for key, value in settings.items()]
    config = override_config(config, ["valdataset.type=video", *overrides])
    values = validated(model, config) | {JF: float(np.mean(list(scores.values())))}
    write_text(file, json.dumps(values) + "\n")
    return values


def judge(validation: Sequence[Values], test: Sequence[Values]) -> dict[str, dict[str, float]]:
    """Judge each monitor by the checkpoints of one training run.

    Args:
        validation, test: metrics of each checkpoint on the validation and on the test videos.

    Returns:
        By monitor: ``correlation`` (Spearman, of better values with higher test J&F; nan if all
        values are equal), ``selected`` (test J&F of the checkpoint that it selects), and for
        comparison ``last`` and ``best`` (of the last checkpoint and of the best one by the test).
    """
    scores = np.array([values[JF] for values in test])
    result = {}
    for monitor, larger_is_better in MONITORS.items():
        values = np.array([v[monitor] for v in validation]) * (1 if larger_is_better else -1)
        varies = len(set(values)) > 1 and len(set(scores)) > 1
        result[monitor] = {
            "correlation": float(stats.spearmanr(values, scores)[0]) if varies else float("nan"),
            "selected": float(scores[values.argmax()]),
            "last": float(scores[-1]),
            "best": float(scores.max()),
        }
    return result


def rows(judged: Sequence[Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return a table row per monitor: means over training runs and pairs of blocks."""
    result = []
    for monitor in MONITORS:
        values = [j[monitor] for j in judged]
        defined = [v["correlation"] for v in values if not math.isnan(v["correlation"])]
        selected = np.array([v["selected"] for v in values])
        result.append(
            {
                "monitor": monitor,
                "correlation with test J&F": float(np.mean(defined)) if defined else None,
                "lowest and highest": f"{min(defined):+.2f} to {max(defined):+.2f}"
                if defined
                else "–",
                "test J&F of the selected checkpoint": float(selected.mean()),
                "against the last": f"{np.mean(selected - [v['last'] for v in values]):+.3f}",
                "against the best": f"{np.mean(selected - [v['best'] for v in values]):+.3f}",
            }
        )
    return result


def compare(arguments: Namespace) -> tuple[dict[str, Any], str]:
    """Train, score all checkpoints, and return the results as a document and as Markdown."""
    logger.disable("sam2kit")  # the progress is printed here
    names, sizes = sequences(arguments.davis), Sizes(arguments.steps, arguments.frames)
    parts = blocks(names)
    chosen = points(
        arguments.seeds, arguments.recipes, [n - 1 for n in arguments.blocks], arguments.rounds
    )
    runs = [
        (data, point, replace(job, overrides=(*job.overrides, EPOCHS)))
        for data in arguments.data
        for point, job in zip(
            chosen,
            plan(data_set(data, arguments.davis, arguments.work), data, names, chosen),
            strict=True,
        )
    ]
    work = weights_folder(job_config(runs[0][2], arguments.work, sizes), arguments.work)
    begin, judged, table = time.perf_counter(), [], []
    for number, (data, (seed, recipe, k), job) in enumerate(runs, 1):
        train(job, work, sizes, keep_epochs=True)
        folder = work / "trainings" / training_key(job, work, sizes)
        checkpoints = sorted(folder.glob("epoch=*.ckpt"), key=lambda p: int(p.stem[6:]))
        others = [part for j, part in enumerate(parts) if j != k]
        values = {
            part: [score_checkpoint(c, job, part, work, sizes) for c in checkpoints]
            for part in others
        }
        for validation, test in permutations(others):
            judged.append(judge(values[validation], values[test]))
            about = {"data": data, "recipe": recipe, "seed": seed, "trained on": k + 1}
            about["validated on"] = parts.index(validation) + 1
            table.append(about | {m: j["correlation"] for m, j in judged[-1].items()})
        left = (time.perf_counter() - begin) / number * (len(runs) - number) / 60
        print(f"[{number}/{len(runs)}] {job.name}; about {left:.0f} min left", file=sys.stderr)
    summary = rows(judged)
    text = (
        f"# What selects the best checkpoint\n\nNano, {plural(len(runs), 'training run')} on "
        f"three sequences of {', '.join(arguments.data)}, with the checkpoint of each epoch. Three "
        "other sequences validate, the remaining "
        f"three test (J&F over up to {sizes.frames} frames), and the other way round: "
        f"{len(judged)} comparisons. Spearman's correlation of the order of the checkpoints; 1 is "
        "the order of the test. `python -m benchmarks.monitors`\n\n"
        f"{markdown_table(summary)}\n\nEach comparison:\n\n{markdown_table(table)}\n"
    )
    return {"machine": machine(), "rows": summary, "comparisons": table}, text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, "outputs/recipes", RESULTS, SEEDS)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES)[:1])
    parser.add_argument("--data", nargs="+", choices=("davis", *DOMAINS), default=["davis"])
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, help="see benchmarks.recipes; default: one per seed")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    try:
        document, text = compare(arguments)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    text += f"\n{machine_line(document['machine'])}\n"
    write(arguments.out / "monitors", document, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
