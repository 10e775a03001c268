"""Track a video by a prompt protocol, score it frame by frame, and save the results."""

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
from sam2kit.data import fingerprint
from sam2kit.data.parallel import ReadAhead, WorkBehind
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.writers import MaskWriter
from sam2kit.evaluation.predictions import ResultMasks
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
from sam2kit.tracking.frame_step import PreparedFrame
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import TrackingSession, VideoTracker
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import MAX_MASKS_BYTES, damage_is, read_json

MASK_THRESHOLDS = np.linspace(-4, 4, 33)
# Lower thresholds have no effect: the model itself empties masks with an object score below 0.
OBJECT_THRESHOLDS = np.linspace(0, 4, 17)
PROGRESS_FRAMES = 100  # frames between two log lines


@dataclass(frozen=True, eq=False)
class TrackerRun:
    """A tracker to evaluate: a model with settings, or the copied first mask.

    Attributes:
        name: the name of the tracker in the results.
        model: the model, on its device, or None to copy each object's prompted mask to all frames.
        zero_memory: replace the memories in the memory bank with zeros.
        mask_threshold: logit above which a pixel belongs to the object.
        object_threshold: object score above which the mask is not emptied.
    """

    name: str
    model: SAM2Model | None
    zero_memory: bool = False
    mask_threshold: float = 0.0
    object_threshold: float = -math.inf

    def track(
        self, source: VideoSource, i: int, config: Config, noise: float | None = None
    ) -> Iterator[PromptedFrame]:
        """Track video ``i`` with the protocol of the configuration.

        One other thread reads the source, and resizes the next frames while one is tracked.

        Args:
            source: the videos.
            i: the index of the video.
            config: the configuration; ``evaluation`` and ``seed`` are used.
            noise: noise level of the prompts. If None (default), ``evaluation.noise``.

        Raises:
            ConfigError: ``evaluation.tracker`` has an unknown option or an invalid value.
            DataError: a frame cannot be read.
        """
        protocol = PromptProtocol.from_config(config.evaluation, config.seed, noise)
        options = replace(tracker_options(config), zero_memory=self.zero_memory)
        count, name = source.num_frames(i), source.names[i]
        tracker = None if self.model is None else VideoTracker(self.model, options)

        def read(t: int) -> PreparedFrame:
            assert tracker is not None
            return tracker.prepare(source.read_frame(i, t))

        session: TrackingSession | CopiedMasks
        with ReadAhead(read, count, options.lookahead) as frames:
            if tracker is None:
                session, image_size = CopiedMasks(count), 0
                # The baseline always copies exact masks, regardless of the models' prompts.
                protocol = replace(protocol, kind="mask", noise=PromptNoise())
            else:
                session = tracker.open(frames, count, frames(0).frame.shape[:2])
                image_size = tracker.model.image_size
            read_masks = partial(frames.call, source.read_masks, i)
            for frame in follow(session, read_masks, protocol, name, image_size):
                frame.void = frames.call(source.read_void, i, frame.t)
                yield frame

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
            source, i, config, noise: see :meth:`track`.
            objects: all objects in the ground truth; see
                :func:`sam2kit.evaluation.prompt_protocols.first_visible_frames`.
            on_frame: callback for each frame and its logits, float ``[H,W]`` by object, which are
                above 0 inside the object, because the thresholds are subtracted. It is called in
                order in another thread. None (default): no callback.

        Raises:
            ConfigError, DataError: see :meth:`track` and
                :meth:`~sam2kit.evaluation.scores.VideoScorer.add`.
        """
        size = source.read_frame(i, 0).shape[:2]
        convention = CONVENTIONS[config.evaluation.convention or "prompted"]
        scorer = VideoScorer(source.names[i], convention, objects)

        def add(
            frame: PromptedFrame,
            predicted: dict[ObjectId, np.ndarray],
            scores: dict[ObjectId, float],
        ) -> None:
            logits = {
                o: np.where(scores[o] <= self.object_threshold, -1.0, x - self.mask_threshold)
                for o, x in predicted.items()
            }
            masks = {o: x > 0 for o, x in logits.items()}
            scorer.add(frame.t, frame.truth, masks, frame.void, frame.prompted, scores)
            if on_frame is not None:
                on_frame(frame, logits)

        with WorkBehind() as behind:
            for frame in self.track(source, i, config, noise):
                behind.submit(add, frame, frame.logits(size), frame.object_scores())
                if frame.t and frame.t % PROGRESS_FRAMES == 0:
                    number = source.frame_number(i, frame.t)
                    logger.info("{}, {}: frame {}", source.names[i], self.name, number)
        return scorer.result()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Settings and weight checksum, used to detect stale scores."""
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
    """Return upstream's tracking options, changed by ``evaluation.tracker``.

    Raises:
        ConfigError: an option is unknown, or its value is invalid.
    """
    try:
        return TrackerOptions.from_values(config.evaluation.tracker)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            str(error),
            key="evaluation.tracker",
            value=config.evaluation.tracker,
            hint="docs/tracking.md lists the options and their values",
        ) from error


class ResultFiles:
    """The files of an evaluation, stored per tracker and video, so that it can be resumed.

    ``scores/TRACKER/VIDEO.json`` contains the scores and everything on which they depend, including
    hashes of frames and masks. If any of these has changed, the scores are stale and the video is
    tracked again. This file is written last, so a video with scores is complete. ``masks`` contains
    palette PNG files in DAVIS layout and ``sav`` the masks in SA-V's format.

    Args:
        folder: the output directory of the evaluation.
        config: the configuration of the evaluation.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config
        # All settings on which the scores depend. Tracker and noise level are stored per video; the
        # other excluded keys do not affect the scores.
        evaluation = asdict(config.evaluation)
        for key in (
            *("compare", "noise", "noise_levels", "calibration_videos"),
            *("split", "allow_training_videos", "pictures"),
        ):
            del evaluation[key]
        is_test = config.evaluation.split == "test"
        data = asdict(config.test_dataset() if is_test else config.validation_dataset())
        for key in ("num_workers", "batch_size", "prompt_types"):
            del data[key]
        self._shared = {"version": sam2kit.__version__, "seed": config.seed}
        self._shared |= {"evaluation": evaluation, "data": data}
        self._recent: tuple[tuple[str, str], Mapping[str, Any]] | None = None
        self._content: tuple[int, dict[str, str | None]] | None = None

    def path(self, kind: str, tracker: str, video: str, ending: str = "") -> Path:
        """Return the path of a video's ``scores``, ``masks`` or ``sav`` (the ``kind``)."""
        return self.folder / kind / file_name(tracker) / f"{file_name(video)}{ending}"

    def scores(
        self,
        run: TrackerRun,
        source: VideoSource,
        i: int,
        objects: Sequence[ObjectId],
        noise: float | None = None,
    ) -> VideoScores:
        """Return the scores of a video; track and score it if there are none or they are stale.

        Args:
            run: the tracker.
            source: the videos.
            i: the index of the video.
            objects: see :meth:`TrackerRun.score`.
            noise: noise level of a robustness curve, for which no masks are saved. If None
                (default), the configuration's noise level is used and masks are saved.
        """
        name = run.name if noise is None else f"{run.name}, noise {noise:g}"
        video, level = source.names[i], self.config.evaluation.noise if noise is None else noise
        made_of = self._shared | {"tracker": run.identity, "noise": level}
        made_of |= {"frames": source.num_frames(i)}
        path = self.path("scores", name, video, ".json")
        has_masks = noise is not None or self.path("sav", name, video, ".json").is_file()
        if path.is_file() and has_masks:
            saved = read_json(path, hint="delete the file", non_finite=True)
            with damage_is(DataError, path, "delete the file"):
                # Convert tuples to lists, as in the saved document, through JSON.
                if saved["made_of"] != json.loads(json.dumps(made_of)):
                    reason = "settings or weights"
                elif not self._same_content(saved.get("content", {}), source, i):
                    reason = "frames or masks"
                else:
                    return VideoScores.from_dict(saved["scores"])
            logger.info("{}, {}: tracking again because {} have changed", video, name, reason)
            path.unlink()
        if noise is None:
            scores = self._score_and_save_masks(run, source, i, objects)
        else:
            scores = run.score(source, i, objects, self.config, noise)
        about = {"made_of": made_of, "content": self._content_of(source, i)}
        _write_json(path, {**about, "scores": scores.to_dict()})
        return scores

    def _content_of(self, source: VideoSource, i: int) -> dict[str, str | None]:
        """Return hashes that detect changes of a video's files and content."""
        if self._content is None or self._content[0] != i:
            stamps, pixels = fingerprint.file_stamps(source, i), fingerprint.content(source, i)
            self._content = i, {"stamps": stamps, "content": pixels}
        return self._content[1]

    def _same_content(self, saved: Mapping[str, Any], source: VideoSource, i: int) -> bool:
        """Return whether a video is unchanged; it is only read if file timestamps differ."""
        stamps = saved.get("stamps")
        if stamps is not None and stamps == fingerprint.file_stamps(source, i):
            return True
        return saved.get("content") == self._content_of(source, i)["content"]

    def _score_and_save_masks(
        self, run: TrackerRun, source: VideoSource, i: int, objects: Sequence[ObjectId]
    ) -> VideoScores:
        video, size = source.names[i], source.read_frame(i, 0).shape[:2]
        folder = self.path("masks", run.name, video)
        # Delete stale masks, but only if an evaluation wrote them, that is, if the sav file exists.
        if self.path("sav", run.name, video, ".json").is_file():
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
        # Cache the file of the latest video, because its frames are usually read in sequence.
        if self._recent is None or self._recent[0] != (tracker, video):
            self._recent = (tracker, video), next(self.sav(tracker, [video]))
        sav = self._recent[1]
        runs_by_object = zip(sav["masklet_id"], sav["masklet"][t], strict=True)
        return {o: decode_mask(runs) for o, runs in runs_by_object}

    def label_masks(
        self, tracker: str, source: VideoSource, i: int
    ) -> Callable[[int], Mapping[ObjectId, np.ndarray]]:
        """Return a function that reads a frame's masks as exported, with one object per pixel."""
        video = source.names[i]
        exported = ResultMasks(self.path("masks", tracker, video))

        def read(t: int) -> Mapping[ObjectId, np.ndarray]:
            overlapping = self.masks(tracker, video, t)
            frame = source.frame_name(i, t)
            size = next((mask.shape for mask in overlapping.values()), None)
            return exported.read(frame, size) if size and exported.has(frame) else overlapping

        return read

    def sav(self, tracker: str, videos: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """Yield the masks of videos in SA-V's format.

        :func:`sam2kit.data.writers.coco_json` converts them to COCO.
        """
        for video in videos:
            path = self.path("sav", tracker, video, ".json")
            yield read_json(path, hint="evaluate again", max_bytes=MAX_MASKS_BYTES)


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content))


def calibrate(
    run: TrackerRun, source: VideoSource, videos: Sequence[int], config: Config
) -> tuple[float, float]:
    """Tune the thresholds of masks and object scores.

    The mask threshold maximizes the mean IoU over scored frames. The object score threshold
    maximizes the balanced accuracy of presence; it is 0 if no object is ever absent.

    Args:
        run: the tracker.
        source: videos for tuning, whose scores must not be reported.
        videos: indices of the videos to use.
        config: see :meth:`TrackerRun.track`.

    Returns:
        The mask threshold and the object score threshold, as logits.

    Raises:
        ConfigError: no frame of the videos is scored.
    """
    frame_ious: dict[tuple[int, ObjectId], np.ndarray] = {}
    ignores_void = CONVENTIONS[config.evaluation.convention or "prompted"].void == "ignore"

    def compare(frame: PromptedFrame, logits: dict[ObjectId, np.ndarray]) -> None:
        for o, x in logits.items() if frame.truth is not None else ():
            truth = (frame.truth or {}).get(o, np.zeros(x.shape, bool))
            if ignores_void and frame.void is not None:
                x, truth = np.where(frame.void, -np.inf, x), truth & ~frame.void
            frame_ious[frame.t, o] = iou_by_threshold(x, truth, MASK_THRESHOLDS)

    ious, video_scores = [], []
    for i in videos:
        frame_ious.clear()
        objects = list(first_visible_frames(source, i)[0])
        scores = run.score(source, i, objects, config, on_frame=compare)
        # The scored frames are only known at the end of the video.
        scored = dict(zip(scores.object_ids, scores.scored.T, strict=True))
        ious += [x for (t, o), x in frame_ious.items() if o in scored and scored[o][t]]
        video_scores.append(scores)
    presence = presence_by_threshold(video_scores, OBJECT_THRESHOLDS)
    if not ious:
        raise ConfigError(
            "no frame of these videos is scored",
            key="evaluation.calibration_videos",
            value=config.evaluation.calibration_videos,
            hint="use more videos",
        )
    return (
        best_threshold(MASK_THRESHOLDS, np.mean(ious, axis=0)),
        0.0 if np.isnan(presence).any() else best_threshold(OBJECT_THRESHOLDS, presence),
    )
