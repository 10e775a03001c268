"""Define the interface of all video sources: frames, masks and names, but no clip sampling."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from loguru import logger

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

ObjectId = int | str
NOTE, IGNORED, ORDER, GEOMETRY = "note", "ignored", "order", "geometry"
IDENTITY = "identity"
DEFAULT_FPS = 10.0
Files = TypeVar("Files")
Video = TypeVar("Video")


@dataclass(frozen=True)
class Remark:
    """Describe how a dataset was read, or which part was not read; the doctor reports it.

    Attributes:
        kind: ``note`` (a decision, such as the meaning of mask values), or the kind of a
            :class:`~sam2kit.data.doctor.video_checks.Finding`: ``ignored``, ``order`` or
            ``geometry``, or ``identity`` (separate things that are read as one object).
        where: the file or folder.
        message: what it is, and the fix if it is not a note.
    """

    kind: str
    where: str
    message: str


@dataclass(frozen=True)
class LeftOut:
    """Describe data that a source cannot use and has left out.

    Attributes:
        kind: ``videos``, ``frames``, ``masks`` or ``boxes``.
        count: how many there are.
        where: the first of them, by file, annotation or frame.
        message: what is wrong with the first one, and how to fix it.
    """

    kind: str
    count: int
    where: str
    message: str


class VideoSource(ABC):
    """Give access to indexed videos: their frames and, where annotated, the masks of their objects.

    A source only reads; :class:`sam2kit.data.clip_dataset.ClipDataset` samples clips from it. A
    source must be picklable, because each DataLoader worker gets a copy, and reading the same
    ``(i, t)`` must return the same pixels in every process. The constructor checks everything that
    can be checked without decoding pixels and raises
    :class:`~sam2kit.utils.errors.DataError`.

    Attributes:
        names: unique names of the videos.
        has_masks: False for a source of frames only, whose ``read_masks`` always returns None.
        generated: True if the objects are generated instead of annotated.
    """

    names: list[str]
    has_masks: bool = True
    generated: bool = False
    # What the constructor of a subclass found.
    _remarks: Sequence[Remark] = ()
    _left_out: Sequence[LeftOut] = ()

    @property
    def remarks(self) -> list[Remark]:
        """How the dataset is read, and which parts are not read; this may read some masks."""
        return list(self._remarks)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """Return the name of video ``i``."""
        return self.names[i]

    @abstractmethod
    def num_frames(self, i: int) -> int:
        """Return the number of frames of video ``i``, at least 1."""

    def is_generated(self, i: int) -> bool:
        """Return whether the objects of video ``i`` are generated instead of annotated."""
        return self.generated

    @abstractmethod
    def read_frame(self, i: int, t: int) -> np.ndarray:
        """Read frame ``t`` of video ``i``.

        Returns:
            ``[H,W,3]`` uint8 RGB; the caller may modify it.

        Raises:
            IndexError: no such video or frame.
            DataError: the frame cannot be decoded.
        """

    @abstractmethod
    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        """Read the masks on frame ``t`` of video ``i``.

        Returns:
            ``[H,W]`` bool per object, or None if the frame is unannotated. An object that is not
            listed for an annotated frame is absent there: its ground truth is an empty mask.

        Raises:
            IndexError: no such video or frame.
            DataError: the masks cannot be read, or do not have the size of their frame.
        """

    def annotated_frames(self, i: int) -> Iterator[int]:
        """Yield the annotated frames of video ``i`` in order.

        This implementation reads the masks of each frame; a source that knows the frames without
        reading them overrides it.
        """
        return (t for t in range(self.num_frames(i)) if self.read_masks(i, t) is not None)

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        """Read the void pixels of frame ``t``, which belong to no object and not to the background.

        Returns:
            ``[H,W]`` bool, or None if the frame has no void pixels.
        """
        return None

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        """Read frame ``t`` of video ``i`` before it is scaled to 8 bits.

        Returns:
            ``[H,W]`` or ``[H,W,C]`` of the type in which the file stores it.

        Raises:
            IndexError, DataError: as for :meth:`read_frame`.
        """
        return self.read_frame(i, t)

    def parents(self, i: int) -> dict[ObjectId, ObjectId]:
        """Return the parent of each object of video ``i`` that came from a division."""
        return {}

    def geometry(self, i: int) -> VolumeGeometry | None:
        """Return the position of the frames of video ``i`` in a volume; None without one."""
        return None

    def frame_name(self, i: int, t: int) -> str:
        """Return the name of the frame without extension, under which results are exported."""
        return f"{t:05d}"

    def frame_number(self, i: int, t: int) -> int:
        """Return the number of frame ``t`` in the whole video, of which this may be a part."""
        return t

    def frame_rate(self, i: int) -> float:
        """Return the frames per second of video ``i``; 10 if its files do not define them."""
        return DEFAULT_FPS

    def frame_path(self, i: int, t: int) -> Path | None:
        """Return the image file of frame ``t`` of video ``i``; None if no file contains only it."""
        return None

    def video_path(self, i: int) -> Path | None:
        """Return the file or folder that contains only the frames of video ``i``, or None.

        :func:`~sam2kit.data.sources.video_decoder.open_video` reads the same frames from it.
        """
        return None

    def mask_paths(self, i: int, t: int) -> list[Path]:
        """Return the files that contain only masks of frame ``t``: none, one, or one per object."""
        return []

    def left_out(self) -> list[LeftOut]:
        """Return what the source left out when it was opened: one entry per kind of problem."""
        return list(self._left_out)

    def left_out_masks(self, i: int) -> list[LeftOut]:
        """Return the masks of video ``i`` that reading has left out so far, in this process."""
        return []

    def index_in_epoch(self, i: int, epoch: int) -> int:
        """Return the index of the video at position ``i`` of a training epoch.

        Stored videos are the same in every epoch. Generated videos are unlimited: their sources
        return a new index in each epoch, and accept indices beyond their length when reading.
        """
        return i


class DerivedSource(VideoSource):
    """Base class for sources that wrap other sources, and forward what is not overridden."""

    @abstractmethod
    def locate(self, i: int) -> tuple[VideoSource, int]:
        """Return the source that contains video ``i``, and the index of the video in it."""

    def _sources(self) -> list[VideoSource]:
        """Return the sources of all videos."""
        sources = {id(source): source for i in range(len(self)) for source in [self.locate(i)[0]]}
        return list(sources.values())

    @property
    def remarks(self) -> list[Remark]:
        return [remark for source in self._sources() for remark in source.remarks]

    def name(self, i: int) -> str:
        source, k = self.locate(i)
        return source.name(k)

    def num_frames(self, i: int) -> int:
        source, k = self.locate(i)
        return source.num_frames(k)

    def is_generated(self, i: int) -> bool:
        source, k = self.locate(i)
        return source.is_generated(k)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        source, k = self.locate(i)
        return source.read_frame(k, t)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        source, k = self.locate(i)
        return source.read_masks(k, t)

    def annotated_frames(self, i: int) -> Iterator[int]:
        source, k = self.locate(i)
        return source.annotated_frames(k)

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        source, k = self.locate(i)
        return source.read_void(k, t)

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        source, k = self.locate(i)
        return source.raw_frame(k, t)

    def parents(self, i: int) -> dict[ObjectId, ObjectId]:
        source, k = self.locate(i)
        return source.parents(k)

    def geometry(self, i: int) -> VolumeGeometry | None:
        source, k = self.locate(i)
        return source.geometry(k)

    def frame_name(self, i: int, t: int) -> str:
        source, k = self.locate(i)
        return source.frame_name(k, t)

    def frame_number(self, i: int, t: int) -> int:
        source, k = self.locate(i)
        return source.frame_number(k, t)

    def frame_rate(self, i: int) -> float:
        source, k = self.locate(i)
        return source.frame_rate(k)

    def frame_path(self, i: int, t: int) -> Path | None:
        source, k = self.locate(i)
        return source.frame_path(k, t)

    def video_path(self, i: int) -> Path | None:
        source, k = self.locate(i)
        return source.video_path(k)

    def left_out(self) -> list[LeftOut]:
        return [entry for source in self._sources() for entry in source.left_out()]

    def left_out_masks(self, i: int) -> list[LeftOut]:
        source, k = self.locate(i)
        return source.left_out_masks(k)

    def mask_paths(self, i: int, t: int) -> list[Path]:
        source, k = self.locate(i)
        return source.mask_paths(k, t)


def innermost(source: VideoSource, i: int) -> tuple[VideoSource, int, int]:
    """Return the source that reads the files of video ``i``, its index there and its first frame.

    The first frame is 0, unless the video is a range of the frames.
    """
    start = 0
    while isinstance(source, DerivedSource):
        start += source.start if isinstance(source, FrameRange) else 0
        source, i = source.locate(i)
    return source, i, start


def is_new_each_epoch(source: VideoSource, i: int) -> bool:
    """Return whether every training epoch has other pixels in the place of video ``i``."""
    source, i, _ = innermost(source, i)
    return source.index_in_epoch(i, 1) >= len(source)


class SelectedVideos(DerivedSource):
    """Select some videos of another source, in the given order.

    Args:
        source: the source to select from.
        indices: indices of the videos in ``source``.

    Raises:
        DataError: an index is out of range.
    """

    def __init__(self, source: VideoSource, indices: list[int]) -> None:
        outside = [i for i in indices if not 0 <= i < len(source)]
        if outside:
            raise DataError(
                key="indices",
                value=outside,
                expected=f"between 0 and {len(source) - 1}",
                hint=f"the source has {len(source)} videos",
            )
        self.source = source
        self.indices = list(indices)
        self.names = [source.names[i] for i in indices]
        self.has_masks, self.generated = source.has_masks, source.generated

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, self.indices[i]


class FrameRange(DerivedSource):
    """Select consecutive frames of the videos of another source; frames keep their names.

    Args:
        source: the videos.
        start: index of the first frame; every video has it.
        stop: index after the last frame; shorter videos are selected to their end.

    Raises:
        DataError: a video ends before the range, or the range is empty.
    """

    def __init__(self, source: VideoSource, start: int, stop: int) -> None:
        shortest = min((source.num_frames(i) for i in range(len(source))), default=stop)
        if not 0 <= start < min(stop, shortest):
            raise DataError(
                key="frames",
                value=[start, stop],
                expected=f"a range that starts within the {shortest} frames of the shortest video",
                hint="use the video for which the range was made",
            )
        self.source, self.start, self.stop = source, start, stop
        self.names = list(source.names)
        self.has_masks, self.generated = source.has_masks, source.generated

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, i

    def _frame(self, i: int, t: int) -> int:
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self.num_frames(i)}")
        return self.start + t

    def num_frames(self, i: int) -> int:
        return min(self.stop, self.source.num_frames(i)) - self.start

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.source.read_frame(i, self._frame(i, t))

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return self.source.read_masks(i, self._frame(i, t))

    def annotated_frames(self, i: int) -> Iterator[int]:
        frames = self.source.annotated_frames(i)
        return (t - self.start for t in frames if self.start <= t < self.stop)

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        return self.source.read_void(i, self._frame(i, t))

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        return self.source.raw_frame(i, self._frame(i, t))

    def geometry(self, i: int) -> VolumeGeometry | None:
        geometry = self.source.geometry(i)
        stop = self.start + self.num_frames(i)
        return geometry and geometry.part(self.start, stop, self.source.num_frames(i))

    def frame_name(self, i: int, t: int) -> str:
        return self.source.frame_name(i, self._frame(i, t))

    def frame_number(self, i: int, t: int) -> int:
        return self.source.frame_number(i, self._frame(i, t))

    def frame_path(self, i: int, t: int) -> Path | None:
        return self.source.frame_path(i, self._frame(i, t))

    def video_path(self, i: int) -> Path | None:
        is_whole = self.num_frames(i) == self.source.num_frames(i)
        return self.source.video_path(i) if is_whole else None

    def mask_paths(self, i: int, t: int) -> list[Path]:
        return self.source.mask_paths(i, self._frame(i, t))


def open_members(
    files: Mapping[str, Files], open_one: Callable[[Files], Video], strict: bool, root: Path
) -> tuple[dict[str, Video], list[LeftOut]]:
    """Open the videos of a dataset one by one, and leave out those that cannot be read.

    Args:
        files: the files of each video by its name.
        open_one: opens a video; raises a DataError if it is damaged.
        strict: raise the first error.
        root: the dataset, for the log.

    Returns:
        The videos by name, and an entry for each one that is left out.

    Raises:
        DataError: all videos are damaged, or one is and ``strict`` is True; or an error that names
            the responsible configuration key.
    """
    videos, left_out, first = {}, [], None
    for name, member in files.items():
        try:
            videos[name] = open_one(member)
        except DataError as error:
            if strict or (error.key or "").startswith("dataset."):
                raise
            first = first or error
            where = f"video {visible_text(name)}"
            left_out.append(LeftOut("videos", 1, where, str(error)))
    if first is not None and not videos:
        raise first
    if first is not None:
        logger.warning(
            "{}: left out {} of {} videos that cannot be read. The first: {}. "
            "dataset.strict=true makes them errors",
            *(root, len(left_out), len(files), first),
        )
    return videos, left_out
