"""List the tracked masks that are most likely wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
from pycocotools import mask as coco_mask

from sam2kit.data.sources.base import ObjectId
from sam2kit.prompts.annotations import ObjectFrame, TrackedMask

MIN_SEVERITY = 0.3  # lower values are normal variation
SAME_IOU = 0.8  # of two objects above which a tracker has probably switched to the other object
MAX_COMPARED = 255  # maximum number of masks that pycocotools compares at once
NEIGHBORHOOD = 5  # frames around a listed frame that are not listed again for the same object


@dataclass(frozen=True)
class FrameToCheck:
    """A frame in which the mask of an object may be wrong.

    Attributes:
        frame: index of the frame.
        object: identity of the object.
        reason: reason to display.
        severity: from 0 to 1 (worst).
    """

    frame: int
    object: ObjectId
    reason: str
    severity: float


def find_suspects(
    tracks: Mapping[ObjectFrame, TrackedMask],
    size: tuple[int, int],
    names: Mapping[ObjectId, str] | None = None,
) -> list[FrameToCheck]:
    """List all frames that :func:`frames_to_check` selects from, the worst first.

    This takes seconds for 100,000 masks.

    Args:
        tracks: the tracked masks by object and frame.
        size: H and W of the masks.
        names: display names of objects. If None (default), their identities are shown.
    """
    # Pass masks one at a time, because pycocotools fails for lists of more than 255 masks.
    areas = {
        key: int(coco_mask.area({"size": list(size), "counts": track.counts}))
        for key, track in tracks.items()
    }
    suspects = [
        max(reasons, key=lambda suspect: suspect.severity)
        for (o, t), track in tracks.items()
        if (reasons := list(_reasons(o, t, track, tracks.get((o, t - 1)), areas)))
    ]
    twins = _almost_equal(tracks, areas, size)
    suspects += [
        FrameToCheck(t, o, f"almost the same mask as {(names or {}).get(other, other)}", iou)
        for (o, t), (other, iou) in twins.items()
    ]
    return sorted(suspects, key=lambda suspect: (-suspect.severity, suspect.frame))


def frames_to_check(
    suspects: Iterable[FrameToCheck], skipped: Mapping[ObjectFrame, object], limit: int
) -> list[FrameToCheck]:
    """List the worst frames, at most one per object and neighbourhood of frames.

    Args:
        suspects: the result of :func:`find_suspects`.
        skipped: objects and frames to skip.
        limit: maximum length of the list.

    Returns:
        The frames, the worst first.
    """
    listed: list[FrameToCheck] = []
    for suspect in suspects:
        if len(listed) == limit:
            break
        if (suspect.object, suspect.frame) not in skipped and not any(
            suspect.object == other.object and abs(suspect.frame - other.frame) < NEIGHBORHOOD
            for other in listed
        ):
            listed.append(suspect)
    return listed


def _almost_equal(
    tracks: Mapping[ObjectFrame, TrackedMask],
    areas: Mapping[ObjectFrame, int],
    size: tuple[int, int],
) -> dict[ObjectFrame, tuple[ObjectId, float]]:
    """Find masks that are almost equal to the mask of an earlier object.

    Returns:
        By object and frame, the earlier object and the IoU of the two masks.
    """
    by_frame: dict[int, list[ObjectId]] = {}
    for o, t in tracks:
        if areas[o, t]:
            by_frame.setdefault(t, []).append(o)
    twins: dict[ObjectFrame, tuple[ObjectId, float]] = {}
    for t, objects in by_frame.items():
        masks = [{"size": list(size), "counts": tracks[o, t].counts} for o in objects]
        blocks = range(0, len(objects) if len(objects) > 1 else 0, MAX_COMPARED)
        for first, second in combinations_with_replacement(blocks, 2):
            rows, columns = (masks[b : b + MAX_COMPARED] for b in (first, second))
            ious = coco_mask.iou(rows, columns, [0] * len(columns))
            for a, b in np.argwhere(ious >= SAME_IOU).tolist():
                if first + a < second + b:
                    pair = objects[first + a], float(ious[a, b])
                    twins.setdefault((objects[second + b], t), pair)
    return twins


def _reasons(
    o: ObjectId,
    t: int,
    track: TrackedMask,
    previous: TrackedMask | None,
    areas: Mapping[ObjectFrame, int],
) -> Iterator[FrameToCheck]:
    """Yield the reasons to check a mask whose severity is high enough."""
    disappears = previous is not None and areas[o, t - 1] > 0 and areas[o, t] == 0
    reasons = [(track.disagreement or 0.0, "forward and backward tracking disagree")]
    if track.score is not None and areas[o, t] > 0:
        # 2 / (1 + exp(score)) is 1 if presence and absence are equally likely.
        score = min(max(track.score, 0.0), 50.0)
        reasons.append((2 / (1 + math.exp(score)), f"low object score ({track.score:.1f})"))
    if disappears:
        reasons.append((0.9, "the object disappears"))
    elif previous is not None and areas[o, t - 1] != areas[o, t]:
        before, now = areas[o, t - 1], areas[o, t]
        change = abs(now - before) / max(now, before)
        text = "appears" if before == 0 else f"changes its area by {(now - before) / before:+.0%}"
        reasons.append((0.9 * change, f"the object {text}"))
    for severity, reason in reasons:
        if severity >= MIN_SEVERITY:
            yield FrameToCheck(t, o, reason, severity)
