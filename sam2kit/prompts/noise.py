"""Degrade prompts with small random errors, as in prompts made by people.

Every error is a uniform random number times the level of noise. With the same seed, two levels give
the same errors at different magnitudes, so that results at different levels are comparable.
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
    """Add random errors to prompts.

    Attributes:
        level: maximum error as a share of the size of the object: of the width and height of its
            box for boxes, of the square root of its area for masks and points. 0 (default): no
            errors.
        kinds: ``shift`` (boxes and masks), ``scale`` (boxes), ``dilate`` and ``erode`` (masks; if
            both are given, one is drawn), ``jitter`` (points). Default: all.

    Raises:
        ConfigError: a negative level, or an unknown kind.
    """

    level: float = 0.0
    kinds: tuple[str, ...] = NOISE_KINDS

    def __post_init__(self) -> None:
        if self.level < 0 or not set(self.kinds) <= set(NOISE_KINDS):
            raise ConfigError(
                f"prompt noise has level {self.level} and kinds {list(self.kinds)}",
                hint=f"use a level of at least 0 and any of the kinds {', '.join(NOISE_KINDS)}",
            )

    def box(
        self, box: np.ndarray, size: tuple[int, int], generator: np.random.Generator
    ) -> np.ndarray:
        """Move and scale a box within the frame.

        Args:
            box: ``[4]`` x0, y0, x1, y1.
            size: rows and columns of the frame.
            generator: draws the errors.

        Returns:
            ``[4]`` float32.
        """
        shift, scale = generator.uniform(-self.level, self.level, (2, 2))
        corners = box.reshape(2, 2).astype(np.float64)
        center, sides = corners.mean(0), corners[1] - corners[0]
        if "shift" in self.kinds:
            center = center + shift * sides
        if "scale" in self.kinds:
            sides = np.maximum(sides * (1 + scale), 0)
        moved = np.stack([center - sides / 2, center + sides / 2])
        return _clip_to_frame(moved, size).reshape(4).astype(np.float32)

    def points(
        self, points: np.ndarray, mask: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Move clicks within the frame.

        Args:
            points: ``[P,2]`` x, y.
            mask: the object, ``[H,W]`` bool, for its size.
            generator: draws the errors.

        Returns:
            ``[P,2]`` float32.
        """
        offsets = generator.uniform(-1, 1, points.shape) * self._max_error(mask)
        moved = points + offsets if "jitter" in self.kinds else points
        return _clip_to_frame(moved, mask.shape).astype(np.float32)

    def mask(self, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Dilate or erode a mask, and move it.

        Args:
            mask: ``[H,W]`` bool, not empty.
            generator: draws the errors.

        Returns:
            ``[H,W]`` bool, not empty.
        """
        x, y, radius = generator.uniform(-1, 1, 3) * self._max_error(mask)
        signs = [s for s, kind in ((1, "dilate"), (-1, "erode")) if kind in self.kinds]
        if len(signs) == 1:
            radius = signs[0] * abs(radius)
        if signs:
            mask = grow_mask(mask, radius)
        return move_mask(mask, round(x), round(y)) if "shift" in self.kinds else mask

    def _max_error(self, mask: np.ndarray) -> float:
        """Return the maximum error in pixels."""
        return self.level * float(np.sqrt(np.count_nonzero(mask)))


def grow_mask(mask: np.ndarray, radius: float) -> np.ndarray:
    """Dilate or erode a mask by a disc.

    Pixels outside the frame count as unknown, so an object is not eroded at the border of the
    frame. Erosion is limited so that the innermost pixels of the object remain.

    Args:
        mask: ``[H,W]`` bool, not empty.
        radius: radius in pixels; above 0: dilate; below 0: erode.
    """
    if radius >= 0:
        return _distance_to_zero(~mask) <= radius
    inside = _distance_to_zero(mask)
    return mask & (inside > min(-radius, inside.max() * (1 - 1e-6)))


def move_mask(mask: np.ndarray, x: int, y: int) -> np.ndarray:
    """Move a mask by x and y pixels, limited so that its centre remains inside the frame.

    Args:
        mask: ``[H,W]`` bool, not empty.
        x: columns to the right.
        y: rows down.
    """
    (rows, columns), (center_x, center_y) = mask.shape, mask_center(mask)
    x = int(np.clip(x, -center_x, columns - 1 - center_x))
    y = int(np.clip(y, -center_y, rows - 1 - center_y))
    moved = np.zeros_like(mask)
    moved[max(y, 0) : rows + min(y, 0), max(x, 0) : columns + min(x, 0)] = mask[
        max(-y, 0) : rows + min(-y, 0), max(-x, 0) : columns + min(-x, 0)
    ]
    return moved


def _distance_to_zero(mask: np.ndarray) -> np.ndarray:
    """Return the Euclidean distance of each pixel to the nearest False, ``[H,W]`` float32."""
    return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def _clip_to_frame(points: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.clip(points, 0, [size[1] - 1, size[0] - 1])
