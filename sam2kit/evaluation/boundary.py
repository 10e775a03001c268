"""Score one mask against another: region similarity J and boundary accuracy F.

Masks are bool and end in the axes H, W. This module does not import torch.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from sam2kit.evaluation.metrics import check_masks

BOUNDARY_TOLERANCE = 0.008  # of the image's diagonal, as DAVIS has it

# Four blocks of H rows, one below the other, go into the four pairs of bits of one picture [H,W]:
# bit 2k of byte (y, x) is pixel (k H + y, x) of the prediction, bit 2k + 1 the truth's pixel. So to
# move a picture is to slice it, and one operation works on four pixels of both masks per byte.
PREDICTION, TRUTH = np.uint8(0x55), np.uint8(0xAA)


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
    check_masks(prediction, truth)
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
