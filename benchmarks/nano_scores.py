"""Score a nano checkpoint: ``python benchmarks/nano_scores.py [CHECKPOINT] [--davis DAVIS]``.

Writes ``benchmarks/results/nano.json`` and ``nano.md``. Every figure stands beside that of the
copied first mask and carries a 95% interval from resampling the videos. Generated clips come from a
seed that neither training nor its validation uses; DAVIS is scored zero-shot, as no frame of it is
ever trained on. Takes some minutes on one CPU core.
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
from sam2kit.evaluation.statistics import bootstrap_interval
from sam2kit.models.checkpoints import create_sam2_model, find_checkpoint
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.training.module import step_generator
from sam2kit.viz.plots import curves
from sam2kit.viz.tables import markdown_table

ROOT = Path(__file__).parent.parent
SEED = 7
BOOTSTRAPS = 2000
LARGEST_FALSE_ABSENCE = 0.05
GENERATED = {
    "generated, lifelike, 8 frames": "dataset.synthetic_lifelike=1",
    "generated, plain, 8 frames": "dataset.synthetic_lifelike=0",
}
PROMPTS = ("mask", "box", "point")
STAGES = ("1_masks", "2_images", "3_images", "4_clips", "5_lifelike", "6_long")


def interval(per_video: Sequence[np.ndarray]) -> dict[str, float]:
    """The mean over all objects, and the bounds of its 95% interval over resampled videos.

    Args:
        per_video: a video's values each, ``[O]``, NaN where an object has none.
    """
    kept = [v[np.isfinite(v)] for v in per_video]
    kept = [v for v in kept if len(v)]
    mean = float(np.concatenate(kept).mean())
    low, high = bootstrap_interval(kept, np.random.default_rng(0), BOOTSTRAPS) or (mean, mean)
    return {
        "mean": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "objects": int(sum(map(len, kept))),
        "videos": len(kept),
    }


def track(config: Config, model: SAM2Model) -> Iterator[tuple[ClipBatch, TrackOutput]]:
    """The validation clips of a configuration, and what the model makes of them."""
    val = config.validation_dataset()
    prompts = PromptGenerator.from_config(val)
    loader = create_dataloader(build_validation(config), val, training=False, seed=config.seed)
    for number, batch in enumerate(loader):
        with torch.inference_mode():
            yield batch, model.eval()(batch, prompts(batch, step_generator(config.seed, number)))


def iou_row(config: Config, model: SAM2Model) -> dict[str, dict[str, float]]:
    """Mean IoU over the frames after the prompted one, of the model and of the copied mask."""
    found: dict[str, list[np.ndarray]] = {"nano": [], COPY: []}
    for batch, output in track(config, model):
        scored = (output.tracked & ~output.prompted & batch.annotated).numpy()
        truth = batch.masks.numpy()
        copied = copy_first_mask(truth, batch.visible.numpy())
        tracked = output.masks(truth.shape[-2:]).numpy()
        for name, masks in {"nano": tracked, COPY: copied}.items():
            found[name].append(mean_tracked_iou(masks, truth, scored)[0])
    return {name: interval(values) for name, values in found.items()}


def absence_row(config: Config, model: SAM2Model) -> dict[str, dict[str, float]]:
    """Share of absent object-frames after the prompt that are called absent (a recall).

    Once with the threshold 0 that tracking uses, beside the share of visible frames that it calls
    absent too; once with the threshold that calls 5% of the visible frames absent.
    """
    gone: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    for batch, output in track(config, model):
        scores, visible = output.object_score.numpy(), batch.visible.numpy()
        scored = after_first_visible(visible)
        gone.append(scores[scored & ~visible])
        seen.append(scores[scored & visible])
    threshold = float(np.quantile(np.concatenate(seen), LARGEST_FALSE_ABSENCE))
    return {
        "recall at threshold 0": interval([(s < 0).astype(float) for s in gone]),
        "false absence at threshold 0": interval([(s < 0).astype(float) for s in seen]),
        "recall at 5% false absence": interval([(s < threshold).astype(float) for s in gone]),
        "threshold at 5% false absence": {"mean": round(threshold, 3)},
    }


def score(checkpoint: str, davis: Path | None, clips: int, image_size: int) -> dict:
    """All figures of a checkpoint; see the module."""

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
    """The figures as Markdown."""

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
    parts = [head, "In brackets the 95% interval over resampled videos.", ""]
    return "\n".join([*parts, markdown_table(iou), "", markdown_table(absence)]) + "\n"


def draw_curves(results: Path, picture: Path) -> None:
    """The curves of the stages, from their ``metrics.csv`` kept as ``nano_STAGE.csv``."""
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
    parser.add_argument("--davis", type=Path, help="a folder in DAVIS layout; left out by default")
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
