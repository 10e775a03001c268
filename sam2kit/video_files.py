"""Moving pictures as files: GIF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_gif(path: str | Path, frames: Sequence[np.ndarray] | np.ndarray, fps: float = 5.0) -> None:
    """Write images ``[H,W,3]`` uint8 as an endless GIF, whose clock ticks every 10 ms.

    Raises:
        ValueError: no frames, or ``fps`` outside 0 to 50.
    """
    if not len(frames) or not 0 < fps <= 50:
        raise ValueError(f"a GIF needs frames and fps in (0, 50], got {len(frames)} and {fps}")
    pages = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = round(100 / fps) * 10
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=duration, loop=0)
