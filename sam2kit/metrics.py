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
    masks are cropped to their union and four pixels of both go into one byte.

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
    crop = _around(prediction | truth)
    if crop is None:
        return 1.0, 1.0
    both: np.ndarray = truth[crop].astype(np.uint8)
    both += both  # NumPy adds bytes several times as fast as it shifts them
    both |= prediction[crop].view(np.uint8)
    j = np.count_nonzero(both == 3) / np.count_nonzero(both)
    if crop[0].stop > truth.shape[0] or crop[1].stop > truth.shape[1]:
        both = cv2.copyMakeBorder(both, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    edges = _boundaries(both, max(radius, 1))
    counts = _counts(edges)
    if not all(counts):
        return j, float(not any(counts))
    near = _dilate(edges, radius)
    matched = _counts(edges & _swap(near))
    precision, recall = matched[0] / counts[0], matched[1] / counts[1]
    total = precision + recall
    return j, 2 * precision * recall / total if total > 0 else 0.0


def _around(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels of ``[H,W]``, and one more on each side; None: it is empty."""
    pixels, width = mask.tobytes(), mask.shape[1]  # bytes find the first and last the fastest
    first = pixels.find(1)
    if first < 0:
        return None
    rows = slice(max(first // width - 1, 0), pixels.rfind(1) // width + 2)
    filled = np.logical_or.reduce(mask[rows])
    left, right = int(filled.argmax()), width - int(filled[::-1].argmax())
    return rows, slice(max(left - 1, 0), right + 1)


# Four blocks of H rows, one below the other, go into the four pairs of bits of one picture [H,W]:
# bit 2k of byte (y, x) is pixel (k H + y, x) of the prediction, bit 2k + 1 that of the truth. So to
# move a picture is to slice it, and one operation works on eight pixels a byte.
PREDICTION, TRUTH = np.uint8(0x55), np.uint8(0xAA)


def _boundaries(both: np.ndarray, padding: int) -> np.ndarray:
    """Boundary pixels, packed ``[H,W]``, with ``padding`` empty columns or more.

    Args:
        both: ``[R,C]`` uint8, bit 0 the prediction and bit 1 the truth. Its last row and column are
            no boundaries: they are empty, or copies of those at the image's border.
    """
    rows, columns = both.shape
    height, width = max(-(-rows // 4), padding), (columns + padding + 7) // 8 * 8
    packed = np.zeros((height + 1, width), np.uint8)
    for k in reversed(range(4)):
        block = both[k * height : (k + 1) * height]
        packed += packed
        packed += packed
        packed[: len(block), :columns] |= block
    packed[height] = packed[0] >> 2  # below a block comes the next
    pixels = packed.reshape(-1)
    edges = np.zeros_like(packed[:height])
    inner, here = edges.reshape(-1)[:-1], pixels[: -width - 1]
    np.bitwise_xor(here, pixels[1:-width], out=inner)
    inner |= here ^ pixels[width:-1]
    inner |= here ^ pixels[width + 1 :]
    edges[:, columns - 1 :] = 0
    k, y = divmod(rows - 1, height)
    edges[y] &= np.uint8(255 - (3 << 2 * k))
    return edges


def _dilate(picture: np.ndarray, radius: int) -> np.ndarray:
    """A packed picture widened by a disk, which is a stack of lines: short ones first."""
    height, width = picture.shape
    above, below = picture[height - radius :] << 2, picture[:radius] >> 2
    lines, length = np.concatenate([above, picture, below]).reshape(-1), 1
    out = np.zeros_like(lines)
    for offset in range(radius, -1, -1):
        half = math.isqrt(radius**2 - offset**2)
        while length < 2 * half + 1:  # a line from each pixel to the right
            step = min(length, 2 * half + 1 - length)
            lines[:-step] |= lines[step:]
            length += step
        for start in {offset * width - half, -offset * width - half}:
            if start > 0:
                out[:-start] |= lines[start:]
            else:
                out[-start:] |= lines[: len(lines) + start]
    return out.reshape(-1, width)[radius : radius + height]


def _swap(packed: np.ndarray) -> np.ndarray:
    """A packed picture with prediction and truth in each other's place."""
    words = packed.reshape(-1).view(np.uint64)
    swapped = (words & np.uint64(0x5555555555555555)) << 1
    swapped |= (words & np.uint64(0xAAAAAAAAAAAAAAAA)) >> 1
    return swapped.view(np.uint8).reshape(packed.shape)


def _counts(packed: np.ndarray) -> tuple[float, float]:
    """How many pixels of the prediction and of the truth are set."""
    return (
        cv2.norm(packed & PREDICTION, cv2.NORM_HAMMING),
        cv2.norm(packed & TRUTH, cv2.NORM_HAMMING),
    )


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
