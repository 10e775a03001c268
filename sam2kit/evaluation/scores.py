"""Score whole videos frame by frame, without loading a video into memory.

A :class:`Convention` defines which frames, objects and pixels are scored. :class:`VideoScorer`
scores one frame at a time, :class:`VideoScores` contains the scores of a video and
:class:`DataSetScores` the scores of a dataset. ``docs/metrics.md`` describes the formula, source
and limits of every score.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

import sam2kit
from sam2kit.data.sources.base import ObjectId
from sam2kit.evaluation.boundary import BOUNDARY_TOLERANCE, region_and_boundary
from sam2kit.evaluation.metrics import (
    PRESENCE_COUNTS,
    RECOVERED_IOU,
    RECOVERY_COUNTS,
    decay,
    outside_void,
    presence_and_recovery,
    presence_counts,
    recovery_counts,
)
from sam2kit.utils.errors import DataError

SCHEMA_VERSION = 2
SCORES = ("J", "F", "J&F", "dice")
# Names of trackers in results: the trained model and two baselines.
AFTER, BEFORE, COPY = "after training", "before training", "first mask copied"


@dataclass(frozen=True)
class Convention:
    """Rules for which frames, objects and pixels are scored.

    Attributes:
        name: name of the convention in results.
        skip_first, skip_last: whether to skip the first and the last annotated frame of a video.
        after_prompt: whether to score an object only on frames after its first prompt, except for
            frames where it is prompted again.
        late_objects: whether to score objects that are not on the first annotated frame.
        unseen_frames: whether to score frames before the object first appears in ground truth or
            prediction, on which J and F are 1.
        foreground: whether to merge all objects into one object with id 1.
        tolerance: tolerance of the boundary measure F; see
            :func:`sam2kit.evaluation.boundary.region_and_boundary`.
        extra_ids: ``error`` rejects ids that only occur in the prediction; ``ignore`` ignores them.
        void: ``ignore`` removes void pixels from both masks; ``background`` treats them as
            background, so that predicting an object there is an error.
    """

    name: str
    skip_first: bool = False
    skip_last: bool = False
    after_prompt: bool = False
    late_objects: bool = True
    unseen_frames: bool = True
    foreground: bool = False
    tolerance: float = BOUNDARY_TOLERANCE
    extra_ids: str = "error"
    void: str = "ignore"


CONVENTIONS = {
    c.name: c
    for c in (
        Convention("prompted", after_prompt=True),
        Convention("davis2016", skip_first=True, skip_last=True, foreground=True),
        # The official package masks out void pixels (255), but its reader has already converted
        # them to background.
        Convention(
            "davis2017", skip_first=True, skip_last=True, late_objects=False, void="background"
        ),
        Convention("sav", skip_first=True, skip_last=True, unseen_frames=False, extra_ids="ignore"),
        Convention("all_frames"),
    )
}


@dataclass
class VideoScores:
    """The scores of a video of T frames with O objects.

    Attributes:
        name: the name of the video.
        convention: the scoring convention.
        object_ids: O ids.
        J, F: ``[T,O]`` float64 from 0 to 1, NaN on unannotated frames. Both are 1 if ground truth
            and prediction are empty.
        truth_present, predicted_present: ``[T,O]`` bool, whether the mask is not empty.
        annotated: ``[T,O]`` bool, whether the frame is annotated.
        prompted: ``[T,O]`` bool, whether the object was prompted on this frame.
        object_score: ``[T,O]`` logits of the object being visible, NaN if the tracker has none.
    """

    name: str
    convention: Convention
    object_ids: list[ObjectId]
    J: np.ndarray
    F: np.ndarray
    truth_present: np.ndarray
    predicted_present: np.ndarray
    annotated: np.ndarray
    prompted: np.ndarray
    object_score: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """Dice coefficient 2 J / (1 + J), ``[T,O]``."""
        return 2 * self.J / (1 + self.J)

    @property
    def scored(self) -> np.ndarray:
        """Frames that the convention scores, ``[T,O]`` bool."""
        # Start with all annotated frames, and remove frames that the convention excludes.
        frames = np.flatnonzero(self.annotated.any(1))
        counts = self.annotated.copy()
        if self.convention.skip_first:
            counts[frames[:1]] = False
        if self.convention.skip_last:
            counts[frames[-1:]] = False
        if self.convention.after_prompt:
            counts &= np.logical_or.accumulate(self.prompted, axis=0) & ~self.prompted
        if not self.convention.late_objects:
            counts &= self.truth_present[frames[:1]].any(0)
        if not self.convention.unseen_frames:
            shown = counts & (self.truth_present | self.predicted_present)
            counts &= np.logical_or.accumulate(shown, axis=0)
        return counts

    def objects(self) -> dict[ObjectId, dict[str, Any]]:
        """Return the scores of each object by id; means and rates over no frames are None."""
        scored = self.scored
        return {
            identity: self._object(o, scored[:, o]) for o, identity in enumerate(self.object_ids)
        }

    def _object(self, o: int, scored: np.ndarray) -> dict[str, Any]:
        j, f = self.J[scored, o], self.F[scored, o]
        # Re-entries depend on all annotated frames, not only on the scored ones.
        annotated = self.annotated[:, o]
        counts = {
            "frames": int(scored.sum()),
            **presence_counts(self.truth_present[scored, o], self.predicted_present[scored, o]),
            **recovery_counts(
                self.truth_present[annotated, o], self.J[annotated, o], scored[annotated]
            ),
        }
        return {
            "J": _mean(j),
            "F": _mean(f),
            "J&F": _mean((j + f) / 2),
            "dice": _mean(self.dice[scored, o]),
            "J_recall": _mean(j > RECOVERED_IOU),
            "F_recall": _mean(f > RECOVERED_IOU),
            "J_decay": decay(j),
            "F_decay": decay(f),
            **counts,
            **presence_and_recovery(counts),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content as JSON-serializable values; :meth:`from_dict` restores it exactly."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["convention"] = asdict(self.convention)
        for key, value in content.items():
            if isinstance(value, np.ndarray):
                values = value.astype(object)
                values[value != value] = None  # JSON has no NaN
                content[key] = values.tolist()
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VideoScores:
        """Restore scores from the result of :meth:`to_dict`.

        Raises:
            ValueError: the arrays have different shapes, or a name or an id is not valid.
        """
        arrays = {
            name: np.array(content[name], float if name in _NUMBERS else bool) for name in _ROWS
        }
        ids, shape = content["object_ids"], arrays["J"].shape
        shapes = {rows.shape for rows in arrays.values()}
        if len(shape) != 2 or shapes != {shape} or shape[1] != len(ids):
            raise ValueError(f"arrays of {sorted(shapes)} for {len(ids)} objects")
        if len({i for i in ids if isinstance(i, int | str)}) < len(ids):
            raise ValueError("ids of objects are not different numbers and texts")
        if not isinstance(content["name"], str):
            raise ValueError("the name of the video is not text")
        return cls(
            name=content["name"],
            convention=Convention(**content["convention"]),
            object_ids=list(content["object_ids"]),
            **arrays,
        )


_NUMBERS = ("J", "F", "object_score")
_ROWS = tuple(f.name for f in fields(VideoScores) if f.type == "np.ndarray")


class VideoScorer:
    """Score one video, frame by frame.

    Args:
        name: the name of the video.
        convention: the scoring convention.
        object_ids: ids of all objects in the ground truth.
    """

    def __init__(self, name: str, convention: Convention, object_ids: Sequence[ObjectId]) -> None:
        self.name, self.convention = name, convention
        self.object_ids = list(object_ids)
        if convention.foreground:
            self.object_ids = [1] if self.object_ids else []
        self._rows: dict[str, list[np.ndarray]] = {f: [] for f in _ROWS}

    def add(
        self,
        t: int,
        truth: Mapping[ObjectId, np.ndarray] | None,
        prediction: Mapping[ObjectId, np.ndarray],
        void: np.ndarray | None = None,
        prompted: Collection[ObjectId] = (),
        object_scores: Mapping[ObjectId, float] | None = None,
    ) -> None:
        """Score a frame. Call this once for every frame, in order.

        Args:
            t: the frame number, from 0.
            truth: bool ``[H,W]`` by object, or None if the frame is unannotated. Missing objects
                are absent.
            prediction: bool ``[H,W]`` by object. Missing objects are predicted to be absent.
            void: bool ``[H,W]``, pixels that annotators left undecided. None (default): no void
                pixels.
            prompted: the objects that were prompted on this frame.
            object_scores: logits of the objects being visible. None (default): unknown.

        Raises:
            DataError: ground truth or prediction have unknown ids, or masks differ in size.
            ValueError: ``t`` is not the next frame.
        """
        if t != len(self._rows["J"]):
            raise ValueError(f"{self.name}: expected frame {len(self._rows['J'])}, got frame {t}")
        if self.convention.foreground:
            truth = truth if truth is None else _merged(truth)
            prediction, prompted = _merged(prediction), [1] if prompted else []
            object_scores = {1: max(object_scores.values())} if object_scores else None
        self._check_ids(t, truth or {}, prediction)
        void = void if self.convention.void == "ignore" else None
        ids, tolerance = self.object_ids, self.convention.tolerance
        row = {f: np.zeros(len(ids), bool) for f in _ROWS} | {
            f: np.full(len(ids), np.nan) for f in _NUMBERS
        }
        for o, identity in enumerate(ids):
            row["prompted"][o] = identity in prompted
            row["object_score"][o] = (object_scores or {}).get(identity, np.nan)
            true_mask, predicted_mask = (truth or {}).get(identity), prediction.get(identity)
            if truth is not None:
                row["annotated"][o] = True
                row["J"][o] = row["F"][o] = 1.0  # values if both masks are missing
                if true_mask is not None or predicted_mask is not None:
                    self._check_size(f"frame {t}, object {identity!r}", true_mask, predicted_mask)
                    predicted_mask, true_mask = outside_void(predicted_mask, true_mask, void)
                    row["J"][o], row["F"][o] = region_and_boundary(
                        predicted_mask, true_mask, tolerance
                    )
            row["truth_present"][o] = true_mask is not None and true_mask.any()
            row["predicted_present"][o] = predicted_mask is not None and predicted_mask.any()
        for name, values in row.items():
            self._rows[name].append(values)

    def _check_size(
        self, location: str, truth: np.ndarray | None, prediction: np.ndarray | None
    ) -> None:
        if truth is not None and prediction is not None and prediction.shape != truth.shape:
            raise DataError(
                f"{self.name}, {location}: the prediction has {prediction.shape[0]} rows and "
                f"{prediction.shape[1]} columns, but the ground truth has {truth.shape[0]} and "
                f"{truth.shape[1]}",
                hint="write masks at the size of the ground truth",
            )

    def _check_ids(self, t: int, truth: Mapping, prediction: Mapping) -> None:
        location = f"{self.name}, frame {t}"
        known = set(self.object_ids)
        # Ignore empty masks, regardless of their ids.
        if unknown := [i for i, m in truth.items() if i not in known and m.any()]:
            raise DataError(
                f"{location}: the ground truth has objects {unknown}, which are not in "
                f"{self.object_ids}",
                hint="create the VideoScorer with the ids of all objects of the video",
            )
        extra = [i for i, mask in prediction.items() if i not in known and mask.any()]
        if extra and self.convention.extra_ids == "error":
            raise DataError(
                f"{location}: the prediction has objects {extra}, but the ground truth has "
                f"{self.object_ids}",
                hint="use the ground truth's object numbers, or set evaluation.convention=sav, "
                "which ignores other ids, or davis2016, which merges all objects into one",
            )

    def result(self) -> VideoScores:
        """Return the scores of all frames added so far."""
        shape = (len(self._rows["J"]), len(self.object_ids))
        arrays = {name: np.array(rows).reshape(shape) for name, rows in self._rows.items()}
        return VideoScores(self.name, self.convention, self.object_ids, **arrays)


def _merged(masks: Mapping[ObjectId, np.ndarray]) -> dict[ObjectId, np.ndarray]:
    """Return the union of the masks as object 1; empty without masks."""
    return {1: np.logical_or.reduce(list(masks.values()))} if masks else {}


@dataclass
class DataSetScores:
    """The scores of one tracker on the videos of a dataset.

    Attributes:
        tracker: the name of the tracker.
        videos: one result per video.
    """

    tracker: str
    videos: list[VideoScores] = field(default_factory=list)

    def by_name(self) -> dict[str, VideoScores]:
        """Return the results by video name."""
        return {video.name: video for video in self.videos}

    def metrics(self) -> dict[str, Any]:
        """Return the content of ``metrics.json`` for one tracker; see :func:`metrics`."""
        return metrics([self])


def metrics(trackers: Sequence[DataSetScores]) -> dict[str, Any]:
    """Return the content of ``metrics.json`` (schema 2), except for intervals and differences.

    ``J``, ``F`` and the other scores of a tracker are means over all objects. ``videos`` maps each
    video to the first tracker's means over its objects and to ``objects``, the scores per object;
    its entry ``trackers`` contains the same for the other trackers. Undefined scores, such as means
    over no frames, are None.

    Args:
        trackers: scores by tracker, first those of the tracker under evaluation.
    """
    main = trackers[0]
    others = {t.tracker: t.by_name() for t in trackers[1:]}
    return {
        "schema_version": SCHEMA_VERSION,
        "sam2kit_version": sam2kit.__version__,
        "convention": asdict(main.videos[0].convention) if main.videos else None,
        "tracker": main.tracker,
        "trackers": {t.tracker: summary(t.videos) for t in trackers},
        "videos": {
            video.name: {
                **_video(video),
                "trackers": {
                    name: _video(videos[video.name])
                    for name, videos in others.items()
                    if video.name in videos
                },
            }
            for video in main.videos
        },
    }


def _video(video: VideoScores) -> dict[str, Any]:
    objects = {str(identity): scores for identity, scores in video.objects().items()}
    return {**summary([video]), "video_frames": len(video.J), "objects": objects}


def summary(videos: Sequence[VideoScores]) -> dict[str, Any]:
    """Return means over all objects of videos, and rates of presence and recovery.

    Rates are computed from the summed counts of all objects, because a single object often has too
    few absent frames or re-entries.
    """
    objects = [scores for video in videos for scores in video.objects().values()]
    means = [*SCORES, "J_recall", "F_recall", "J_decay", "F_decay"]
    counts = ["frames", *PRESENCE_COUNTS, *RECOVERY_COUNTS]
    total = {k: sum(o[k] for o in objects) for k in counts}
    return {
        **{k: _mean([o[k] for o in objects if o[k] is not None]) for k in means},
        "scored_objects": sum(o["frames"] > 0 for o in objects),
        **total,
        **presence_and_recovery(total),
    }


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
