"""Score the masks of one object over time: IoU, presence and recovery.

Masks are bool and end in the axes H, W. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

RECOVERED_IOU = 0.5
RECOVERY_FRAMES = 10
PRESENCE_COUNTS = ("absent", "called_absent", "rightly_absent", "present")
RECOVERY_COUNTS = ("reentries", "recovered", "recovery_frames_sum")


def iou(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union (the region similarity J of DAVIS) over the last two axes.

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
    """Return both masks without void pixels, which count neither for nor against a prediction.

    Args:
        prediction, truth: bool ``[H,W]``; None: empty. One of them must be given.
        void: bool ``[H,W]``, pixels that the annotators did not decide on; None: none.
    """
    given = prediction if truth is None else truth
    if given is None:
        raise ValueError("outside_void needs a prediction or a truth")
    prediction = np.zeros_like(given) if prediction is None else prediction
    truth = np.zeros_like(given) if truth is None else truth
    return (prediction, truth) if void is None else (prediction & ~void, truth & ~void)


def check_masks(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Raise ValueError where the shapes differ or the masks are not bool."""
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of different shapes: {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")


def after_first_visible(visible: np.ndarray) -> np.ndarray:
    """The frames on which a tracker that was prompted on an object's first frame is scored.

    Args:
        visible: bool ``[T,O]``.

    Returns:
        bool ``[T,O]``, True on the frames after the first True of each column.
    """
    seen = np.logical_or.accumulate(visible, axis=0)
    return np.concatenate([np.zeros_like(seen[:1]), seen[:-1]])


def copy_first_mask(truth: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """What a tracker that never moves gives: the first visible mask of each object on every frame.

    Its score says how little the objects move, and is what a tracker has to beat.

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
    """Mean IoU of each object over its scored frames, and the mean of these over the objects.

    Args:
        prediction, truth: bool ``[T,O,H,W]``.
        scored: bool ``[T,O]``; leave out the prompted frame and frames without annotation.

    Returns:
        ``[O]`` float64, NaN for an object without scored frames, and the mean over the others,
        NaN if there are none.

    Raises:
        ValueError: shapes that disagree.
    """
    values = iou(prediction, truth)
    if scored.shape != values.shape or scored.ndim != 2:
        raise ValueError(f"scored has shape {scored.shape}, the masks {truth.shape}")
    counts = scored.sum(0)
    sums = np.where(scored, values, 0.0).sum(0)
    per_object = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    has_score = counts > 0
    return per_object, float(per_object[has_score].mean()) if has_score.any() else float("nan")


def decay(values: np.ndarray) -> float | None:
    """The mean of the first quarter of ``[N]`` values less that of the last; None of no values.

    As DAVIS reports it (Perazzi et al., 2016); neighbouring quarters share their border frame, as
    in the official package.
    """
    if not len(values):
        return None
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return float(first.mean() - last.mean())


def presence_counts(present: np.ndarray, found: np.ndarray) -> dict[str, int]:
    """On how many frames an object was absent, was called absent, rightly so, and was present.

    Args:
        present, found: bool ``[N]``: truth and prediction show it.
    """
    counts = (~present, ~found, ~present & ~found, present)
    return {k: int(v.sum()) for k, v in zip(PRESENCE_COUNTS, counts, strict=True)}


def recovery_counts(present: np.ndarray, j: np.ndarray, scored: np.ndarray) -> dict[str, int]:
    """How often an object came back, was found again, and after how many frames in sum.

    A re-entry is a scored frame with the object, after a frame without it, after one with it. It is
    recovered when J passes 0.5 on one of its first 10 frames, after 1 to 10 frames; a prompt or the
    object's leaving again ends them early. (Long-term tracking calls this re-detection: Lukezic et
    al., "Now you see me", 2018, count the frames until a target is found again.)

    Args:
        present: bool ``[N]``, on the annotated frames in order.
        j: ``[N]``.
        scored: bool ``[N]``.
    """
    waits = []
    for t in np.flatnonzero(present[1:] & ~present[:-1]) + 1:
        if scored[t] and present[:t].any():
            stay = np.logical_and.accumulate((present & scored)[t : t + RECOVERY_FRAMES])
            again = np.flatnonzero(stay & (j[t : t + RECOVERY_FRAMES] > RECOVERED_IOU))
            waits.append(int(again[0]) + 1 if len(again) else 0)
    counts = (len(waits), sum(w > 0 for w in waits), sum(waits))
    return dict(zip(RECOVERY_COUNTS, counts, strict=True))


def presence_and_recovery(counts: Mapping[str, int]) -> dict[str, float | None]:
    """The rates that follow from the counts of the two functions above, or from sums of them.

    Returns:
        Precision and recall of "absent", the share of frames with the object that are called
        absent, the share of re-entries that are recovered, and the mean number of frames that took.
        None where there is nothing to divide by.
    """

    def ratio(part: str, whole: str, less: int = 0) -> float | None:
        return (counts[part] - less) / counts[whole] if counts[whole] else None

    return {
        "absent_precision": ratio("rightly_absent", "called_absent"),
        "absent_recall": ratio("rightly_absent", "absent"),
        "false_absence": ratio("called_absent", "present", less=counts["rightly_absent"]),
        "recovery": ratio("recovered", "reentries"),
        "recovery_frames": ratio("recovery_frames_sum", "recovered"),
    }
