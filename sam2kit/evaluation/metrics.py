"""Score the masks of one object over time: IoU, presence and recovery.

Masks are bool arrays whose last axes are H and W. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RECOVERED_IOU = 0.5  # J above which an object counts as tracked
RECOVERY_FRAMES = 10  # frames within which a tracker must recover an object that re-enters
PRESENCE_COUNTS = ("absent", "called_absent", "rightly_absent", "present")
RECOVERY_COUNTS = ("reentries", "recovered", "recovery_frames_sum")


def iou(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the intersection over union (DAVIS's J) over the last two axes.

    Args:
        prediction, truth: bool ``[...,H,W]``, of equal shape.

    Returns:
        ``[...]`` float64 from 0 to 1; 1 where both masks are empty.

    Raises:
        ValueError: the shapes differ or the masks are not bool.
    """
    check_masks(prediction, truth)
    axes = (-2, -1)
    intersection = np.count_nonzero(prediction & truth, axis=axes)
    union = np.count_nonzero(prediction | truth, axis=axes)
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def outside_void(
    prediction: np.ndarray | None, truth: np.ndarray | None, void: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Clear the void pixels of both masks, so that they do not affect any score.

    Args:
        prediction, truth: bool ``[H,W]``, or None for an empty mask; not both None.
        void: bool ``[H,W]``, pixels that annotators left undecided, or None if there are none.

    Returns:
        Prediction and ground truth, bool ``[H,W]``.

    Raises:
        ValueError: both masks are None.
    """
    template = prediction if truth is None else truth
    if template is None:
        raise ValueError("prediction and truth must not both be None")
    prediction = np.zeros_like(template) if prediction is None else prediction
    truth = np.zeros_like(template) if truth is None else truth
    return (prediction, truth) if void is None else (prediction & ~void, truth & ~void)


def check_masks(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Check that two masks have the same shape and are bool.

    Raises:
        ValueError: the shapes differ or a mask is not bool.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks have different shapes: {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")


def after_first_visible(visible: np.ndarray) -> np.ndarray:
    """Mark the frames after each object's first visible frame.

    If a tracker is prompted on the first visible frame, these are the frames to score.

    Args:
        visible: bool ``[T,O]``.

    Returns:
        bool ``[T,O]``, True on the frames after the first True of each column.
    """
    seen = np.logical_or.accumulate(visible, axis=0)
    return np.concatenate([np.zeros_like(seen[:1]), seen[:-1]])


def copy_first_mask(truth: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Copy each object's first visible mask to all later frames.

    This is a baseline that a tracker should exceed. It scores higher if objects move less.

    Args:
        truth: bool ``[T,O,H,W]``.
        visible: bool ``[T,O]``.

    Returns:
        bool ``[T,O,H,W]``, empty before an object's first visible frame.
    """
    first = truth[visible.argmax(0), np.arange(truth.shape[1])]
    return first[None] & np.logical_or.accumulate(visible, axis=0)[..., None, None]


def mean_tracked_iou(
    prediction: np.ndarray, truth: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, float]:
    """Compute each object's mean IoU over its scored frames, and their mean over objects.

    Args:
        prediction, truth: bool ``[T,O,H,W]``.
        scored: bool ``[T,O]``, False on prompted and on unannotated frames.

    Returns:
        The mean IoU of each object, ``[O]`` float64 from 0 to 1, NaN for objects without scored
        frames, and the mean over the other objects, NaN if there are none.

    Raises:
        ValueError: the shapes of the masks and of ``scored`` do not match.
    """
    values = iou(prediction, truth)
    if scored.shape != values.shape or scored.ndim != 2:
        raise ValueError(f"scored has shape {scored.shape}, but the masks have {truth.shape}")
    counts = scored.sum(0)
    sums = np.where(scored, values, 0.0).sum(0)
    per_object = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    has_score = counts > 0
    return per_object, float(per_object[has_score].mean()) if has_score.any() else float("nan")


def decay(values: np.ndarray) -> float | None:
    """Compute DAVIS's decay: the mean of the first quarter minus the mean of the last quarter.

    Source: Perazzi et al., 2016. As in the official package, adjacent quarters share a frame.

    Args:
        values: ``[N]``, in frame order.

    Returns:
        The decay, positive if scores decrease, or None if there are no values.
    """
    if not len(values):
        return None
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return float(first.mean() - last.mean())


def presence_counts(present: np.ndarray, predicted: np.ndarray) -> dict[str, int]:
    """Count frames in which an object is absent, predicted absent, both, and present.

    Args:
        present: bool ``[N]``, whether the object is visible in the ground truth.
        predicted: bool ``[N]``, whether the predicted mask is not empty.

    Returns:
        Numbers of frames by the names in :data:`PRESENCE_COUNTS`.
    """
    counts = (~present, ~predicted, ~present & ~predicted, present)
    return {k: int(v.sum()) for k, v in zip(PRESENCE_COUNTS, counts, strict=True)}


def recovery_counts(present: np.ndarray, j: np.ndarray, scored: np.ndarray) -> dict[str, int]:
    """Count an object's re-entries, the recovered re-entries, and the frames until recovery.

    A re-entry is a scored frame in which the object is visible, although it was not in the previous
    frame but was in an earlier one. It is recovered if J exceeds 0.5 in one of its first 10 frames,
    or fewer if the object is prompted or disappears again. In long-term tracking, this is called
    re-detection (Lukezic et al., "Now you see me", 2018).

    Args:
        present: bool ``[N]``, whether the object is visible, for annotated frames in order.
        j: ``[N]``, J from 0 to 1.
        scored: bool ``[N]``, whether the frame is scored.

    Returns:
        By the names in :data:`RECOVERY_COUNTS`, the number of re-entries and of recovered
        re-entries, and the sum of frames until recovery (1 if J exceeds 0.5 on the first frame).
    """
    waits = []
    for t in np.flatnonzero(present[1:] & ~present[:-1]) + 1:
        if scored[t] and present[:t].any():
            stay = np.logical_and.accumulate((present & scored)[t : t + RECOVERY_FRAMES])
            recovered = np.flatnonzero(stay & (j[t : t + RECOVERY_FRAMES] > RECOVERED_IOU))
            waits.append(int(recovered[0]) + 1 if len(recovered) else 0)  # 0: not recovered
    counts = (len(waits), sum(w > 0 for w in waits), sum(waits))
    return dict(zip(RECOVERY_COUNTS, counts, strict=True))


def presence_and_recovery(counts: Mapping[str, int]) -> dict[str, float | None]:
    """Compute rates from (sums of) :func:`presence_counts` and :func:`recovery_counts`.

    Returns:
        ``absent_precision`` and ``absent_recall`` of predicting that an object is absent;
        ``false_absence``, the fraction of frames with the object in which it is predicted absent;
        ``recovery``, the fraction of re-entries that are recovered; and ``recovery_frames``, the
        mean number of frames until recovery. A rate is None if its denominator is 0.
    """

    def ratio(part: str, whole: str, subtract: int = 0) -> float | None:
        return (counts[part] - subtract) / counts[whole] if counts[whole] else None

    return {
        "absent_precision": ratio("rightly_absent", "called_absent"),
        "absent_recall": ratio("rightly_absent", "absent"),
        "false_absence": ratio("called_absent", "present", subtract=counts["rightly_absent"]),
        "recovery": ratio("recovered", "reentries"),
        "recovery_frames": ratio("recovery_frames_sum", "recovered"),
    }
