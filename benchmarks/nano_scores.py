"""Score a nano checkpoint: ``python benchmarks/nano_scores.py [CHECKPOINT] [--davis DAVIS]``.

Writes ``benchmarks/results/nano.json`` and ``nano.md``. Every score has a 95% interval over
the videos, and is compared with the score of the copied first mask. Generated clips come
from a seed that neither training nor its validation uses. DAVIS is scored zero-shot: no frame of it
is used in training. Takes a few minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from sam2kit.config.loading import load_config, override
from sam2kit.config.schema import Config
from sam2kit.data.build import build_validation
from sam2kit.data.clip import ClipBatch
from sam2kit.data.loader import create_dataloader
from sam2kit.evaluation.evaluate import COPY
from sam2kit.evaluation.metrics import after_first_visible, copy_first_mask, mean_tracked_iou
from sam2kit.evaluation.statistics import mean_interval
from sam2kit.models.checkpoints import create_sam2_model, find_checkpoint
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.training.module import step_generator
from sam2kit.viz.plots import curves
from sam2kit.viz.tables import markdown_table

ROOT = Path(__file__).parent.parent
SEED = 7
MAX_FALSE_ABSENCE = 0.05
GENERATED = {
    "generated, lifelike, 8 frames": "dataset.synthetic_lifelike=1",
    "generated, plain, 8 frames": "dataset.synthetic_lifelike=0",
}
PROMPTS = ("mask", "box", "point")
STAGES = ("1_masks", "2_images", "3_images", "4_clips", "5_lifelike", "6_long")


def interval(per_video: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean over all objects, and its 95% interval over videos.

    Args:
        per_video: the values of each video, ``[O]``; NaN for an object without a value.
    """
    groups = [v[np.isfinite(v)] for v in per_video]
    groups = [v for v in groups if len(v)]
    mean = float(np.concatenate(groups).mean())
    low, high = mean_interval(groups, bounded=True) or (mean, mean)
    return {
        "mean": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "objects": int(sum(map(len, groups))),
        "videos": len(groups),
    }


def track(config: Config, model: SAM2Model) -> Iterator[tuple[ClipBatch, TrackOutput]]:
    """Yield the validation clips of a configuration with the output of the model."""
    val = config.validation_dataset()
    prompts = PromptGenerator.from_config(val)
    loader = create_dataloader(build_validation(config), val, training=False, seed=config.seed)
    for number, batch in enumerate(loader):
        with torch.inference_mode():
            yield batch, model.eval()(batch, prompts(batch, step_generator(config.seed, number)))


def iou_row(config: Config, model: SAM2Model) -> dict[str, dict[str, float]]:
    """Return the mean IoU of the model and of the copied mask on the frames after the prompt."""
    ious: dict[str, list[np.ndarray]] = {"nano": [], COPY: []}
    for batch, output in track(config, model):
        scored = (output.tracked & ~output.prompted & batch.annotated).numpy()
        truth = batch.masks.numpy()
        copied = copy_first_mask(truth, batch.visible.numpy())
        tracked = output.masks(truth.shape[-2:]).numpy()
        for name, masks in {"nano": tracked, COPY: copied}.items():
            ious[name].append(mean_tracked_iou(masks, truth, scored)[0])
    return {name: interval(values) for name, values in ious.items()}


def absence_row(config: Config, model: SAM2Model) -> dict[str, dict[str, float]]:
    """Return the recall of absence: the fraction of absent frames that are predicted absent.

    All frames after the prompt are used, per object. The recall is given at two thresholds of the
    object score: at 0, the threshold of tracking, together with the fraction of visible frames that
    it predicts absent; and at the threshold that predicts 5% of the visible frames absent.
    """
    absent_scores: list[np.ndarray] = []
    visible_scores: list[np.ndarray] = []
    for batch, output in track(config, model):
        scores, visible = output.object_score.numpy(), batch.visible.numpy()
        scored = after_first_visible(visible)
        absent_scores.append(scores[scored & ~visible])
        visible_scores.append(scores[scored & visible])
    threshold = float(np.quantile(np.concatenate(visible_scores), MAX_FALSE_ABSENCE))

    def share_below(scores: list[np.ndarray], limit: float) -> dict[str, float]:
        return interval([(s < limit).astype(float) for s in scores])

    return {
        "recall at threshold 0": share_below(absent_scores, 0),
        "false absence at threshold 0": share_below(visible_scores, 0),
        "recall at 5% false absence": share_below(absent_scores, threshold),
        "threshold at 5% false absence": {"mean": round(threshold, 3)},
    }


def score(checkpoint: str, davis: Path | None, clips: int, image_size: int) -> dict:
    """Return all scores of a checkpoint; see the docstring of the module."""

    def config(*overrides: str) -> Config:
        general = [
            "model=nano",
            override("model.checkpoint", checkpoint),
            "dataset=synthetic",
            f"seed={SEED}",
            f"dataset.image_size={image_size}",
            "dataset.num_workers=0",
            f"valdataset.synthetic_videos={clips}",
            "valdataset.video_clip_length=8",
            "trainer.accelerator=cpu",
        ]
        return load_config(None, [*general, *overrides])

    model = create_sam2_model(config())
    rows: dict[str, dict] = {}
    for name, choice in GENERATED.items():
        for prompt in PROMPTS:
            chosen = config(choice, f"valdataset.prompt_types=[{prompt}]")
            rows[f"{name}, {prompt} prompt"] = iou_row(chosen, model)
    if davis is not None:
        video = ["valdataset.type=video", override("valdataset.data_path", str(davis))]
        for frames, prompt in ((20, "mask"), (20, "box"), (50, "mask")):
            length = f"valdataset.video_clip_length={frames}"
            chosen = config(*video, length, f"valdataset.prompt_types=[{prompt}]")
            rows[f"DAVIS, {frames} frames, {prompt} prompt"] = iou_row(chosen, model)
    absence = absence_row(config("dataset.synthetic_lifelike=1"), model)
    digest = hashlib.sha256(find_checkpoint(checkpoint).read_bytes()).hexdigest()
    return {
        "checkpoint": Path(checkpoint).name,
        "sha256": digest,
        "image_size": image_size,
        "seed": SEED,
        "score": "mean IoU at the model's size over the frames after the prompted one, mean over "
        "objects; 1 where mask and truth are both empty",
        "iou": rows,
        "absence": absence,
    }


def table(scores: dict) -> str:
    """Return the scores as Markdown."""

    def cell(value: dict[str, float]) -> str:
        if "low" not in value:
            return f"{value['mean']:.3f}"
        return f"{value['mean']:.3f} ({value['low']:.3f} to {value['high']:.3f})"

    iou = [
        {"": name, "objects": row["nano"]["objects"], **{k: cell(v) for k, v in row.items()}}
        for name, row in scores["iou"].items()
    ]
    absence = [
        {"absence, generated lifelike clips, mask prompt": name, "": cell(value)}
        for name, value in scores["absence"].items()
    ]
    head = f"Checkpoint `{scores['checkpoint']}`, {scores['image_size']} px; {scores['score']}."
    parts = [head, "In brackets the 95% interval over videos.", ""]
    return "\n".join([*parts, markdown_table(iou), "", markdown_table(absence)]) + "\n"


def draw_curves(results: Path, picture: Path) -> None:
    """Plot the training curves of all stages, from the files ``nano_STAGE.csv``.

    Each file is a copy of the ``metrics.csv`` of a stage.
    """
    panels = {}
    for stage in STAGES:
        with open(results / f"nano_{stage}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        lines = {}
        for name in ("loss", "val_loss", "val_iou"):
            points = [(int(r["step"]) + 1, float(r[name])) for r in rows if r.get(name)]
            if points:
                lines[name] = tuple(zip(*points, strict=True))
        panels[stage] = lines
    curves(panels).savefig(picture)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="nano", help="default: the shipped model")
    parser.add_argument("--davis", type=Path, help="a folder in DAVIS layout (default: no DAVIS)")
    parser.add_argument("--clips", type=int, default=60, help="generated clips of each kind")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "nano.json")
    parser.add_argument(
        "--curves", action="store_true", help="draw docs/images/nano_curves.png and stop"
    )
    arguments = parser.parse_args(argv)
    if arguments.curves:
        draw_curves(arguments.out.parent, ROOT / "docs" / "images" / "nano_curves.png")
        return
    scores = score(arguments.checkpoint, arguments.davis, arguments.clips, arguments.image_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(scores, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(scores))
    sys.stdout.write(table(scores))


if __name__ == "__main__":
    main()
