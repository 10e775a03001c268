"""Imitate other kinds of cameras: thermal-like and endoscopy-like filters of ordinary videos.

They serve as augmentation (``augmentation.thermal``, ``augmentation.endoscopy``) and to make
datasets of another domain from videos with masks, so that adaptation can be measured. They imitate
the look only: a real thermal or endoscopic video has different objects and motion.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from sam2kit.data.sources.base import DerivedSource, VideoSource
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import text_checksum

Filter = Callable[[np.ndarray, int], np.ndarray]
"""Takes a frame ``[H,W,3]`` uint8 RGB and its number, and returns the filtered frame."""


def thermal_filter(generator: np.random.Generator) -> Filter:
    """Draw a thermal-like filter: grey, soft, noisy, of low contrast, with column stripes.

    The grey value is a random mixture of the colours, often with reversed polarity, because
    temperature and colour are hardly related. The gain drifts slowly, as cameras adapt to the
    scene.

    Args:
        generator: draws everything that is the same for all frames of a video.
    """
    weights = generator.dirichlet([2, 2, 2]) * generator.choice([-1, 1])
    contrast, level = generator.uniform(0.45, 0.8), generator.uniform(0.35, 0.6)
    blur = generator.uniform(0.003, 0.008)  # fraction of the shorter side
    drift, phase = generator.uniform(0.01, 0.05), generator.uniform(0, 2 * np.pi)
    speed, noise, stripes = generator.uniform([0.05, 0.01, 0.005], [0.2, 0.03, 0.02])
    seed = int(generator.integers(2**31))

    def apply(frame: np.ndarray, t: int) -> np.ndarray:
        height, width = frame.shape[:2]
        grey = frame.astype(np.float32) @ (weights.astype(np.float32) / 255)
        grey = cv2.GaussianBlur(grey, (0, 0), max(blur * min(height, width), 0.5))
        grey = level + contrast * (grey - (0.5 if weights[0] > 0 else -0.5))
        grey += drift * np.sin(speed * t + phase)
        # The stripes belong to the sensor and stay; the noise is new on every frame.
        fixed, fresh = np.random.default_rng((seed, 0)), np.random.default_rng((seed, 1, t))
        grey += np.float32(stripes) * fixed.standard_normal(width, dtype=np.float32)
        grey += np.float32(noise) * fresh.standard_normal((height, width), dtype=np.float32)
        return np.repeat(_to_uint8(grey)[..., None], 3, axis=2)

    return apply


def endoscopy_filter(generator: np.random.Generator) -> Filter:
    """Draw an endoscopy-like filter: red tint, moving light, flickering highlights, vignette.

    Args:
        generator: draws everything that is the same for all frames of a video.
    """
    tint = np.eye(3) * generator.uniform([0.85, 0.45, 0.4], [1.1, 0.65, 0.6])
    tint[0] += generator.uniform(0.1, 0.3) * np.array([0.3, 0.6, 0.1])  # grey looks red, too
    center, radius = generator.uniform(0.4, 0.6, 2), generator.uniform(0.35, 0.6)
    reach, speed = generator.uniform(0.1, 0.25, 2), generator.uniform(0.03, 0.12, 2)
    phase, flicker = generator.uniform(0, 2 * np.pi, 2), generator.uniform(0.02, 0.08)
    spots = generator.uniform(0.05, 0.95, (int(generator.integers(4, 12)), 2))
    sizes = generator.uniform(0.006, 0.02, len(spots))
    seed = int(generator.integers(2**31))

    def apply(frame: np.ndarray, t: int) -> np.ndarray:
        height, width = frame.shape[:2]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        y, x = y / height, x / width
        fresh = np.random.default_rng((seed, t))
        light = center + reach * np.sin(speed * t + phase)
        distance = (y - light[0]) ** 2 + (x - light[1]) ** 2
        brightness = 0.35 + 0.85 * np.exp(-distance / (2 * radius**2))
        brightness *= 1 + flicker * fresh.standard_normal()
        # The round image of the optics: dark corners with a soft edge.
        from_middle = np.hypot(y - 0.5, x - 0.5)
        brightness *= 1 / (1 + np.exp((from_middle - 0.6) / 0.03))
        glare = np.zeros((height, width), np.float32)
        for (row, column), size, on in zip(spots, sizes, fresh.random(len(spots)), strict=True):
            if on > 0.4:
                spot = (y - row) ** 2 + (x - column) ** 2
                glare += on * np.exp(-spot / (2 * size**2))
        pixels = cv2.transform(frame.astype(np.float32) / 255, tint.astype(np.float32))
        return _to_uint8(pixels * brightness[..., None] + glare[..., None])

    return apply


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)


DOMAINS: dict[str, Callable[[np.random.Generator], Filter]] = {
    "thermal": thermal_filter,
    "endoscopy": endoscopy_filter,
}


class FilteredVideos(DerivedSource):
    """Filter the frames of another source, to make data of another domain; masks do not change.

    The filter of a video depends only on the seed and the name of the video.

    Args:
        source: the videos.
        domain: ``thermal`` or ``endoscopy``.
        seed: 0 or more.

    Raises:
        DataError: the domain is unknown.
    """

    def __init__(self, source: VideoSource, domain: str, seed: int = 0) -> None:
        if domain not in DOMAINS:
            raise DataError(
                key="domain",
                value=domain,
                expected=f"one of {', '.join(DOMAINS)}",
                hint="docs/clips.md describes the domains",
            )
        self.source, self.domain, self.seed = source, domain, seed
        self.names = list(source.names)
        self.has_masks, self.generated = source.has_masks, source.generated

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, i

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return self.source.index_in_epoch(i, epoch)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        name = text_checksum(self.name(i))
        apply = DOMAINS[self.domain](np.random.default_rng((self.seed, name)))
        return apply(self.source.read_frame(i, t), t)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        return self.read_frame(i, t)

    def frame_path(self, i: int, t: int) -> Path | None:
        return None  # the files contain unfiltered frames

    def video_path(self, i: int) -> Path | None:
        return None
