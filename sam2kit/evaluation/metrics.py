"""Score the masks of one object over time: IoU, presence and recovery.

Masks are bool and end in the axes H, W. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RECOVERED_IOU = 0.5  # J above which an object counts as tracked
RECOVERY_FRAMES = 10  # frames within which a tracker must recover an object that re-enters
PRESENCE_COUNTS = ("absent", "called_absent", "rightly_absent", "present")
RECOVERY_COUNTS = ("reentries", "recovered", "recovery_frames_sum")


def iou(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Compute the intersection over union (J of DAVIS) over the last two axes.

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
        prediction, truth: bool ``[H,W]``. None: the mask is empty; not allowed for both.
        void: bool ``[H,W]``, pixels that the annotators left undecided. None: no void pixels.

    Returns:
        Prediction and ground truth, bool ``[H,W]``.

    Raises:
        ValueError: both masks are None.
    """
    template = prediction if truth is None else truth
    if template is None:
        raise ValueError("outside_void needs a prediction or a truth")
    prediction = np.zeros_like(template) if prediction is None else prediction
    truth = np.zeros_like(template) if truth is None else truth
    return (prediction, truth) if void is None else (prediction & ~void, truth & ~void)


def check_masks(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Check that two masks have the same shape and the type bool.

    Raises:
        ValueError: the shapes differ or a mask is not bool.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"masks have different shapes: {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")


def after_first_visible(visible: np.ndarray) -> np.ndarray:
    """Mark the frames after each object's first visible frame.

    These are the frames on which a tracker is scored that was prompted on the first visible frame.

    Args:
        visible: bool ``[T,O]``.

    Returns:
        bool ``[T,O]``, True on the frames after the first True of each column.
    """
    seen = np.logical_or.accumulate(visible, axis=0)
    return np.concatenate([np.zeros_like(seen[:1]), seen[:-1]])


def copy_first_mask(truth: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Repeat each object's first visible mask on all later frames.

    This is the baseline that a tracker has to beat; the less the objects move, the higher its
    score.

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
    """Compute each object's mean IoU over its scored frames, and the mean over objects.

    Args:
        prediction, truth: bool ``[T,O,H,W]``.
        scored: bool ``[T,O]``, False on prompted and on unannotated frames.

    Returns:
        Two values from 0 to 1: the mean IoU of each object, ``[O]`` float64, NaN for an object
        without scored frames; and the mean over the objects that have a value, NaN if none has.

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
    """Subtract the mean of the last quarter of the values from the mean of the first quarter.

    This is the decay that DAVIS reports (Perazzi et al., 2016). As in the official package,
    neighbouring quarters share the frame at their border.

    Args:
        values: ``[N]``, in the order of the frames.

    Returns:
        The decay, positive if the scores fall. None: there are no values.
    """
    if not len(values):
        return None
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return float(first.mean() - last.mean())


def presence_counts(present: np.ndarray, predicted: np.ndarray) -> dict[str, int]:
    """Count the frames on which an object is absent, predicted absent, both, and present.

    Args:
        present: bool ``[N]``, the ground truth shows the object.
        predicted: bool ``[N]``, the prediction shows the object.

    Returns:
        Numbers of frames by the names in :data:`PRESENCE_COUNTS`.
    """
    counts = (~present, ~predicted, ~present & ~predicted, present)
    return {k: int(v.sum()) for k, v in zip(PRESENCE_COUNTS, counts, strict=True)}


def recovery_counts(present: np.ndarray, j: np.ndarray, scored: np.ndarray) -> dict[str, int]:
    """Count an object's re-entries, how many the tracker recovered, and the frames that this took.

    A re-entry is a scored frame that shows the object, where the previous frame does not and an
    earlier one does. It is recovered if J exceeds 0.5 on one of its first 10 frames. These 10
    frames end early when the object is prompted or leaves again. (Long-term tracking calls this
    re-detection: Lukezic et al., "Now you see me", 2018, count the frames until a target is found
    again.)

    Args:
        present: bool ``[N]``, the ground truth shows the object; annotated frames only, in order.
        j: ``[N]``, 0 to 1.
        scored: bool ``[N]``.

    Returns:
        By the names in :data:`RECOVERY_COUNTS`: numbers of re-entries and of recovered ones, and
        the sum of frames until recovery (1 if J exceeds 0.5 on the first frame).
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
    """Compute rates from :func:`presence_counts` and :func:`recovery_counts`, or from their sums.

    Returns:
        ``absent_precision`` and ``absent_recall``: how well the tracker predicts that an object is
        absent. ``false_absence``: the fraction of frames with the object on which it is predicted
        absent. ``recovery``: the fraction of re-entries that are recovered. ``recovery_frames``:
        the mean number of frames until recovery. None where the denominator is 0.
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
