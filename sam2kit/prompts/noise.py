"""Prompts that are off by a little, as those that people give are.

Every error is a uniform draw times a level, so one seed at two levels gives the same errors, larger
and smaller: curves over the level compare like with like.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sam2kit.config.schema import NOISE_KINDS
from sam2kit.prompts.geometry import mask_center
from sam2kit.utils.errors import ConfigError


@dataclass(frozen=True)
class PromptNoise:
    """Errors of prompts, by their size.

    Attributes:
        level: the largest error as a share of the object's size: of its box's width and height for
            boxes, of the square root of its area for masks and points. 0: no errors.
        kinds: ``shift`` (boxes and masks), ``scale`` (boxes), ``dilate`` and ``erode`` (masks; of
            both, one is drawn), ``jitter`` (points).

    Raises:
        ConfigError: a negative level, or an unknown kind.
    """

    level: float = 0.0
    kinds: tuple[str, ...] = NOISE_KINDS

    def __post_init__(self) -> None:
        if self.level < 0 or not set(self.kinds) <= set(NOISE_KINDS):
            raise ConfigError(
                "prompt noise takes a level of at least 0 and any of the kinds "
                f"{', '.join(NOISE_KINDS)}, got {self.level} and {list(self.kinds)}"
            )

    def box(
        self, box: np.ndarray, size: tuple[int, int], generator: np.random.Generator
    ) -> np.ndarray:
        """``box`` ``[4]`` (x0, y0, x1, y1) with its centre and its sides changed: ``[4]`` float32.

        It stays within the frame of ``size`` (rows, columns).
        """
        shift, scale = generator.uniform(-self.level, self.level, (2, 2))
        corners = box.reshape(2, 2).astype(np.float64)
        center, sides = corners.mean(0), corners[1] - corners[0]
        if "shift" in self.kinds:
            center = center + shift * sides
        if "scale" in self.kinds:
            sides = np.maximum(sides * (1 + scale), 0)
        moved = np.stack([center - sides / 2, center + sides / 2])
        return _within(moved, size).reshape(4).astype(np.float32)

    def points(
        self, points: np.ndarray, mask: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Clicks ``[P,2]`` (x, y) on the object ``mask``, moved within the frame: float32."""
        offsets = generator.uniform(-1, 1, points.shape) * self._reach(mask)
        moved = points + offsets if "jitter" in self.kinds else points
        return _within(moved, mask.shape).astype(np.float32)

    def mask(self, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """``mask`` (bool ``[H,W]``, not empty) grown or shrunk, and moved; never empty."""
        x, y, radius = generator.uniform(-1, 1, 3) * self._reach(mask)
        signs = [s for s, kind in ((1, "dilate"), (-1, "erode")) if kind in self.kinds]
        if len(signs) == 1:
            radius = signs[0] * abs(radius)
        if signs:
            mask = grow_mask(mask, radius)
        return move_mask(mask, round(x), round(y)) if "shift" in self.kinds else mask

    def _reach(self, mask: np.ndarray) -> float:
        return self.level * float(np.sqrt(np.count_nonzero(mask)))


def grow_mask(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate (``radius`` above 0) or erode (below) by a disc, in pixels.

    What lies outside the frame counts as unknown: an object is not eroded from the frame's border.
    Erosion stops before it takes the object's innermost pixels.

    Args:
        mask: bool ``[H,W]``, not empty.
    """
    if radius >= 0:
        return _distance_to_zero(~mask) <= radius
    inside = _distance_to_zero(mask)
    return mask & (inside > min(-radius, inside.max() * (1 - 1e-6)))


def move_mask(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """``mask`` (bool ``[H,W]``, not empty) shifted, as far as its centre stays within the frame."""
    (rows, columns), (center_x, center_y) = mask.shape, mask_center(mask)
    x = int(np.clip(x, -center_x, columns - 1 - center_x))
    y = int(np.clip(y, -center_y, rows - 1 - center_y))
    moved = np.zeros_like(mask)
    moved[max(y, 0) : rows + min(y, 0), max(x, 0) : columns + min(x, 0)] = mask[
        max(-y, 0) : rows + min(-y, 0), max(-x, 0) : columns + min(-x, 0)
    ]
    return moved


def _distance_to_zero(mask: np.ndarray) -> np.ndarray:
    """Each pixel's Euclidean distance to the nearest False, in pixels; ``[H,W]`` float32."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _within(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.clip(points, 0, [size[1] - 1, size[0] - 1])
