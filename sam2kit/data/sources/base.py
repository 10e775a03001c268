"""Where frames and masks are stored, apart from how clips are drawn from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from sam2kit.utils.errors import DataError

ObjectId = int | str


class VideoSource(ABC):
    """Videos by number: their frames, and the masks of their objects where somebody drew them.

    A source only stores: :class:`sam2kit.data.clip_dataset.ClipDataset` draws clips from it. It
    must be picklable (loader processes get a copy), and reading the same ``(i, t)`` must give the
    same pixels in any process. Whatever can be checked without decoding pixels is checked when the
    source is made, with a :class:`~sam2kit.utils.errors.DataError`.

    Attributes:
        names: the videos' names, all different.
        has_masks: False for a source of frames alone, whose ``read_masks`` always gives None.
    """

    names: list[str]
    has_masks: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """The name of video ``i``."""
        return self.names[i]

    @abstractmethod
    def num_frames(self, i: int) -> int:
        """How many frames video ``i`` has, at least 1."""

    @abstractmethod
    def read_frame(self, i: int, t: int) -> np.ndarray:
        """Frame ``t`` of video ``i``: ``[H,W,3]`` uint8, RGB."""

    @abstractmethod
    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        """The masks on frame ``t`` of video ``i``, each ``[H,W]`` bool, by object.

        None where nobody annotated the frame. An object that an annotated frame does not list is
        absent there: its mask is empty, and known to be.
        """

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        """``[H,W]`` bool: pixels of frame ``t`` that nobody decided on; None: there are none."""
        return None

    def frame_name(self, i: int, t: int) -> str:
        """The frame's file name without ending, under which results are exported."""
        return f"{t:05d}"

    def frame_path(self, i: int, t: int) -> Path | None:
        """The picture file that is frame ``t`` of video ``i``; None where no file is just that."""
        return None

    def mask_paths(self, i: int, t: int) -> list[Path]:
        """The files that hold nothing but masks of frame ``t``: none, one, or one an object."""
        return []

    def index_in_epoch(self, i: int, epoch: int) -> int:
        """The video that stands at ``i`` in this epoch of training.

        Stored videos are the same in every epoch. Generated ones are without end: their sources
        give a new video each time (and read at indices beyond their length).
        """
        return i


class DerivedSource(VideoSource):
    """Videos that other sources hold; what a subclass does not change is read from these."""

    @abstractmethod
    def locate(self, i: int) -> tuple[VideoSource, int]:
        """The source that holds video ``i``, and its number there."""

    def name(self, i: int) -> str:
        source, k = self.locate(i)
        return source.name(k)

    def num_frames(self, i: int) -> int:
        source, k = self.locate(i)
        return source.num_frames(k)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        source, k = self.locate(i)
        return source.read_frame(k, t)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        source, k = self.locate(i)
        return source.read_masks(k, t)

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        source, k = self.locate(i)
        return source.read_void(k, t)

    def frame_name(self, i: int, t: int) -> str:
        source, k = self.locate(i)
        return source.frame_name(k, t)

    def frame_path(self, i: int, t: int) -> Path | None:
        source, k = self.locate(i)
        return source.frame_path(k, t)

    def mask_paths(self, i: int, t: int) -> list[Path]:
        source, k = self.locate(i)
        return source.mask_paths(k, t)


class SelectedVideos(DerivedSource):
    """Some videos of another source, in the given order."""

    def __init__(self, source: VideoSource, indices: list[int]) -> None:
        outside = [i for i in indices if not 0 <= i < len(source)]
        if outside:
            raise DataError(f"videos {outside} selected from a source of {len(source)} videos")
        self.source = source
        self.indices = list(indices)
        self.names = [source.names[i] for i in indices]
        self.has_masks = source.has_masks

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, self.indices[i]
