"""Scores of whole videos, gathered frame by frame so that no video has to fit in memory.

A :class:`Convention` says which frames and objects count. :class:`VideoScorer` takes one frame at a
time, :class:`VideoScores` holds what it measured, :class:`DataSetScores` the means over videos.
``docs/evaluation.md`` has every score with its formula, its source and what it is blind to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

import sam2kit
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

ObjectId = int | str
SCHEMA_VERSION = 2
SCORES = ("J", "F", "J&F", "dice")


@dataclass(frozen=True)
class Convention:
    """Which frames, objects and pixels count.

    Attributes:
        name: under which results say it.
        skip_first, skip_last: the video's first and last annotated frame do not count.
        after_prompt: an object counts on the frames after its first prompt that have no prompt.
        late_objects: objects that are not on the first annotated frame count too.
        unseen_frames: frames count before truth or prediction have shown the object for the first
            time (J and F are 1 on them).
        foreground: all objects together are one, number 1.
        tolerance: of the boundary F, as in :func:`sam2kit.evaluation.boundary.region_and_boundary`.
        extra_ids: ids that only the prediction has are an ``error``, or ``ignore``.
        void: pixels that nobody decided on are left out of both masks (``ignore``), or are
            ``background``, where a prediction is wrong.
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
        # The package looks for void (255) only after its reader has made it background.
        Convention(
            "davis2017", skip_first=True, skip_last=True, late_objects=False, void="background"
        ),
        Convention("sav", skip_first=True, skip_last=True, unseen_frames=False, extra_ids="ignore"),
        Convention("all_frames"),
    )
}


@dataclass
class VideoScores:
    """What was measured on a video of T frames with O objects.

    Attributes:
        name: the video's.
        convention: which frames count.
        object_ids: O identities.
        J, F: ``[T,O]`` float64, NaN on frames without annotation. Both are 1 where truth and
            prediction are empty.
        truth_present, predicted_present: ``[T,O]`` bool: the mask is not empty.
        annotated: ``[T,O]`` bool.
        prompted: ``[T,O]`` bool: the tracker was shown the object there.
        object_score: ``[T,O]`` logits, NaN where the tracker gave none.
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
        """``[T,O]``, 2 J / (1 + J)."""
        return 2 * self.J / (1 + self.J)

    @property
    def scored(self) -> np.ndarray:
        """``[T,O]`` bool: the frames that count under the convention."""
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
        """The scores of each object; None where there is nothing to take a mean of."""
        scored = self.scored
        return {
            identity: self._object(o, scored[:, o]) for o, identity in enumerate(self.object_ids)
        }

    def _object(self, o: int, scored: np.ndarray) -> dict[str, Any]:
        j, f = self.J[scored, o], self.F[scored, o]
        seen = self.annotated[:, o]
        counts = {
            "frames": int(scored.sum()),
            **presence_counts(self.truth_present[scored, o], self.predicted_present[scored, o]),
            **recovery_counts(self.truth_present[seen, o], self.J[seen, o], scored[seen]),
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
        """Everything as JSON can hold it; :meth:`from_dict` gives back the same bits."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["convention"] = asdict(self.convention)
        for key, value in content.items():
            if isinstance(value, np.ndarray):
                held = value.astype(object)
                held[value != value] = None  # NaN is no JSON
                content[key] = held.tolist()
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> VideoScores:
        """Undo :meth:`to_dict`."""
        arrays = {
            name: np.array(content[name], float if name in _NUMBERS else bool) for name in _ROWS
        }
        return cls(
            name=content["name"],
            convention=Convention(**content["convention"]),
            object_ids=list(content["object_ids"]),
            **arrays,
        )


_NUMBERS = ("J", "F", "object_score")
_ROWS = tuple(f.name for f in fields(VideoScores) if f.type == "np.ndarray")


class VideoScorer:
    """Scores one video, frame by frame.

    Args:
        name: the video's.
        convention: which frames, objects and pixels count.
        object_ids: the objects of the truth that are to be scored.
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
        """Score frame ``t``; frames come in order, from 0, each once.

        Args:
            t: the frame.
            truth: bool ``[H,W]`` by object; an object it does not list is absent. None where nobody
                annotated the frame.
            prediction: bool ``[H,W]`` by object; one it does not list was not found.
            void: bool ``[H,W]``, pixels that nobody decided on.
            prompted: the objects that the tracker was shown on this frame.
            object_scores: logits of the object being there.

        Raises:
            DataError: ids that do not match, masks of different sizes.
            ValueError: frames out of order.
        """
        if t != len(self._rows["J"]):
            raise ValueError(f"{self.name}: frame {t} after {len(self._rows['J'])} frames")
        if self.convention.foreground:
            truth = truth if truth is None else _together(truth)
            prediction, prompted = _together(prediction), [1] if prompted else []
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
            mask, found = (truth or {}).get(identity), prediction.get(identity)
            if truth is not None:
                row["annotated"][o] = True
                row["J"][o] = row["F"][o] = 1.0  # both are empty
                if mask is not None or found is not None:
                    self._check_size(f"frame {t}, object {identity!r}", mask, found)
                    found, mask = outside_void(found, mask, void)
                    row["J"][o], row["F"][o] = region_and_boundary(found, mask, tolerance)
            row["truth_present"][o] = mask is not None and mask.any()
            row["predicted_present"][o] = found is not None and found.any()
        for name, values in row.items():
            self._rows[name].append(values)

    def _check_size(self, where: str, mask: np.ndarray | None, found: np.ndarray | None) -> None:
        if mask is not None and found is not None and found.shape != mask.shape:
            raise DataError(
                f"{self.name}, {where}: the prediction has {found.shape[0]} rows and "
                f"{found.shape[1]} columns, the truth {mask.shape[0]} and {mask.shape[1]}; give "
                "masks of the truth's size"
            )

    def _check_ids(self, t: int, truth: Mapping, prediction: Mapping) -> None:
        where = f"{self.name}, frame {t}"
        known = set(self.object_ids)
        if unknown := [i for i, m in truth.items() if i not in known and m.any()]:
            raise DataError(f"{where}: the truth has objects {unknown}, not in {self.object_ids}")
        extra = [i for i, mask in prediction.items() if i not in known and mask.any()]
        if extra and self.convention.extra_ids == "error":
            raise DataError(
                f"{where}: the prediction has objects {extra}, the truth {self.object_ids}; number "
                "objects as the truth does, or choose evaluation.convention=sav, which ignores "
                "such ids, or davis2016, which takes all objects as one"
            )

    def result(self) -> VideoScores:
        """What was measured so far."""
        shape = (len(self._rows["J"]), len(self.object_ids))
        arrays = {name: np.array(rows).reshape(shape) for name, rows in self._rows.items()}
        return VideoScores(self.name, self.convention, self.object_ids, **arrays)


def _together(masks: Mapping[ObjectId, np.ndarray]) -> dict[ObjectId, np.ndarray]:
    return {1: np.logical_or.reduce(list(masks.values()))} if masks else {}


@dataclass
class DataSetScores:
    """One tracker's scores on the videos of a data set.

    Attributes:
        tracker: its name.
        videos: one result a video.
    """

    tracker: str
    videos: list[VideoScores] = field(default_factory=list)

    def by_name(self) -> dict[str, VideoScores]:
        """Return the results by the video's name."""
        return {video.name: video for video in self.videos}

    def metrics(self) -> dict[str, Any]:
        """Return the content of ``metrics.json`` for one tracker; see :func:`metrics`."""
        return metrics([self])


def metrics(trackers: Sequence[DataSetScores]) -> dict[str, Any]:
    """Return the content of ``metrics.json`` (schema 2) but for the intervals and differences.

    The first tracker is the one under evaluation.

    ``J``, ``F`` and the others are means over all objects. ``videos`` maps each video's name to the
    means over its objects and to ``objects``; its ``trackers`` has the same of the other trackers.
    A score that nothing is there for is None.
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
    """Means over the objects of some videos, and presence and recovery over their pooled frames."""
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
