"""Compute boxes and sample clicks from masks.

Coordinates are (x, y), in pixel indices of the mask. Labels are those of upstream ``sam2``; see
:mod:`sam2kit.prompts.prompt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

# Shares of the longer side of the box. Near misses teach the model more than distant background;
# within the border, annotators disagree.
NEGATIVE_MARGIN = 0.25
BORDER = 0.05
BOX_LABELS = (2, 3)
BOX_NOISE_LIMIT = 20  # pixels, upstream's
Points = TypeVar("Points", np.ndarray, Tensor)


def rescale_points(points: Points, from_size: Sequence[int], to_size: Sequence[int]) -> Points:
    """Convert points to pixel indices of a resized frame.

    Integer coordinates refer to pixel centres: x becomes (x + 0.5) * W_to / W_from - 0.5.

    Args:
        points: ``[...,2]`` x and y.
        from_size, to_size: rows and columns of the frame before and after resizing.

    Returns:
        ``[...,2]`` float, of the type of ``points``.
    """
    scale = [to_size[1] / from_size[1], to_size[0] / from_size[0]]
    if isinstance(points, Tensor):
        return (points + 0.5) * torch.tensor(scale, device=points.device) - 0.5
    return (points + 0.5) * np.array(scale) - 0.5


def mask_to_box(masks: Tensor) -> Tensor:
    """Compute the tight boxes of masks.

    Args:
        masks: ``[N,H,W]`` bool.

    Returns:
        ``[N,4]`` int64: x0, y0, x1, y1, all inclusive.

    Raises:
        ValueError: a mask is empty.
    """
    columns, rows = masks.any(1).to(torch.uint8), masks.any(2).to(torch.uint8)
    if not columns.any(1).all():
        raise ValueError("an empty mask has no box")
    last_column, last_row = masks.shape[2] - 1, masks.shape[1] - 1
    return torch.stack(
        [
            columns.argmax(1),
            rows.argmax(1),
            last_column - columns.flip(1).argmax(1),
            last_row - rows.flip(1).argmax(1),
        ],
        dim=1,
    )


def box_to_points(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Convert boxes to the two labelled points with which upstream ``sam2`` represents a box.

    Args:
        boxes: ``[N,4]`` x0, y0, x1, y1.

    Returns:
        Points ``[N,2,2]`` float32 and labels ``[N,2]`` int32 (2 and 3).
    """
    labels = torch.tensor(BOX_LABELS, dtype=torch.int32, device=boxes.device)
    return boxes.to(torch.float32).reshape(-1, 2, 2), labels.repeat(len(boxes), 1)


def jitter_box(
    box: Tensor, noise: float, size: tuple[int, int], generator: np.random.Generator
) -> Tensor:
    """Move each side of a box at random, as upstream's ``sample_box_points`` does.

    Args:
        box: ``[4]`` x0, y0, x1, y1.
        noise: maximum movement of a side in either direction, as a share of the width or height of
            the box; it is also limited to :data:`BOX_NOISE_LIMIT` pixels. Uniformly distributed.
        size: rows and columns of the frame, to which the box is clipped.
        generator: draws the movements.

    Returns:
        ``[4]`` float32.
    """
    x0, y0, x1, y1 = box.tolist()
    reach = np.minimum(noise * np.array([x1 - x0, y1 - y0] * 2), BOX_NOISE_LIMIT)
    moved = box.numpy() + generator.uniform(-1, 1, 4) * reach
    last = np.array([size[1], size[0]] * 2) - 1
    return torch.from_numpy(moved.clip(0, last).astype(np.float32))


def mask_center(mask: np.ndarray) -> tuple[int, int]:
    """Find the pixel of a mask that is farthest from the background.

    Unlike the centroid, it is always on the object. Pixels outside the frame count as background,
    as for the centre click of upstream ``sam2`` (Euclidean distance transform of the mask padded
    by one pixel).

    Args:
        mask: ``[H,W]`` bool.

    Returns:
        x, y.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask has no centre")
    padded = np.pad(mask.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x), int(y)


def sample_points(region: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Sample distinct pixels of a region, uniformly.

    Args:
        region: ``[H,W]`` bool.
        count: number of pixels.
        generator: draws the pixels.

    Returns:
        ``[P,2]`` float32 (x, y), with P = ``count``, or all pixels if the region has fewer.
    """
    pixels = np.flatnonzero(region)
    chosen = generator.choice(pixels, size=min(count, len(pixels)), replace=False)
    y, x = np.divmod(chosen, region.shape[1])
    return np.stack([x, y], axis=1).astype(np.float32)


def sample_positive_points(
    mask: np.ndarray, count: int, generator: np.random.Generator, include_center: bool = True
) -> np.ndarray:
    """Sample up to ``count`` distinct pixels of ``mask``.

    Args:
        mask: ``[H,W]`` bool.
        count: number of pixels.
        generator: draws the pixels.
        include_center: start with :func:`mask_center`.

    Returns:
        ``[P,2]`` float32 (x, y).
    """
    if not include_center:
        return sample_points(mask, count, generator)
    x, y = mask_center(mask)
    rest = mask.copy()
    rest[y, x] = False
    center = np.array([[x, y]], dtype=np.float32)
    return np.concatenate([center, sample_points(rest, count - 1, generator)])


def sample_negative_points(
    mask: np.ndarray,
    count: int,
    generator: np.random.Generator,
    kinds: Sequence[str] = ("near",),
    others: np.ndarray | None = None,
) -> np.ndarray:
    """Sample up to ``count`` distinct pixels off ``mask``.

    Args:
        mask: the object, ``[H,W]`` bool.
        count: number of pixels, 0 or more.
        generator: draws the pixels.
        kinds: regions to sample from. If there are several, each pixel draws one of them:

            * ``near``: the box of the mask, extended on all sides by a quarter of its longer side
              (at least one pixel);
            * ``border``: the pixels around the mask within :data:`BORDER` of its longer side (at
              least two pixels), where predictions often exceed the object;
            * ``object``: other objects, with which the object may be confused; ``border`` if there
              are none;
            * ``anywhere``: the whole background.

            If a region has too few pixels, the whole background is used instead.
        others: union of the other objects, ``[H,W]`` bool. None (default): there are none.

    Returns:
        ``[P,2]`` float32 (x, y).
    """
    drawn = list(kinds) * count
    if len(kinds) > 1:
        drawn = generator.choice(np.array(kinds), count).tolist()
    free, points = ~mask, []
    for kind in dict.fromkeys(drawn[:count]):
        region = _region(mask, kind, others) & free
        kind_count = drawn[:count].count(kind)
        has_room = region.sum() >= kind_count
        points.append(sample_points(region if has_room else free, kind_count, generator))
        # Regions overlap: a pixel that is used for one kind is not available for the next.
        x, y = points[-1].astype(int).T
        free[y, x] = False
    return np.concatenate([np.empty((0, 2), np.float32), *points])


def _region(mask: np.ndarray, kind: str, others: np.ndarray | None) -> np.ndarray:
    """Return the region of one of ``NEGATIVE_KINDS``; it may include the mask itself."""
    if kind == "anywhere":
        return np.ones_like(mask)
    if kind == "object" and others is not None and (others & ~mask).any():
        return others
    x0, y0, x1, y1 = mask_to_box(torch.from_numpy(mask)[None])[0].tolist()
    side = max(x1 - x0 + 1, y1 - y0 + 1)
    if kind == "near":
        margin = max(1, round(NEGATIVE_MARGIN * side))
        near = np.zeros_like(mask)
        near[max(0, y0 - margin) : y1 + margin + 1, max(0, x0 - margin) : x1 + margin + 1] = True
        return near
    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance <= max(2, BORDER * side)
