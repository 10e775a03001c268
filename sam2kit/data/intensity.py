"""Scale frames of more than 8 bits to uint8 by one range of values per video, never per frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import parent_process

import numpy as np
from loguru import logger

from sam2kit.config.schema import DatasetConfig
from sam2kit.utils.errors import DataError
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import visible_text

SAMPLED_FRAMES, SAMPLED_PIXELS = 32, 1 << 16  # per video, and per frame
DEFAULT_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class IntensityRule:
    """The rule that maps the values of a video to uint8.

    Attributes:
        window: the values that become 0 and 255. If None (default), the percentiles are used, and
            8-bit frames are not changed.
        percentiles: percentiles of the values of a video that become 0 and 255.
    """

    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] = DEFAULT_PERCENTILES

    @classmethod
    def from_config(cls, config: DatasetConfig) -> IntensityRule:
        """Return the rule of ``intensity_window`` and ``intensity_percentiles``."""
        window, percentiles = config.intensity_window, config.intensity_percentiles
        return cls(
            None if window is None else (window[0], window[1]), (percentiles[0], percentiles[1])
        )


DEFAULT_RULE = IntensityRule()


class VideoScaler:
    """Scale the frames of the videos of one source to uint8.

    The range of a video is computed when its first frame is read, and is then reused. It depends
    only on the rule and on the video, so that training, evaluation and tracking scale alike. The
    main process logs it.

    Args:
        rule: the rule.
    """

    def __init__(self, rule: IntensityRule) -> None:
        self.rule = rule
        self._ranges: dict[int, tuple[float, float]] = {}

    def scale(
        self,
        i: int,
        frame: np.ndarray,
        read: Callable[[int], np.ndarray],
        num_frames: int,
        name: str,
        window: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Return a frame of video ``i`` as uint8.

        Args:
            i: index of the video.
            frame: a frame of any shape and numeric type. uint8 is returned unchanged, unless the
                rule has a window.
            read: reads any frame of the video, as stored.
            num_frames: number of frames of the video.
            name: name of the video in the log.
            window: the window that the file itself recommends, which the rule's window overrides.
                None (default): no recommendation.

        Raises:
            DataError: ``frame`` is not numeric, no sampled value is finite, or the video has frames
                of 8 bits and others of more, for which no common range is known.
        """
        if frame.dtype == np.uint8 and self.rule.window is None:
            if i in self._ranges:
                raise _mixed_depths(name)
            return frame
        if frame.dtype == bool:
            return frame.astype(np.uint8) * 255
        if not np.issubdtype(frame.dtype, np.integer) and not np.issubdtype(
            frame.dtype, np.floating
        ):
            raise DataError(
                f"{visible_text(name)} has values of type {frame.dtype}",
                hint="save it as integers or floats",
            )
        if i not in self._ranges:
            if window := self.rule.window or window:
                self._ranges[i], how = window, "window"
            else:
                self._ranges[i] = sampled_range(read, num_frames, self.rule.percentiles, name)
                how = f"percentiles {self.rule.percentiles[0]:g} and {self.rule.percentiles[1]:g}"
            if parent_process() is None:  # each DataLoader worker would log it again
                low, high = self._ranges[i]
                text = "{}: {} frames scaled to 8 bits, {:g} to {:g} ({})"
                logger.info(text, visible_text(name), frame.dtype, low, high, how)
        return to_uint8(frame, *self._ranges[i])


def sampled_range(
    read: Callable[[int], np.ndarray],
    num_frames: int,
    percentiles: Sequence[float],
    name: str = "the video",
) -> tuple[float, float]:
    """Return percentiles of the values of a video.

    Up to 32 evenly spaced frames are read, and up to about 65,536 evenly spaced values of each.
    Values that are not finite are left out.

    Args:
        read: reads frame ``t`` as stored.
        num_frames: number of frames.
        percentiles: two percentiles, 0 to 100.
        name: name of the video in the error.

    Raises:
        DataError: no value is finite, or a frame has 8 bits.
    """
    samples = []
    for t in evenly_spaced(num_frames, SAMPLED_FRAMES):
        frame = read(t)
        if frame.dtype.itemsize == 1:
            raise _mixed_depths(name)
        sample = frame.reshape(-1)[:: max(frame.size // SAMPLED_PIXELS, 1)]
        samples.append(sample[np.isfinite(sample)])
    values = np.concatenate(samples)
    if not values.size:
        raise DataError(
            f"{visible_text(name)} has no finite value in {len(samples)} of its {num_frames} "
            "frames",
            hint="repair the file; NaN and infinity cannot be displayed",
        )
    low, high = np.percentile(values, percentiles)
    if low == high:  # fewer bright pixels than the percentile leaves out
        low, high = values.min(), values.max()
    return float(low), float(high)


def _mixed_depths(name: str) -> DataError:
    return DataError(
        f"{visible_text(name)} has frames of 8 bits and frames of more bits, whose values have no "
        "common range",
        hint="save all frames of a video with the same number of bits, or set "
        "dataset.intensity_window to the range of all frames",
    )


def to_uint8(frame: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low`` to 0 and ``high`` to 255, clip, and round to the nearest integer; NaN becomes 0.

    A video of one value, for which ``low`` equals ``high``, becomes 0.
    """
    scale = 255 / (high - low) if high > low else 0.0
    scaled = (frame.astype(np.float32) - np.float32(low)) * np.float32(scale)
    scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    return np.clip(np.rint(scaled, out=scaled), 0, 255).astype(np.uint8)
