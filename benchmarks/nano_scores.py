"""Score a nano checkpoint: ``python benchmarks/nano_scores.py [CHECKPOINT] [--davis DAVIS]``.

Writes ``benchmarks/results/nano.json`` and ``nano.md``, the tables of ``docs/model_card.md``.
Scores have 95% intervals over videos and are compared with the copied first mask. Generated clips
use a seed that is not used in training or validation, and are scored at the model's image size.
DAVIS is scored zero-shot (no frame of it is used in training) with the tracker and scores of
``sam2kit evaluate``, at the size of the videos. Takes a few minutes on one CPU core; ``--clips 0``
only scores DAVIS.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sam2kit.config.loading import load_config, override
from sam2kit.config.schema import Config
from sam2kit.data.build import build_validation, build_validation_source
from sam2kit.data.clip import ClipBatch
from sam2kit.data.loader import create_dataloader
from sam2kit.data.sources.base import FrameRange, ObjectId, SelectedVideos, VideoSource
from sam2kit.evaluation.evaluate import COPY
from sam2kit.evaluation.metrics import after_first_visible, copy_first_mask, mean_tracked_iou
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.statistics import mean_interval, mean_text
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.checkpoints import create_sam2_model, find_checkpoint, source_config
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
# Prompts on whole videos (``evaluation.protocol``), and the number of frames of each video.
WHOLE_VIDEOS = ((20, "mask"), (20, "box"), (20, "clicks"), (50, "mask"))
PROMPT_NAMES = {"clicks": "one click"}
MOVING = 0.03  # diameters per frame; half of the objects in the nine sequences move faster
SCORES = ("J", "F", "J&F")
STAGES = (
    *("1_masks", "2_images", "3_images", "4_clips", "5_lifelike", "6_long"),
    *("7_rendered", "8_longer"),
)


def interval(per_video: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean over all objects, and its 95% interval if there are enough videos.

    Args:
        per_video: values ``[O]`` of each video, NaN for objects without a value.
    """
    groups = [v[np.isfinite(v)] for v in per_video]
    groups = [v for v in groups if len(v)]
    mean = float(np.concatenate(groups).mean())
    row = {"mean": round(mean, 4), "objects": int(sum(map(len, groups))), "videos": len(groups)}
    if (bounds := mean_interval(groups, bounded=True)) is not None:
        row |= {"low": round(bounds[0], 4), "high": round(bounds[1], 4)}
    return row


def track(config: Config, model: SAM2Model) -> Iterator[tuple[ClipBatch, TrackOutput]]:
    """Yield the validation clips of a configuration with the model's output."""
    val = config.validation_dataset()
    prompts = PromptGenerator.from_config(val)
    loader = create_dataloader(build_validation(config), val, training=False, seed=config.seed)
    for number, batch in enumerate(loader):
        with torch.inference_mode():
            yield batch, model.eval()(batch, prompts(batch, step_generator(config.seed, number)))


def iou_row(config: Config, model: SAM2Model) -> dict[str, dict[str, float]]:
    """Return the mean IoU of the model and of the copied mask after the prompted frame."""
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

    All frames after an object's prompt are used. The recall is reported at two thresholds of the
    object score: at 0, the threshold of tracking, together with the fraction of visible frames
    predicted absent; and at the threshold for which this fraction is 5%.
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


def displacement(source: VideoSource, i: int) -> dict[ObjectId, float]:
    """Return the mean movement of each object's centre between consecutive frames.

    It is averaged over pairs of frames in which the object is visible, in diameters (square root of
    the area in pixels).
    """
    last: dict[ObjectId, np.ndarray] = {}
    steps: dict[ObjectId, list[float]] = {}
    for t in range(source.num_frames(i)):
        masks = source.read_masks(i, t) or {}
        centers = {o: np.argwhere(mask).mean(0) for o, mask in masks.items() if mask.any()}
        for o in centers.keys() & last.keys():
            distance = np.linalg.norm(centers[o] - last[o])
            steps.setdefault(o, []).append(float(distance) / float(np.sqrt(masks[o].sum())))
        last = centers
    return {o: float(np.mean(values)) for o, values in steps.items()}


def first_frames(source: VideoSource, count: int) -> Iterator[VideoSource]:
    """Yield each video of a source separately, limited to the first ``count`` frames."""
    for i in range(len(source)):
        video = SelectedVideos(source, [i])
        yield FrameRange(video, 0, min(count, video.num_frames(0)))


def whole_video_rows(
    config: Callable[..., Config], model: SAM2Model, label: str
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Return J, F and J&F on whole videos, at their own size, by prompt and by tracker.

    For mask prompts on 20 frames, objects that move faster and slower than :data:`MOVING` are also
    listed separately.

    Args:
        config: function that returns a configuration with the videos to score from overrides.
        model: the model to score.
        label: name of the videos.
    """
    rows: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for frames, protocol in WHOLE_VIDEOS:
        chosen = config(f"evaluation.protocol={protocol}")
        # Per tracker: the scores of each object, per video.
        results: dict[str, list[list[dict[str, float]]]] = {"nano": [], COPY: []}
        moving: list[list[bool]] = []
        for video in first_frames(build_validation_source(chosen), frames):
            objects = list(first_visible_frames(video, 0)[0])
            speed = displacement(video, 0)
            moving.append([speed.get(o, 0.0) > MOVING for o in objects])
            for name, tracked in {"nano": model, COPY: None}.items():
                scores = TrackerRun(name, tracked).score(video, 0, objects, chosen).objects()
                results[name].append([scores[o] for o in objects])
        groups = {"": [[True] * len(video) for video in moving]}
        if (frames, protocol) == WHOLE_VIDEOS[0]:
            groups[", moving"] = moving
            groups[", slow"] = [[not m for m in video] for video in moving]
        prompt = PROMPT_NAMES.get(protocol, protocol)
        for group, chosen_objects in groups.items():
            if any(map(any, chosen_objects)):
                rows[f"{label}, {frames} frames, {prompt} prompt{group}"] = {
                    name: _summary(videos, chosen_objects) for name, videos in results.items()
                }
    return rows


def _summary(
    videos: list[list[dict[str, float]]], chosen: list[list[bool]]
) -> dict[str, dict[str, float]]:
    """Return the mean of each score over the chosen objects, with its interval."""
    return {
        score: interval(
            [
                np.array([s[score] for s, is_chosen in zip(*pair, strict=True) if is_chosen], float)
                for pair in zip(videos, chosen, strict=True)
            ]
        )
        for score in SCORES
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
            f"valdataset.synthetic_videos={max(clips, 1)}",
            "valdataset.video_clip_length=8",
            "trainer.accelerator=cpu",
        ]
        return load_config(None, [*general, *overrides])

    model = create_sam2_model(config())
    rows: dict[str, dict] = {}
    for name, choice in GENERATED.items() if clips else ():
        for prompt in PROMPTS:
            chosen = config(choice, f"valdataset.prompt_types=[{prompt}]")
            rows[f"{name}, {prompt} prompt"] = iou_row(chosen, model)
    absence = absence_row(config("dataset.synthetic_lifelike=1"), model) if clips else {}
    videos: dict[str, dict] = {}
    if davis is not None:
        keys = ["valdataset.type=video", override("valdataset.data_path", str(davis))]
        videos = whole_video_rows(lambda *overrides: config(*keys, *overrides), model, "DAVIS")
    digest = hashlib.sha256(find_checkpoint(checkpoint).read_bytes()).hexdigest()
    return {
        "checkpoint": Path(checkpoint).name,
        "sha256": digest,
        "image_size": image_size,
        "seed": SEED,
        "score": "mean over the frames after the prompted one, then over objects; 1 where mask and "
        "truth are both empty",
        "videos": videos,
        "iou": rows,
        "absence": absence,
    }


def table(scores: dict) -> str:
    """Return the scores as Markdown."""
    cell = partial(mean_text, signed=False)
    videos = []
    for name, trackers in scores["videos"].items():
        row: dict[str, object] = {"": name, "objects": trackers["nano"]["J"]["objects"]}
        for tracker, values in trackers.items():
            row |= {f"{tracker}: J": f"{values['J']['mean']:.3f}"}
            row |= {f"{tracker}: F": f"{values['F']['mean']:.3f}"}
            row |= {f"{tracker}: J&F": cell(values["J&F"])}
        videos.append(row)
    iou = [
        {"IoU": name, "objects": row["nano"]["objects"], **{k: cell(v) for k, v in row.items()}}
        for name, row in scores["iou"].items()
    ]
    absence = [
        {"absence, generated lifelike clips, mask prompt": name, "": cell(value)}
        for name, value in scores["absence"].items()
    ]
    head = f"Checkpoint `{scores['checkpoint']}`, {scores['image_size']} px; {scores['score']}."
    notes = "In brackets the 95% interval over videos. J, F and J&F are measured at the "
    notes += "size of the videos, the IoU at the size of the model."
    if any("moving" in name for name in scores["videos"]):
        notes += f" An object is moving if its centre moves more than {MOVING:g} diameters per "
        notes += "frame."
    tables = [markdown_table(rows) for rows in (videos, iou, absence) if rows]
    return "\n".join([head, notes, "", "\n\n".join(tables)]) + "\n"


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
    parser.add_argument(
        "--clips", type=int, default=60, help="generated clips of each kind; 0: none"
    )
    parser.add_argument("--image-size", type=int, help="default: the size of the checkpoint")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "nano.json")
    parser.add_argument(
        "--curves", action="store_true", help="draw docs/images/nano_curves.png and stop"
    )
    arguments = parser.parse_args(argv)
    if arguments.curves:
        draw_curves(arguments.out.parent, ROOT / "docs" / "images" / "nano_curves.png")
        return
    image_size = arguments.image_size or source_config(arguments.checkpoint)[0].dataset.image_size
    scores = score(arguments.checkpoint, arguments.davis, arguments.clips, image_size)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(scores, indent=1) + "\n")
    arguments.out.with_suffix(".md").write_text(table(scores))
    sys.stdout.write(table(scores))


if __name__ == "__main__":
    main()
