"""Run one tracker on one video by a protocol, score it frame by frame, and save the results."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

import sam2kit
from sam2kit.config.schema import Config
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.writers import MaskWriter
from sam2kit.evaluation.prompt_protocols import (
    CopiedMasks,
    PromptedFrame,
    PromptProtocol,
    first_visible_frames,
    follow,
)
from sam2kit.evaluation.scores import CONVENTIONS, VideoScorer, VideoScores
from sam2kit.evaluation.statistics import best_threshold, iou_by_threshold, presence_by_threshold
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.noise import PromptNoise
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import TrackingSession, VideoTracker
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import write_text
from sam2kit.utils.paths import file_name

MASK_THRESHOLDS = np.linspace(-4, 4, 33)
OBJECT_THRESHOLDS = np.linspace(0, 4, 17)  # below 0 the model itself has emptied the mask
PROGRESS_FRAMES = 100


@dataclass(frozen=True, eq=False)
class TrackerRun:
    """A model, or the copied first mask, with the settings that it tracks the videos with.

    Attributes:
        name: the tracker's name in the results.
        model: on its device; None: each object's prompted mask is copied.
        zero_memory: whether the memories in the bank are zeroed.
        mask_threshold: logits above it are the object.
        object_threshold: where the object's score is not above it, the mask is empty.
    """

    name: str
    model: SAM2Model | None
    zero_memory: bool = False
    mask_threshold: float = 0.0
    object_threshold: float = -math.inf

    def track(
        self, source: VideoSource, i: int, config: Config, noise: float | None = None
    ) -> Iterator[PromptedFrame]:
        """Track video ``i`` by the protocol of the configuration, ``noise`` in place of its own.

        Raises:
            ConfigError: an option of tracking that does not exist.
            DataError: a frame that cannot be read.
        """
        protocol = PromptProtocol.from_config(config.evaluation, config.seed, noise)
        session: TrackingSession | CopiedMasks
        if self.model is None:
            session, image_size = CopiedMasks(source.num_frames(i)), 0
            protocol = replace(protocol, kind="mask", noise=PromptNoise())
        else:
            options = replace(tracker_options(config), zero_memory=self.zero_memory)
            size, image_size = source.read_frame(i, 0).shape[:2], self.model.image_size
            tracker = VideoTracker(self.model, options)
            session = tracker.open(partial(source.read_frame, i), source.num_frames(i), size)
        return follow(session, partial(source.read_masks, i), protocol, source.names[i], image_size)

    def score(
        self,
        source: VideoSource,
        i: int,
        objects: Sequence[ObjectId],
        config: Config,
        noise: float | None = None,
        on_frame: Callable[[PromptedFrame, dict[ObjectId, np.ndarray]], None] | None = None,
    ) -> VideoScores:
        """Track and score video ``i``.

        Args:
            objects: all that the truth shows; see
                :func:`sam2kit.evaluation.prompt_protocols.first_visible_frames`.
            on_frame: called with each frame and its logits ``[H,W]`` by object, thresholds applied.

        Raises:
            ConfigError, DataError: as :meth:`track` and
            :class:`~sam2kit.evaluation.scores.VideoScorer`.
        """
        size = source.read_frame(i, 0).shape[:2]
        convention = CONVENTIONS[config.evaluation.convention or "prompted"]
        scorer = VideoScorer(source.names[i], convention, objects)
        for frame in self.track(source, i, config, noise):
            scores = frame.object_scores()
            logits = {
                o: np.where(scores[o] <= self.object_threshold, -1.0, x - self.mask_threshold)
                for o, x in frame.logits(size).items()
            }
            masks = {o: x > 0 for o, x in logits.items()}
            void = source.read_void(i, frame.t)
            scorer.add(frame.t, frame.truth, masks, void, frame.prompted, scores)
            if on_frame is not None:
                on_frame(frame, logits)
            if frame.t and frame.t % PROGRESS_FRAMES == 0:
                logger.info("{}, {}: frame {}", source.names[i], self.name, frame.t)
        return scorer.result()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that distinguishes this run from others of the same name."""
        content = {k: getattr(self, k) for k in ("zero_memory", "mask_threshold")}
        content["object_threshold"] = str(self.object_threshold)
        if self.model is not None:
            digest = 0
            for name, tensor in sorted(self.model.state_dict().items()):
                digest = zlib.crc32(name.encode(), digest)
                digest = zlib.crc32(tensor.cpu().numpy().tobytes(), digest)
            device = next(self.model.parameters()).device.type
            content |= {"weights": digest, "image_size": self.model.image_size, "device": device}
        return content


def tracker_options(config: Config) -> TrackerOptions:
    """Return the options of ``evaluation.tracker`` on top of upstream's conventions.

    Raises:
        ConfigError: an unknown name or an impossible value.
    """
    try:
        return TrackerOptions.from_values(config.evaluation.tracker)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"evaluation.tracker is {config.evaluation.tracker} ({error}); docs/tracking.md has "
            "the names and values"
        ) from error


class ResultFiles:
    """The files of an evaluation, one set per video and tracker, from which it can resume.

    ``scores/TRACKER/VIDEO.json`` is written last; it holds the scores and everything that they
    depend on. Where that has changed, the video is tracked again. ``masks`` has palette PNG files
    in DAVIS layout, ``sav`` the masks in SA-V's form.

    Args:
        folder: the folder of the evaluation.
        config: its configuration.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        evaluation = asdict(config.evaluation)
        for key in ("compare", "noise", "noise_levels", "calibration_videos"):
            del evaluation[key]  # the run and its noise stand for them
        data = asdict(config.validation_dataset())
        for key in ("num_workers", "batch_size", "prompt_types"):
            del data[key]
        self._shared = {"version": sam2kit.__version__, "seed": config.seed}
        self._shared |= {"evaluation": evaluation, "data": data}
        self._recent: tuple[tuple[str, str], Mapping[str, Any]] | None = None

    def path(self, kind: str, tracker: str, video: str, ending: str = "") -> Path:
        """Return the path of a video's ``scores``, ``masks`` or ``sav``, by ``kind``."""
        return self.folder / kind / file_name(tracker) / f"{file_name(video)}{ending}"

    def scores(
        self,
        run: TrackerRun,
        source: VideoSource,
        i: int,
        objects: Sequence[ObjectId],
        noise: float | None = None,
    ) -> VideoScores:
        """Return the scores of a video: read where they exist, otherwise measured and saved.

        Args:
            objects: as for :meth:`TrackerRun.score`.
            noise: a noise level of the robustness curves, for which no masks are saved. None:
                the noise level of the configuration.
        """
        name = run.name if noise is None else f"{run.name}, noise {noise:g}"
        video, level = source.names[i], self.config.evaluation.noise if noise is None else noise
        made_of = self._shared | {"tracker": run.identity, "noise": level}
        made_of |= {"frames": source.num_frames(i)}
        path = self.path("scores", name, video, ".json")
        masks_are_there = noise is not None or self.path("sav", name, video, ".json").is_file()
        if path.is_file() and masks_are_there:
            kept = json.loads(path.read_text())
            if kept["made_of"] == json.loads(json.dumps(made_of)):
                return VideoScores.from_dict(kept["scores"])
            logger.info(
                "{}, {}: settings or weights have changed, so it is tracked again", video, name
            )
            path.unlink()
        if noise is None:
            scores = self._score_and_keep_masks(run, source, i, objects)
        else:
            scores = run.score(source, i, objects, self.config, noise)
        _write_json(path, {"made_of": made_of, "scores": scores.to_dict()})
        return scores

    def _score_and_keep_masks(
        self, run: TrackerRun, source: VideoSource, i: int, objects: Sequence[ObjectId]
    ) -> VideoScores:
        video, size = source.names[i], source.read_frame(i, 0).shape[:2]
        folder = self.path("masks", run.name, video)
        if self.path("sav", run.name, video, ".json").is_file():  # they are an evaluation's
            for stale in folder.glob("*.png"):
                stale.unlink()
        writer = MaskWriter(folder, video, objects)

        def write(frame: PromptedFrame, logits: dict[ObjectId, np.ndarray]) -> None:
            writer.add(source.frame_name(i, frame.t), logits, size)

        scores = run.score(source, i, objects, self.config, on_frame=write)
        _write_json(self.path("sav", run.name, video, ".json"), writer.sav())
        return scores

    def masks(self, tracker: str, video: str, t: int) -> dict[ObjectId, np.ndarray]:
        """Return a tracker's masks on frame ``t``, bool ``[H,W]`` by object."""
        if self._recent is None or self._recent[0] != (tracker, video):
            self._recent = (tracker, video), next(self.sav(tracker, [video]))
        sav = self._recent[1]
        runs_by_object = zip(sav["masklet_id"], sav["masklet"][t], strict=True)
        return {o: decode_mask(runs) for o, runs in runs_by_object}

    def sav(self, tracker: str, videos: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yield videos in SA-V's form, as :func:`sam2kit.data.writers.coco_json` takes them."""
        for video in videos:
            yield json.loads(self.path("sav", tracker, video, ".json").read_text())


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))


def calibrate(
    run: TrackerRun, source: VideoSource, videos: Sequence[int], config: Config
) -> tuple[float, float]:
    """Choose the thresholds of masks and of object scores on videos that are not those reported on.

    Masks get the threshold with the highest mean IoU over the frames that count; object scores the
    one with the highest balanced accuracy of "present" (0 where no object is ever absent).
    """
    frame_ious: dict[tuple[int, ObjectId], np.ndarray] = {}

    def compare(frame: PromptedFrame, logits: dict[ObjectId, np.ndarray]) -> None:
        for o, x in logits.items() if frame.truth is not None else ():
            truth = (frame.truth or {}).get(o, np.zeros(x.shape, bool))
            frame_ious[frame.t, o] = iou_by_threshold(x, truth, MASK_THRESHOLDS)

    ious, scored = [], []
    for i in videos:
        frame_ious.clear()
        objects = list(first_visible_frames(source, i)[0])
        scores = run.score(source, i, objects, config, on_frame=compare)
        counts = dict(zip(scores.object_ids, scores.scored.T, strict=True))
        ious += [x for (t, o), x in frame_ious.items() if o in counts and counts[o][t]]
        scored.append(scores)
    presence = presence_by_threshold(scored, OBJECT_THRESHOLDS)
    if not ious:
        raise ConfigError("evaluation.calibration_videos: no frame of them counts; name more")
    return (
        best_threshold(MASK_THRESHOLDS, np.mean(ious, axis=0)),
        0.0 if np.isnan(presence).any() else best_threshold(OBJECT_THRESHOLDS, presence),
    )
