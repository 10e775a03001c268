"""How well predicted masks match true ones; masks are bool and end in the axes H, W. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal, as DAVIS has it
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
    _check(prediction, truth)
    axes = (-2, -1)
    intersection = np.count_nonzero(prediction & truth, axis=axes)
    total = np.count_nonzero(prediction, axis=axes) + np.count_nonzero(truth, axis=axes)
    return np.asarray(intersection), np.asarray(total)


def _check(prediction: np.ndarray, truth: np.ndarray) -> None:
    if prediction.shape != truth.shape:
        raise ValueError(f"masks of different shapes: {prediction.shape} and {truth.shape}")
    if prediction.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks must be bool, got {prediction.dtype} and {truth.dtype}")


def boundary_f(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """Contour accuracy F of one mask: the second of :func:`region_and_boundary`."""
    return region_and_boundary(prediction, truth, tolerance)[1]


def region_and_boundary(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE
) -> tuple[float, float]:
    """Region similarity J and contour accuracy F of one mask (Perazzi et al., CVPR 2016).

    A boundary pixel is one that differs from its right, lower or lower right neighbour (neighbours
    outside the image count as equal). Precision is the share of the prediction's boundary pixels
    that have one of the truth's within a disk of radius ``ceil(tolerance * diagonal)`` pixels,
    recall the share of the truth's with one of the prediction's; F is their harmonic mean. A mask
    without a boundary (empty, or filling the image) has precision and recall of 0 and 1 against one
    with a boundary, so F = 0, and of 1 and 1 against another without.

    J and F equal those of the official ``davis2017`` package bit for bit. They are fast because
    masks are cropped to their union and 64 pixels go into one number.

    Args:
        prediction, truth: bool ``[H,W]``.
        tolerance: a share of the diagonal; from 1 on it is the radius in pixels.

    Raises:
        ValueError: the shapes differ or the masks are not bool ``[H,W]``.
    """
    _check(prediction, truth)
    if truth.ndim != 2:
        raise ValueError(f"one mask [H,W] at a time, got the shape {truth.shape}")
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*truth.shape))
    x, y, width, height = cv2.boundingRect((prediction | truth).view(np.uint8))
    if width == 0:
        return 1.0, 1.0
    # One more row and column all round: there the masks differ from their neighbours.
    crop = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
    rows, columns = truth[crop].shape
    masks = np.zeros((2, rows, (columns + radius + 63) // 64 * 8), np.uint8)
    for packed, mask in zip(masks, (prediction, truth), strict=True):
        packed[:, : (columns + 7) // 8] = np.packbits(mask[crop], axis=1, bitorder="little")
    words = masks.view("<u8")
    union = _count(words[0] | words[1])
    edges = _boundaries(words, columns, radius)
    (precision, recall), has_boundary = _matched(edges, radius)
    if not all(has_boundary):
        return _count(words[0] & words[1]) / union, float(not any(has_boundary))
    total = precision + recall
    return (
        _count(words[0] & words[1]) / union,
        2 * precision * recall / total if total > 0 else 0.0,
    )


def _boundaries(masks: np.ndarray, columns: int, padding: int) -> np.ndarray:
    """Boundary pixels of packed masks ``[2,R,N]``, with ``padding`` empty rows below each mask."""
    right = masks >> 1
    right[..., :-1] |= masks[..., 1:] << 63
    word, bit = divmod(columns - 1, 64)
    right[..., word] |= masks[..., word] & np.uint64(1 << bit)  # the last column is its own
    edges = np.zeros((2, masks.shape[1] + padding, masks.shape[2]), masks.dtype)
    inner = edges[:, : masks.shape[1]]
    np.bitwise_xor(masks, right, out=inner)
    inner[:, :-1] |= masks[:, :-1] ^ masks[:, 1:]
    inner[:, :-1] |= masks[:, :-1] ^ right[:, 1:]
    return edges


def _matched(edges: np.ndarray, radius: int) -> tuple[list[float], list[bool]]:
    """For each of two packed pictures: the share of its pixels that lie near one of the other's,
    and whether it has any."""
    near = _dilate(edges, radius)
    counts = [_count(edge) for edge in edges]
    matched = [_count(edges[k] & near[1 - k]) for k in (0, 1)]
    return [m / max(n, 1) for m, n in zip(matched, counts, strict=True)], [n > 0 for n in counts]


def _dilate(pictures: np.ndarray, radius: int) -> np.ndarray:
    """Packed pictures ``[2,R,N]`` widened by a disk, which is a stack of lines.

    The lines are laid from the outermost, shortest pair inwards, growing on the way. What is
    shifted out of a row or picture falls into the empty columns and rows beside it.
    """
    line, half = pictures.reshape(-1), 0
    out, spare = np.zeros_like(line), np.empty_like(line)
    for offset in range(radius, -1, -1):
        target = math.isqrt(radius**2 - offset**2)
        while half < target:
            step = min(2 * half + 1, target - half, 63)
            line, half = _widen(line, step, spare), half + step
        shift = offset * pictures.shape[2]
        out[shift:] |= line[: len(line) - shift]
        out[: len(line) - shift] |= line[shift:]
    return out.reshape(pictures.shape)


def _widen(line: np.ndarray, step: int, spare: np.ndarray) -> np.ndarray:
    """``line`` together with itself moved by ``step`` (1 to 63) pixels to the left and right."""
    out = line << step
    out |= line
    out |= np.right_shift(line, step, out=spare)
    out[1:] |= np.right_shift(line[:-1], 64 - step, out=spare[1:])
    out[:-1] |= np.left_shift(line[1:], 64 - step, out=spare[1:])
    return out


def _count(words: np.ndarray) -> int:
    """How many bits are set."""
    return int(cv2.norm(words.reshape(-1).view(np.uint8), cv2.NORM_HAMMING))


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
