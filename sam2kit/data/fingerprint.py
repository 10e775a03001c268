"""Fingerprint the content of videos, to detect that frames or masks were changed or replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import SAM2KitError

SAMPLED_FRAMES = 256
"""Maximum number of frames that :func:`sampled_content` decodes, a second or two."""
SAMPLED_FILES = 100_000
"""Maximum number of frames whose files :func:`sampled_content` measures."""


def file_stamps(source: VideoSource, i: int) -> str | None:
    """Hash the names, sizes and modification times of the files of a video.

    Returns:
        The hash; None if a frame or mask has no file of its own.
    """
    paths: list[Path] = []
    num_mask_files = 0
    for t in range(source.num_frames(i)):
        frame, masks = source.frame_path(i, t), source.mask_paths(i, t)
        if frame is None:
            return None
        paths += [frame, *masks]
        num_mask_files += len(masks)
    if not num_mask_files:
        return None  # the masks are elsewhere, such as in a JSON file
    return _hash(f"{path.name} {_stamp(path, with_time=True)}" for path in paths)


def content(source: VideoSource, i: int) -> str:
    """Hash the pixels, masks and void pixels of all frames of a video."""
    return _hash(part for t in range(source.num_frames(i)) for part in _frame(source, i, t))


def sampled_content(source: VideoSource) -> str:
    """Hash the sizes of the files of all videos, and the content of evenly spaced frames.

    The hash does not change if a data set is moved or copied. In data sets of more than
    :data:`SAMPLED_FRAMES` frames, changes that keep the sizes of all files may go undetected.
    Generated videos depend on the configuration alone; they are not read.
    """
    if any(source.index_in_epoch(i, 1) >= len(source) for i in range(min(len(source), 100))):
        return "generated"
    frames = [(i, t) for i in range(len(source)) for t in range(source.num_frames(i))]
    sizes = (
        f"{i} {t} {_stamp(path)}"
        for i, t in _spaced(frames, SAMPLED_FILES)
        for path in (source.frame_path(i, t), *source.mask_paths(i, t))
    )
    pixels = (_readable_frame(source, i, t) for i, t in _spaced(frames, SAMPLED_FRAMES))
    return _hash([_hash(sizes), _hash(pixels)])


def _spaced(frames: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    chosen = np.linspace(0, len(frames) - 1, min(count, len(frames)), dtype=int)
    return [frames[k] for k in chosen]


def _readable_frame(source: VideoSource, i: int, t: int) -> str:
    """Hash a frame; an unreadable frame is reported later, when training needs it."""
    try:
        return _hash(_frame(source, i, t))
    except (SAM2KitError, OSError):
        return "unreadable"


def _frame(source: VideoSource, i: int, t: int) -> Iterable[Any]:
    """Yield the content of a frame."""
    pixels = source.read_frame(i, t)
    yield from (str(pixels.shape), pixels)
    masks = source.read_masks(i, t)
    yield "unannotated" if masks is None else str(list(masks))
    for mask in (masks or {}).values():
        yield np.packbits(mask)
    void = source.read_void(i, t)
    if void is not None:
        yield np.packbits(void)


def _stamp(path: Path | None, with_time: bool = False) -> str:
    """Return the size, and on request the modification time, of a file."""
    if path is None:
        return ""
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size} {stat.st_mtime_ns if with_time else ''}"


def _hash(parts: Iterable[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(
            part.tobytes() if isinstance(part, np.ndarray) else part.encode(errors="surrogatepass")
        )
    return digest.hexdigest()
