"""Score volume segmentations: Dice, and the 95th percentile of surface distances in mm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return 2 |A and B| / (|A| + |B|) of two bool arrays; 1 if both are empty."""
    total = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / total if total else 1.0


def hd95(one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> float | None:
    """Return the 95th percentile of the distances between two surfaces, as defined by MedPy.

    Surface voxels have a face-adjacent neighbour outside of the object. The percentile is taken
    over the distances of all voxels of both surfaces to the other surface.

    Args:
        one, other: bool arrays of the same shape.
        spacing: distance of neighbouring voxels along each axis, in mm.

    Returns:
        Distance in mm, or None if one of the objects is empty.
    """
    if not one.any() or not other.any():
        return None
    from scipy.ndimage import distance_transform_edt  # only volumes need it

    box = _bounding_box(one | other)
    surfaces = [_surface(mask[box]) for mask in (one, other)]
    distances = [
        distance_transform_edt(~there, sampling=spacing)[here]
        for here, there in (surfaces, surfaces[::-1])
    ]
    return float(np.percentile(np.concatenate(distances), 95))


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the bounding box of a non-empty mask."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        indices = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(indices[0]), int(indices[-1]) + 1))
    return tuple(box)


def _surface(mask: np.ndarray) -> np.ndarray:
    from scipy.ndimage import binary_erosion

    return mask & ~binary_erosion(mask)
