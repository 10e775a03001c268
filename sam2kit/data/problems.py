"""What is wrong with a video, in the words of training and of the doctor alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource


def place(source: VideoSource, i: int, t: int) -> str:
    """What to call a frame: its file, or its video and name."""
    path = source.frame_path(i, t)
    return str(path) if path else f"video {source.name(i)!r}, frame {source.frame_name(i, t)}"


def too_short(name: str, count: int, span: int) -> str:
    """A video of ``count`` frames where a clip spans more."""
    return f"video {name!r} has {count} frames and a clip spans {span}"


def nothing_visible(name: str, count: int, image_size: int) -> str:
    """A video of ``count`` frames in which training finds no object."""
    return (
        f"video {name!r}: none of its {count} frames shows an object at {image_size} pixels; "
        "leave the video out of the split or annotate it"
    )


def unlike_frames(name: str, sizes: Iterable[tuple[int, ...]]) -> str:
    """Frames of several sizes, rows and columns, in one video."""
    return (
        f"video {name!r}: its frames differ in size, {sorted(set(sizes))}; "
        "make all frames of a video the same size"
    )


def unlike_mask(
    place: str, size: tuple[int, ...], masks: Mapping[ObjectId, np.ndarray] | None
) -> str | None:
    """A mask that has not its frame's rows and columns ``size``; None: there is none."""
    for who, mask in (masks or {}).items():
        if mask.shape != size:
            return (
                f"{place}: the mask of object {who!r} has {mask.shape[0]} rows and "
                f"{mask.shape[1]} columns, its frame {size[0]} and {size[1]}; masks must have "
                "their frame's size"
            )
    return None
