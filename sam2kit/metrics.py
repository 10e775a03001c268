"""How well predicted masks match true ones. NumPy only; masks are bool and end in the axes H, W."""

from __future__ import annotations

import numpy as np


def iou(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union (the region similarity J of DAVIS) over the last two axes.

    Args:
        prediction, truth: bool ``[...,H,W]``, of equal shape.

    Returns:
        ``[...]`` float64 from 0 to 1; 1 where both masks are empty.

    Raises:
        ValueError: the shapes differ or the masks are not bool.
    """
    intersection, total = _overlap(prediction, truth)
    union = total - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def dice(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Twice the intersection over the sum of both areas, over the last two axes.

    Arguments, result and errors as for :func:`iou`.
    """
    intersection, total = _overlap(prediction, truth)
    return np.where(total > 0, 2 * intersection / np.maximum(total, 1), 1.0)


def _overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both masks, and the sum of their areas."""
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of different shapes: {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")
    axes = (-2, -1)
    intersection = np.count_nonzero(prediction & truth, axis=axes)
    total = np.count_nonzero(prediction, axis=axes) + np.count_nonzero(truth, axis=axes)
    return np.asarray(intersection), np.asarray(total)


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
