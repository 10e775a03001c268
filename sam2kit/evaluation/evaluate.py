"""Scoring trackers side by side on whole videos, for ``sam2kit evaluate`` and ``04_evaluate``.

Every tracker gets the same prompts on the same videos. Beside the tuned model stand the model
before training, the tuned one with its memory zeroed (a model that does not track loses nothing by
that), the copied first mask (which loses nothing where objects stand still), and any number of
other checkpoints. docs/evaluation.md has the protocols and the scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from loguru import logger

from sam2kit.config.loading import load_config, save_config
from sam2kit.config.schema import Config
from sam2kit.config.stored import override_allowed
from sam2kit.data.build import build_datasets, build_validation_source
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.writers import coco_json
from sam2kit.evaluation.pictures import tracking_figure, tracking_frames
from sam2kit.evaluation.predictions import first_visible_frames, score_predictions, write_csv
from sam2kit.evaluation.report import write_report
from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, metrics, summary
from sam2kit.evaluation.statistics import paired_differences, score_interval
from sam2kit.evaluation.tracker_runs import Contender, ResultFiles, calibrate, tracker_options
from sam2kit.models.checkpoints import (
    create_sam2_model,
    find_checkpoint,
    load_model,
    load_weights,
    source_config,
)
from sam2kit.models.feature_cache import create_cache
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError
from sam2kit.utils.paths import file_name, open_run_dir
from sam2kit.viz.overlays import overlay
from sam2kit.viz.video_writer import save_gif, save_mp4

COPY = "first mask copied"
BEFORE = "before training"
AFTER = "after training"
ZEROED = "after, memory zeroed"
CALIBRATED = "after, calibrated"
MAX_PICTURES = 4
MAX_PICTURE_FRAMES = 40
PICTURE_WIDTH = 240  # pixels; the MP4 files have the whole frames


@dataclass
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        config: of the evaluation.
        source: the videos.
        trackers: one result each on the same videos; the first is the one it is about.
        files: the masks; None where they are somebody's own.
        robustness: tracker -> level of prompt noise -> mean J&F.
        calibration: the thresholds of :data:`CALIBRATED` and the videos they were chosen on.
        output_dir: where the results are.
    """

    config: Config
    source: VideoSource
    trackers: list[DataSetScores]
    files: ResultFiles | None = None
    robustness: dict[str, dict[float, float | None]] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    output_dir: Path | None = None

    def scores(self) -> dict[str, float]:
        """Tracker -> mean J&F over all objects, 0 to 1; NaN where nothing counts."""
        means = {t.tracker: summary(t.videos)["J&F"] for t in self.trackers}
        return {name: float("nan") if v is None else v for name, v in means.items()}

    def metrics(self) -> dict[str, Any]:
        """What ``metrics.json`` holds; docs/evaluation.md lists it."""
        main, *others = self.trackers
        evaluation = asdict(self.config.evaluation)
        chosen = ("protocol", "clicks", "reprompt_every", "noise", "noise_kinds", "tracker")
        content = metrics(self.trackers)
        for tracker in self.trackers:
            interval = score_interval(tracker, self._generator())
            bounds = [interval["low"], interval["high"]]
            content["trackers"][tracker.tracker]["J&F_interval"] = bounds
        differences = {
            other.tracker: paired_differences(main, other, self._generator()) for other in others
        }
        for difference in differences.values():
            del difference["differences"]
        return content | {
            "protocol": {k: evaluation[k] for k in chosen} if self.files else None,
            "seed": self.config.seed,
            "differences": differences,
            "robustness": {
                name: {"noise": list(curve), "J&F": list(curve.values())}
                for name, curve in self.robustness.items()
            },
            "calibration": self.calibration,
        }

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(self.config.seed)

    def save(self, output_dir: Path) -> None:
        """Write ``metrics.json``, ``objects.csv``, ``report.html``, ``coco/``, overlays and GIF.

        The overlays show the videos around the tracker's median, none picked by hand; at most
        :data:`MAX_PICTURES` of them, of each :data:`MAX_PICTURE_FRAMES` frames. The MP4 files
        show all frames: the truth at the left, the first tracker at the right.
        """
        self.output_dir = output_dir = open_run_dir(output_dir, output_dir)
        (output_dir / "metrics.json").write_text(json.dumps(self.metrics(), indent=1))
        write_csv(output_dir / "objects.csv", self.trackers)
        masks = None if self.files is None else self.files.masks
        parts = (output_dir, self.trackers, self.source, masks, self.config, self.robustness)
        write_report(*parts)
        if self.files is None:
            return
        (output_dir / "coco").mkdir(exist_ok=True)
        for tracker in self.trackers:
            videos = [v.name for v in tracker.videos]
            content = coco_json(self.files.sav(tracker.tracker, videos))
            path = output_dir / "coco" / f"{file_name(tracker.tracker)}.json"
            path.write_text(json.dumps(content))
        self._draw(output_dir)

    def _draw(self, output_dir: Path) -> None:
        animations = []
        for name in self._around_the_median():
            steps, frames, truth, predictions = self._pixels(name)
            found = {
                t.tracker: summary([v])["J&F"]
                for t in self.trackers
                for v in t.videos
                if v.name == name
            }
            scores = {k: "no score" if v is None else f"J&F {v:.2f}" for k, v in found.items()}
            figure = tracking_figure(
                frames, truth, predictions, title=name, numbers=steps, scores=scores
            )
            path = output_dir / "overlays" / f"{file_name(name)}.png"
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path)
            save_mp4(path.with_suffix(".mp4"), self._moving(name))
            if not animations:
                figure.savefig(output_dir / "overlay.png")
            animations.append(tracking_frames(frames, truth, predictions))
        same = [a for a in animations if a.shape[1:] == animations[0].shape[1:]]
        save_gif(output_dir / "overlay.gif", np.concatenate(same), fps=4)

    def _pixels(self, name: str) -> tuple[list[int], np.ndarray, np.ndarray, dict]:
        """Frame numbers spread over a video, and small frames, truth, predictions by tracker."""
        assert self.files is not None
        i = self.source.names.index(name)
        video = next(v for v in self.trackers[0].videos if v.name == name)
        count = min(len(video.J), MAX_PICTURE_FRAMES)
        steps = np.linspace(0, len(video.J) - 1, count).round().astype(int).tolist()
        whole = self.source.read_frame(i, 0).shape
        scale = min(PICTURE_WIDTH / whole[1], 1)
        size = min(PICTURE_WIDTH, whole[1]), max(1, round(whole[0] * scale))
        read = (self.source.read_frame(i, t) for t in steps)
        frames = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in read])
        empty = np.zeros(whole[:2], bool)

        def small(mask: np.ndarray) -> np.ndarray:
            return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0

        def stacked(masks: list) -> np.ndarray:
            return np.stack([[small(m.get(o, empty)) for o in video.object_ids] for m in masks])

        truth = stacked([self.source.read_masks(i, t) or {} for t in steps])
        predictions = {
            t.tracker: stacked([self.files.masks(t.tracker, name, step) for step in steps])
            for t in self.trackers
        }
        return steps, frames, truth, predictions

    def _moving(self, name: str) -> Iterator[np.ndarray]:
        """All frames of a video with the truth and with the first tracker's masks, ``[H,2W,3]``."""
        assert self.files is not None
        i, main = self.source.names.index(name), self.trackers[0].tracker
        ids = next(v.object_ids for v in self.trackers[0].videos if v.name == name)
        for t in range(self.source.num_frames(i)):
            frame = self.source.read_frame(i, t)
            empty = np.zeros(frame.shape[:2], bool)
            both = self.source.read_masks(i, t) or {}, self.files.masks(main, name, t)
            stacks = [[m.get(o, empty) for o in ids] for m in both]
            yield np.concatenate([overlay(frame, np.stack(stack)) for stack in stacks], axis=1)

    def _around_the_median(self) -> list[str]:
        means = {v.name: summary([v])["J&F"] for v in self.trackers[0].videos}
        means = {name: score for name, score in means.items() if score is not None}
        middle = float(np.median(list(means.values())))
        return sorted(means, key=lambda name: abs(means[name] - middle))[:MAX_PICTURES]


def evaluate(config: Config, contenders: Sequence[Contender], output_dir: Path) -> Evaluation:
    """Track the validation videos of ``config`` with every contender.

    Each video's scores and masks are kept in ``output_dir`` as soon as it is done, and what is
    there already is not tracked again: an evaluation that was interrupted goes on.

    Args:
        config: the validation data, ``evaluation`` and ``seed`` are read.
        contenders: of different names; the first is the one the evaluation is about.

    Raises:
        ConfigError, DataError: about the validation data or ``evaluation``; or no object is left
            to score.
    """
    tracker_options(config)
    source = build_validation_source(config)
    files = ResultFiles(output_dir, config)
    calibration = None
    if config.evaluation.calibration_videos:
        calibrated, calibration = _calibrated(config, contenders[0], source)
        contenders = [*contenders, calibrated]
    results = {c.name: DataSetScores(c.name) for c in contenders}
    curves: dict[str, dict[float, DataSetScores]] = {
        c.name: {level: DataSetScores(c.name) for level in config.evaluation.noise_levels}
        for c in contenders
        if c.model is not None and not c.zero_memory
    }
    for i, video in enumerate(source.names):
        objects = list(first_visible_frames(source, i)[0])
        if not objects:
            logger.warning("{} shows no object and is left out", video)
            continue
        for contender in contenders:
            scores = files.scores(contender, source, i, objects)
            results[contender.name].videos.append(scores)
            score = summary([scores])["J&F"]
            logger.info(
                "{} ({} of {}), {}: J&F {}",
                *(video, i + 1, len(source), contender.name),
                "of no frame" if score is None else f"{score:.3f}",
            )
            for level, curve in curves.get(contender.name, {}).items():
                curve.videos.append(files.scores(contender, source, i, objects, level))
    evaluation = Evaluation(config, source, list(results.values()), files, calibration=calibration)
    _check_scored(evaluation)
    evaluation.robustness = {
        name: {level: summary(s.videos)["J&F"] for level, s in sorted(curve.items())}
        for name, curve in curves.items()
        if curve
    }
    return evaluation


def _calibrated(
    config: Config, contender: Contender, source: VideoSource
) -> tuple[Contender, dict[str, Any]]:
    """The contender with thresholds chosen on training videos.

    Raises:
        ConfigError: a training video is among the validation videos, too.
    """
    training = build_datasets(config)[0].source
    count = min(config.evaluation.calibration_videos, len(training))
    videos = np.linspace(0, len(training) - 1, count).round().astype(int).tolist()
    names = [training.names[i] for i in videos]
    if shared := set(names) & set(source.names):
        raise ConfigError(
            f"evaluation.calibration_videos: {sorted(shared)[0]!r} is among the videos to report "
            "on; give dataset.split and valdataset.split different videos"
        )
    logger.info("thresholds are chosen on {}", ", ".join(names))
    mask, present = calibrate(contender, training, videos, config)
    chosen = {"mask_threshold": mask, "object_score_threshold": present, "videos": names}
    return Contender(CALIBRATED, contender.model, False, mask, present), chosen


def evaluate_checkpoint(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score a checkpoint on validation videos, beside the copied mask and the model it came from.

    Args:
        checkpoint: a run's folder or ``.ckpt``, which brings its configuration along (paths only if
            the run's ``config.yaml`` is beside it); or weights in the official format, or a name.
        overrides: on top of the configuration, such as ``valdataset.data_path=DIR``.
        output_dir: for all that is written; by default a dated folder under
            ``config.output_dir``. One that holds an interrupted evaluation goes on with it.
        config_file: the configuration to use in place of the checkpoint's own (weights without
            one get that of their size).

    Raises:
        ConfigError, DataError, CheckpointError: naming the key or file.
    """
    checkpoint = str(checkpoint)
    if config_file is None:
        config, ignored = override_allowed(*source_config(checkpoint), overrides, checkpoint)
    else:
        config, ignored = load_config(config_file, overrides), ["model.checkpoint"]
    file, start = find_checkpoint(checkpoint), config.model.checkpoint
    no_start = "model.checkpoint" in ignored if start is None else start in (checkpoint, str(file))
    contenders = _contenders(config, checkpoint, not no_start)
    output_dir = open_run_dir(output_dir, config.output_dir)
    if output_dir.resolve() != file.parent.resolve():
        save_config(config, output_dir / "config.yaml")
    evaluation = evaluate(config, contenders, output_dir)
    return _finish(evaluation, output_dir)


def evaluate_predictions(
    folder: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score anybody's masks in DAVIS layout on the validation videos.

    Args:
        folder: see :func:`sam2kit.evaluation.predictions.score_predictions`.
        overrides, output_dir, config_file: as for :func:`evaluate_checkpoint`.

    Raises:
        ConfigError, DataError: naming the key or file.
    """
    config = load_config(config_file, overrides)
    source = build_validation_source(config)
    named = config.evaluation.convention
    scores = score_predictions(source, folder, CONVENTIONS[named] if named else None)
    output_dir = open_run_dir(output_dir, config.output_dir)
    save_config(config, output_dir / "config.yaml")
    evaluation = Evaluation(config, source, [scores])
    _check_scored(evaluation)
    return _finish(evaluation, output_dir)


def _check_scored(evaluation: Evaluation) -> None:
    """Refuse an evaluation in which no frame counts."""
    if np.isnan(evaluation.scores()[evaluation.trackers[0].tracker]):
        raise DataError(
            "the validation videos hold no frame to score: none shows an object on enough frames "
            "for the convention (evaluation.convention chooses another)"
        )


def _finish(evaluation: Evaluation, output_dir: Path) -> Evaluation:
    evaluation.save(output_dir)
    for name, score in evaluation.scores().items():
        logger.info("{:22} J&F {:.3f}", name, score)
    logger.info("results in {}", output_dir)
    return evaluation


def _contenders(config: Config, checkpoint: str, has_start: bool) -> list[Contender]:
    """The tuned model, the one before training, the memory zeroed, the copied mask, and others.

    The model before training is left out, with a warning, where its file has gone.
    """
    device = pick_device(config.trainer.accelerator)
    tuned = create_sam2_model(config, load=False)
    load_weights(tuned, checkpoint)
    tuned.to(device)
    found = [Contender(AFTER, tuned)]
    if has_start:
        try:
            found.append(Contender(BEFORE, create_sam2_model(config).to(device)))
        except CheckpointError as error:
            logger.warning("the model before training is left out: {}", error)
    found += [Contender(ZEROED, tuned, zero_memory=True), Contender(COPY, None)]
    for name, other in config.evaluation.compare.items():
        if name in {CALIBRATED, BEFORE, *(c.name for c in found)}:
            raise ConfigError(f"evaluation.compare: {name!r} is a tracker's name; take another")
        found.append(Contender(name, load_model(other)[1].to(device)))
    if tuned.encoder_is_frozen:  # trackers share its features
        cache = create_cache(config, exact=True)
        for model in (c.model for c in found if c.model is not None):
            model.feature_cache = cache
    return found
