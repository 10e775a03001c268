"""Boxes and clicks drawn from a mask.

Coordinates are x before y, in pixel indices of the mask; labels are upstream's, as in
:mod:`sam2kit.prompts.prompt`, which makes prompts of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

NEGATIVE_MARGIN = 0.25  # of the box's longer side: near misses teach more than far background
BORDER = 0.05  # of the box's longer side: about where annotators disagree
BOX_LABELS = (2, 3)
BOX_NOISE_LIMIT = 20  # pixels, upstream's


def mask_to_box(masks: Tensor) -> Tensor:
    """The tight boxes of masks ``[N,H,W]`` bool: ``[N,4]`` int64 x0, y0, x1, y1, all inclusive.

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
    """Boxes ``[N,4]`` as the two points that upstream takes for a box.

    Returns:
        points ``[N,2,2]`` float32 and labels ``[N,2]`` int32 (2 and 3).
    """
    labels = torch.tensor(BOX_LABELS, dtype=torch.int32, device=boxes.device)
    return boxes.to(torch.float32).reshape(-1, 2, 2), labels.repeat(len(boxes), 1)


def jitter_box(
    box: Tensor, noise: float, size: tuple[int, int], generator: np.random.Generator
) -> Tensor:
    """Move each side of a box at random, as upstream's ``sample_box_points`` does.

    Args:
        box: ``[4]`` x0, y0, x1, y1.
        noise: a side moves by at most this share of the box's width or height and at most by
            :data:`BOX_NOISE_LIMIT` pixels, in either direction, uniformly.
        size: rows and columns of the frame, in which the box stays.

    Returns:
        ``[4]`` float32.
    """
    x0, y0, x1, y1 = box.tolist()
    reach = np.minimum(noise * np.array([x1 - x0, y1 - y0] * 2), BOX_NOISE_LIMIT)
    moved = box.numpy() + generator.uniform(-1, 1, 4) * reach
    last = np.array([size[1], size[0]] * 2) - 1
    return torch.from_numpy(moved.clip(0, last).astype(np.float32))


def mask_center(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of ``mask`` (bool ``[H,W]``) that is farthest from everything outside.

    Unlike the centroid it always lies on the object. The frame's border counts as outside, as for
    upstream's centre click (Euclidean distance transform of the mask padded by one pixel).

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
    """Different pixels of ``region`` (bool ``[H,W]``), each set of them equally likely.

    Returns:
        ``[P,2]`` float32, x and y, with P = ``count``, or all pixels if there are fewer.
    """
    pixels = np.flatnonzero(region)
    chosen = generator.choice(pixels, size=min(count, len(pixels)), replace=False)
    y, x = np.divmod(chosen, region.shape[1])
    return np.stack([x, y], axis=1).astype(np.float32)


def sample_positive_points(
    mask: np.ndarray, count: int, generator: np.random.Generator, include_center: bool = True
) -> np.ndarray:
    """Up to ``count`` different pixels on ``mask``, its centre first if asked for: ``[P,2]``."""
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
    """Up to ``count`` different pixels off ``mask``: ``[P,2]``.

    Args:
        mask: the object, bool ``[H,W]``.
        count: 0 or more.
        generator: where they fall.
        kinds: from which region; each pixel draws one of these, if there are several.

            * ``near``: the mask's box grown on all sides by a quarter of its longer side (at least
              one pixel);
            * ``border``: within :data:`BORDER` of the mask's longer side (at least two pixels) of
              it, where an object is easily taken for larger than it is;
            * ``object``: on other objects, with which it is easily confused; as ``border`` where
              there are none;
            * ``anywhere``: off the mask.

            A region without room for its pixels is left for the whole background.
        others: the other objects, bool ``[H,W]``; None: there are none.
    """
    drawn = list(kinds) * count
    if len(kinds) > 1:
        drawn = generator.choice(np.array(kinds), count).tolist()
    free, points = ~mask, []
    for kind in dict.fromkeys(drawn[:count]):
        region = _around(mask, kind, others) & free
        wanted = drawn[:count].count(kind)
        points.append(sample_points(region if region.sum() >= wanted else free, wanted, generator))
        x, y = points[-1].astype(int).T
        free[y, x] = False
    return np.concatenate([np.empty((0, 2), np.float32), *points])


def _around(mask: np.ndarray, kind: str, others: np.ndarray | None) -> np.ndarray:
    """The region of one of :data:`sam2kit.config.schema.NEGATIVE_KINDS`, the mask itself with
    it."""
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
    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= max(2, BORDER * side)
