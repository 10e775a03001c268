"""Fingerprint the content of videos, to detect that frames or masks were changed or replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.sources.base import VideoSource, innermost, is_new_each_epoch
from sam2kit.data.synthetic.dataset import CompositedDataset
from sam2kit.utils.errors import SAM2KitError

SAMPLED_FRAMES = 256
"""Number of frames per dataset that :func:`sampled_content` compares, a second or two."""
SAMPLED_FILES = 100_000
"""Maximum number of frames whose files :func:`sampled_content` measures."""
GENERATED = "generated"
"""What :func:`sampled_content` returns where there is nothing to compare."""
# Indices of the frames whose pixels identify a video. A truncated copy still has the first of them.
# In large datasets, only the first few are used.
HASHED_FRAMES = (0, 16, 4, 64, 1, 32, 8, 2)
MAX_HASHED_VIDEOS = 5000  # in larger datasets, videos are recognised by their names


class FrameHasher:
    """Hash the pixels of frames; each frame is decoded once, whatever it is hashed for."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[VideoSource, int, int], tuple[str, bool]] = {}

    def __call__(self, source: VideoSource, i: int, t: int) -> tuple[str, bool]:
        """Return the hash of frame ``t`` of video ``i``, and whether it has a single colour.

        Raises:
            SAM2KitError, OSError: the frame cannot be read.
        """
        if (source, i, t) not in self._hashes:
            pixels = source.read_frame(i, t)
            is_plain = not (pixels != pixels[0, 0]).any()
            self._hashes[source, i, t] = _hash([str(pixels.shape), pixels]), is_plain
        return self._hashes[source, i, t]


def full_video(source: VideoSource, i: int) -> tuple[VideoSource, int, int]:
    """Return source and index of the full video of video ``i``, and its first frame in it."""
    source, i, start = innermost(source, i)
    if not isinstance(source, CompositedDataset):
        return source, i, start
    full, k, first = full_video(source.source, i)
    return full, k, start + first


def stored_videos(source: VideoSource) -> list[int]:
    """Return the indices of the videos that are not entirely generated."""
    videos = ((i, *full_video(source, i)) for i in range(len(source)))
    return [i for i, full, k, _ in videos if full.index_in_epoch(k, 1) < len(full)]


def identifying_frames(source: VideoSource, with_last: bool = False) -> dict[int, list[int]]:
    """Return the frames whose pixels identify a video.

    Args:
        source: the videos.
        with_last: whether to put the last frame of a video in third place. It distinguishes videos
            that start alike, such as those of a fixed camera. The digests of runs, which earlier
            versions stored, do not depend on it.

    Returns:
        Frame indices in the full video, by index of the video: up to :data:`SAMPLED_FRAMES` in all,
        but at least two per video; none if there are more than :data:`MAX_HASHED_VIDEOS` videos.
    """
    stored = stored_videos(source)
    count = min(max(SAMPLED_FRAMES // max(len(stored), 1), 2), len(HASHED_FRAMES))
    if len(stored) > MAX_HASHED_VIDEOS:
        count = 0
    lengths = {i: full.num_frames(k) for i in stored for full, k, _ in [full_video(source, i)]}
    last = {i: [n - 1] if with_last and n else [] for i, n in lengths.items()}
    frames = {i: [t for t in HASHED_FRAMES if t < n] for i, n in lengths.items()}
    return {
        i: list(dict.fromkeys([*first[:2], *last[i], *first[2:]]))[:count]
        for i, first in frames.items()
    }


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


def sampled_content(source: VideoSource, hasher: FrameHasher | None = None) -> str:
    """Hash the sizes of the files of all videos, and the content of some frames.

    The sampled frames are those by which :func:`~sam2kit.data.splits.describe` identifies videos,
    and evenly spaced others. The hash does not change if a dataset is moved or copied. In datasets
    of more than :data:`SAMPLED_FRAMES` frames, changes that keep the sizes of all files may go
    undetected.
    Generated videos depend on the configuration alone; they are not read. Of a video with
    generated objects, only the stored frames are compared.

    Args:
        source: the videos.
        hasher: has hashed frames already, which are not decoded again. None (default): decode all.

    Returns:
        The hash; :data:`GENERATED` if no video is stored.
    """
    hasher = hasher or FrameHasher()
    stored = stored_videos(source)
    if not stored:
        return GENERATED
    # Frames are numbered over all videos: a tuple for each of millions would take half a gigabyte.
    first = np.cumsum([0, *(source.num_frames(i) for i in stored)])
    frames = np.arange(first[-1])

    def located(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
        videos = np.searchsorted(first, numbers, side="right") - 1
        return zip((stored[k] for k in videos), (numbers - first[videos]).tolist(), strict=True)

    sizes = (
        f"{i} {t} {_stamp(path)}"
        for i, t in located(_spaced(frames, SAMPLED_FILES))
        for path in (source.frame_path(i, t), *source.mask_paths(i, t))
    )
    identifying = identifying_frames(source)
    starts = first[:-1] - [full_video(source, i)[2] for i in stored]
    numbers = [start + t for start, i in zip(starts, stored, strict=True) for t in identifying[i]]
    videos = np.repeat(np.arange(len(stored)), [len(identifying[i]) for i in stored])
    is_inside = (first[videos] <= numbers) & (numbers < first[videos + 1])
    chosen = _spaced(np.unique(np.array(numbers, int)[is_inside]), SAMPLED_FRAMES)
    others = _spaced(np.setdiff1d(frames, chosen, True), SAMPLED_FRAMES - len(chosen))
    chosen = np.concatenate([chosen, others])
    pixels = (_readable_frame(source, i, t, hasher) for i, t in located(chosen))
    return _hash([_hash(sizes), _hash(pixels)])


def _spaced(frames: np.ndarray, count: int) -> np.ndarray:
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames)), dtype=int)]


def _readable_frame(source: VideoSource, i: int, t: int, hasher: FrameHasher) -> str:
    """Hash a frame; an unreadable frame is reported later, when training needs it."""
    full, k, start = full_video(source, i)
    try:
        masks = () if is_new_each_epoch(source, i) else _masks(source, i, t)
        return _hash([hasher(full, k, start + t)[0], *masks])
    except (SAM2KitError, OSError):
        return "unreadable"


def _frame(source: VideoSource, i: int, t: int) -> Iterable[Any]:
    """Yield the content of a frame."""
    pixels = source.read_frame(i, t)
    yield from (str(pixels.shape), pixels)
    yield from _masks(source, i, t)


def _masks(source: VideoSource, i: int, t: int) -> Iterable[Any]:
    """Yield the annotations of a frame."""
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
