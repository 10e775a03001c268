"""Scoring trackers side by side on validation clips, for ``sam2kit evaluate`` and ``04_evaluate``.

Every tracker gets the same prompts on the same clips. Beside the tuned model stand the model before
training, the tuned one with its memory zeroed (a model that does not track loses nothing by that),
and the copied first mask (which loses nothing where objects stand still).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from loguru import logger

import sam2kit
from sam2kit.checkpoints import create_sam2_model, load_weights, read_run_config
from sam2kit.clip import ClipBatch
from sam2kit.compose import compose, recompose, save_config
from sam2kit.config import Config
from sam2kit.data.build import build_validation
from sam2kit.data.clips import create_dataloader
from sam2kit.engine import step_generator
from sam2kit.errors import CheckpointError, ConfigError, DataError
from sam2kit.metrics import copy_first_mask, mean_tracked_iou
from sam2kit.model import SAM2Model
from sam2kit.prompts import PromptGenerator
from sam2kit.run_dir import file_name, open_run_dir
from sam2kit.video_files import save_gif
from sam2kit.viz import frames_to_images, tracking_figure, tracking_frames

SCHEMA_VERSION = 1
COPY = "first mask copied"
BEFORE = "before training"
AFTER = "after training"
ZEROED = "after, memory zeroed"
MAX_PICTURES = 4


@dataclass
class ClipResult:
    """One clip with what every tracker made of it.

    Attributes:
        name: the video's name.
        frames: ``[T,H,W,3]`` uint8.
        truth: bool ``[T,O,H,W]``.
        predictions: tracker -> bool ``[T,O,H,W]``.
        scored: bool ``[T,O]``: tracked, annotated and not prompted.
        iou: tracker -> ``[O]`` mean IoU over an object's scored frames; NaN for one without any.
        object_ids: O identities.
    """

    name: str
    frames: np.ndarray
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    scored: np.ndarray
    iou: dict[str, np.ndarray]
    object_ids: list[int | str]


@dataclass
class Evaluation:
    """Scores and pictures' material of all clips.

    Attributes:
        clips: one result a clip, in the data set's order.
        output_dir: where :func:`evaluate_checkpoint` wrote its files.
    """

    clips: list[ClipResult] = field(default_factory=list)
    output_dir: Path | None = None

    @property
    def trackers(self) -> list[str]:
        return list(self.clips[0].iou) if self.clips else []

    def scores(self) -> dict[str, float]:
        """Tracker -> mean IoU over all objects that have a scored frame, 0 to 1."""
        return {
            tracker: float(np.nanmean(np.concatenate([clip.iou[tracker] for clip in self.clips])))
            for tracker in self.trackers
        }

    def metrics(self) -> dict:
        """Everything but the pixels, for ``metrics.json``."""
        objects = np.concatenate([c.iou[self.trackers[0]] for c in self.clips])
        return {
            "schema_version": SCHEMA_VERSION,
            "sam2kit_version": sam2kit.__version__,
            "score": "mean IoU over tracked, annotated and unprompted frames, mean over objects",
            "objects": int(np.isfinite(objects).sum()),
            "mean_iou": self.scores(),
            "videos": {
                clip.name: {
                    "frames": len(clip.frames),
                    "objects": {
                        str(identity): {
                            t: None if np.isnan(clip.iou[t][o]) else float(clip.iou[t][o])
                            for t in self.trackers
                        }
                        for o, identity in enumerate(clip.object_ids)
                    },
                }
                for clip in self.clips
            },
        }

    def save(self, output_dir: Path) -> None:
        """Write ``metrics.json``, ``overlay.png``, ``overlay.gif`` and ``overlays/VIDEO.png``.

        The first picture and the GIF show the clips around the tracker's median, none picked by
        hand; at most :data:`MAX_PICTURES` clips are drawn.
        """
        output_dir = open_run_dir(output_dir, output_dir)
        (output_dir / "metrics.json").write_text(json.dumps(self.metrics(), indent=1))
        shown = self._around_the_median()
        for clip in shown:
            figure = tracking_figure(
                clip.frames, clip.truth, clip.predictions, clip.scored, title=clip.name
            )
            path = output_dir / "overlays" / f"{file_name(clip.name)}.png"
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path)
            if clip is shown[0]:
                figure.savefig(output_dir / "overlay.png")
        animations = [tracking_frames(c.frames, c.truth, c.predictions) for c in shown]
        size = animations[0].shape[1:]
        same = [a for a in animations if a.shape[1:] == size]
        save_gif(output_dir / "overlay.gif", np.concatenate(same), fps=4)
        self.output_dir = output_dir

    def _around_the_median(self) -> list[ClipResult]:
        last = self.trackers[-1] if AFTER not in self.trackers else AFTER
        means = [
            (float(np.nanmean(clip.iou[last])), clip)
            for clip in self.clips
            if np.isfinite(clip.iou[last]).any()
        ]
        middle = float(np.median([score for score, _ in means]))
        means.sort(key=lambda item: abs(item[0] - middle))
        return [clip for _, clip in means[:MAX_PICTURES]]


def evaluate(config: Config, models: Mapping[str, tuple[SAM2Model, bool]]) -> Evaluation:
    """Track the validation clips of ``config`` with every model, and with the copied first mask.

    Args:
        config: the validation data, their prompts, ``seed`` and ``trainer.accelerator`` are read.
        models: name -> (model, whether its memory is zeroed).

    Raises:
        ConfigError, DataError: about the validation data; or no object is left to score.
    """
    clips = build_validation(config)
    val = config.validation_dataset()
    prompts = PromptGenerator.from_config(val)
    device = pick_device(config.trainer.accelerator)
    evaluation = Evaluation()
    loader = create_dataloader(clips, val, training=False, seed=config.seed)
    for number, batch in enumerate(loader):
        drawn = [p.to(device) for p in prompts(batch, step_generator(config.seed, number))]
        predictions, scored = {}, None
        for name, (model, zero_memory) in models.items():
            model = model.to(device).eval()
            with torch.inference_mode():
                output = model(batch.to(device), drawn, zero_memory=zero_memory)
            predictions[name] = output.masks(batch.masks.shape[-2:]).cpu().numpy()
            scored = (output.tracked & ~output.prompted).cpu() & batch.annotated
        assert scored is not None, "no models to evaluate"
        evaluation.clips += _split(batch, predictions, scored.numpy())
        logger.info("evaluated {} of {} batches", number + 1, len(loader))
    if not any(clip.scored.any() for clip in evaluation.clips):
        raise DataError("the validation clips hold no frame to score: no object is seen twice")
    return evaluation


def _split(
    batch: ClipBatch, predictions: Mapping[str, np.ndarray], scored: np.ndarray
) -> list[ClipResult]:
    """The batch's clips apart, with the copied mask beside the models and all IoUs."""
    truth, visible = batch.masks.numpy(), batch.visible.numpy()
    predictions = {COPY: copy_first_mask(truth, visible), **predictions}
    results = []
    for b, name in enumerate(batch.names):
        own = (batch.clip_of_object == b).numpy()
        masks = {t: p[:, own] for t, p in predictions.items()}
        results.append(
            ClipResult(
                name=name,
                frames=frames_to_images(batch.frames[b]),
                truth=truth[:, own],
                predictions=masks,
                scored=scored[:, own],
                iou={
                    t: mean_tracked_iou(p, truth[:, own], scored[:, own])[0]
                    for t, p in masks.items()
                },
                object_ids=[i for i, mine in zip(batch.object_ids, own, strict=True) if mine],
            )
        )
    return results


def evaluate_checkpoint(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score a checkpoint on validation clips, beside the copied mask and the model it came from.

    Args:
        checkpoint: a run's ``.ckpt``, which brings its configuration along; or, with
            ``config_file``, weights in the official format or a name.
        overrides: on top of the configuration, such as ``valdataset.data_path=DIR``.
        output_dir: for ``metrics.json``, ``config.yaml``, ``overlay.png``, ``overlay.gif`` and
            ``overlays/``; by default a dated folder under ``config.output_dir``.
        config_file: the configuration to use in place of the checkpoint's own.

    Raises:
        ConfigError, DataError, CheckpointError: naming the key or file.
    """
    checkpoint = str(checkpoint)
    if config_file is None:
        config = recompose(read_run_config(checkpoint), overrides, source=checkpoint)
    else:
        config = compose(config_file, overrides)
    if config_file is None or config.model.checkpoint not in (None, checkpoint):
        models = _before(config)
    else:
        models = {}
    tuned = create_sam2_model(config, load=False)
    load_weights(tuned, checkpoint)
    models |= {AFTER: (tuned, False), ZEROED: (tuned, True)}
    output_dir = open_run_dir(output_dir, config.output_dir)
    evaluation = evaluate(config, models)
    evaluation.save(output_dir)
    if output_dir.resolve() != Path(checkpoint).parent.resolve():
        save_config(config, output_dir / "config.yaml")
    for name, score in evaluation.scores().items():
        logger.info("{:22} mean IoU {:.3f}", name, score)
    logger.info("results in {}", output_dir)
    return evaluation


def _before(config: Config) -> dict[str, tuple[SAM2Model, bool]]:
    """The model that the run started from; left out, with a warning, where its file has gone."""
    try:
        return {BEFORE: (create_sam2_model(config), False)}
    except CheckpointError as error:
        logger.warning("the model before training is left out: {}", error)
        return {}


def pick_device(accelerator: str) -> torch.device:
    """The torch device of ``trainer.accelerator``; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    names = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if accelerator != "auto" and not there.get(names[accelerator], lambda: True)():
        raise ConfigError(
            f"trainer.accelerator is {accelerator}, and there is none here; take cpu or auto"
        )
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(names[accelerator])
