"""Compute region similarity J and boundary accuracy F of a mask.

Masks are bool arrays whose last axes are H and W. This module does not import torch.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from sam2kit.evaluation.metrics import check_masks

BOUNDARY_TOLERANCE = 0.008  # fraction of the image diagonal, as in DAVIS

# Masks are divided into four blocks of H rows. Each byte of a packed image [H,W] contains one pixel
# of each block for both masks: bit 2k of byte (y, x) is pixel (k H + y, x) of the prediction, and
# bit 2k + 1 is the same pixel of the ground truth. Images are shifted by slicing, and a byte
# operation processes four pixels of both masks.
PREDICTION, TRUTH = np.uint8(0x55), np.uint8(0xAA)


def region_and_boundary(
    prediction: np.ndarray, truth: np.ndarray, tolerance: float = BOUNDARY_TOLERANCE
) -> tuple[float, float]:
    """Compute region similarity J and contour accuracy F of one mask (Perazzi et al., CVPR 2016).

    A boundary pixel differs from its right, lower or lower right neighbour; neighbours outside the
    image count as equal. Precision is the fraction of the prediction's boundary pixels with a
    ground-truth boundary pixel within ``ceil(tolerance * diagonal)`` pixels. Recall is the same
    with exchanged masks, and F is their harmonic mean. If only one mask has a boundary (the other
    is empty or fills the image), F is 0; if none has a boundary, F is 1.

    J and F are bitwise equal to the values of the official ``davis2017`` package, but faster to
    compute, because masks are cropped to their union and each byte contains four pixels of both.

    Args:
        prediction, truth: bool ``[H,W]``.
        tolerance: below 1, a fraction of the image diagonal; otherwise the radius in pixels.

    Returns:
        J and F, each from 0 to 1; 1 where both masks are empty.

    Raises:
        ValueError: the shapes differ or the masks are not bool ``[H,W]``.
    """
    check_masks(prediction, truth)
    if truth.ndim != 2:
        raise ValueError(f"expected one mask [H,W], got shape {truth.shape}")
    radius = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(*truth.shape))
    # Boundaries can only be in the union of the masks and adjacent pixels.
    crop = _bounding_slices(prediction | truth)
    if crop is None:
        return 1.0, 1.0
    both: np.ndarray = truth[crop].astype(np.uint8)
    both += both  # left shift by 1; NumPy adds bytes several times faster than it shifts them
    both |= prediction[crop].view(np.uint8)
    j = np.count_nonzero(both == 3) / np.count_nonzero(both)
    # Repeat the last row and column, so that there is no boundary along the image border.
    if crop[0].stop > truth.shape[0] or crop[1].stop > truth.shape[1]:
        both = cv2.copyMakeBorder(both, 0, 1, 0, 1, cv2.BORDER_REPLICATE)
    edges = _boundaries(both, max(radius, 1))
    counts = _counts(edges)
    if not all(counts):
        return j, float(not any(counts))
    # A boundary pixel matches if the other mask has a boundary pixel within the radius.
    dilated = _dilate(edges, radius)
    matched = _counts(edges & _swap(dilated))
    precision, recall = matched[0] / counts[0], matched[1] / counts[1]
    total = precision + recall
    return j, 2 * precision * recall / total if total > 0 else 0.0


def _bounding_slices(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Return the slices of a mask's bounding box, extended by one pixel on each side.

    Args:
        mask: bool ``[H,W]``.

    Returns:
        The slices, which may end one past the image, or None if the mask is empty.
    """
    # bytes.find is the fastest way to find the first and last set pixel.
    pixels, width = mask.tobytes(), mask.shape[1]
    first = pixels.find(1)
    if first < 0:
        return None
    rows = slice(max(first // width - 1, 0), pixels.rfind(1) // width + 2)
    filled = np.logical_or.reduce(mask[rows])
    left, right = int(filled.argmax()), width - int(filled[::-1].argmax())
    return rows, slice(max(left - 1, 0), right + 1)


def _boundaries(both: np.ndarray, padding: int) -> np.ndarray:
    """Return the boundary pixels of both masks as a packed image.

    Args:
        both: ``[R,C]`` uint8; bit 0 is the prediction and bit 1 the ground truth. The last row and
            column have no boundary: they are empty or repeat the image border.
        padding: minimum number of empty columns on the right, and minimum height of a block.

    Returns:
        Packed ``[H,W]`` uint8, W a multiple of 8.
    """
    rows, columns = both.shape
    height, width = max(-(-rows // 4), padding), (columns + padding + 7) // 8 * 8
    # Pack the blocks from last to first; doubling twice shifts the previous ones by two bits.
    packed = np.zeros((height + 1, width), np.uint8)
    for k in reversed(range(4)):
        block = both[k * height : (k + 1) * height]
        packed += packed
        packed += packed
        packed[: len(block), :columns] |= block
    packed[height] = packed[0] >> 2  # the row below a block is the first row of the next block
    # Compare each pixel with its right, lower and lower right neighbour, on flat arrays.
    pixels = packed.reshape(-1)
    edges = np.zeros_like(packed[:height])
    inner, current = edges.reshape(-1)[:-1], pixels[: -width - 1]
    np.bitwise_xor(current, pixels[1:-width], out=inner)
    inner |= current ^ pixels[width:-1]
    inner |= current ^ pixels[width + 1 :]
    # Clear the last column and row of ``both``, which have no neighbours.
    edges[:, columns - 1 :] = 0
    k, y = divmod(rows - 1, height)
    edges[y] &= np.uint8(255 - (3 << 2 * k))
    return edges


def _dilate(packed: np.ndarray, radius: int) -> np.ndarray:
    """Dilate a packed image by a disk of ``radius`` pixels.

    A disk is a stack of horizontal lines. Process rows from the shortest to the longest line, so
    that each line extends the previous one.
    """
    height, width = packed.shape
    above, below = packed[height - radius :] << 2, packed[:radius] >> 2
    lines, length = np.concatenate([above, packed, below]).reshape(-1), 1
    out = np.zeros_like(lines)
    for offset in range(radius, -1, -1):
        half = math.isqrt(radius**2 - offset**2)
        while length < 2 * half + 1:  # extend lines to the right
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
    """Exchange prediction and ground truth in a packed image."""
    words = packed.reshape(-1).view(np.uint64)
    swapped = (words & np.uint64(0x5555555555555555)) << 1
    swapped |= (words & np.uint64(0xAAAAAAAAAAAAAAAA)) >> 1
    return swapped.view(np.uint8).reshape(packed.shape)


def _counts(packed: np.ndarray) -> tuple[float, float]:
    """Count the set pixels of the prediction and of the ground truth."""
    return (
        cv2.norm(packed & PREDICTION, cv2.NORM_HAMMING),
        cv2.norm(packed & TRUTH, cv2.NORM_HAMMING),
    )
