"""Base class for sources of microscopy stacks and medical volumes.

Their frames are slices of arrays of any numeric type, scaled to uint8 by one rule per video, and
their masks are label images, in which the value of a pixel is the number of its object.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.sources.base import Files, ObjectId, Video, VideoSource, open_members
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.listing import read_split
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

# Limits of decoded sizes. The header of a tiny file may claim more memory than the machine has.
MAX_FRAME_BYTES = 1 << 30
MAX_VOLUME_BYTES = 16 << 30
# Largest label that is counted with a table; for larger ones the pixels are sorted, which is
# slower.
_COUNTED_LABELS = 1 << 20


class StackSource(VideoSource):
    """Base class for sources of stacks and volumes.

    A subclass opens its videos with :meth:`open_videos`, sets ``has_masks``, reports with
    :meth:`report`, and reads frames and labels as stored.

    Args:
        root: the dataset.
        rule: how frames are scaled to 8 bits.
        strict: raise an error for a video that cannot be read. If False, it is left out.
    """

    def __init__(self, root: str | Path, rule: IntensityRule, strict: bool) -> None:
        self.root, self._strict = Path(root), strict
        self._scaler = VideoScaler(rule)
        self._dropped = DroppedFiles(self.root)

    def open_videos(
        self, files: Mapping[str, Files], split: str | None, open_one: Callable[[Files], Video]
    ) -> list[Video]:
        """Open the videos of a split and set ``names``; see :func:`open_members`."""
        names = list(files) if split is None else read_split(split, self.root, files)
        chosen = {name: files[name] for name in names}
        videos, left_out = open_members(chosen, open_one, self._strict, self.root)
        self.names, self._left_out = list(videos), left_out
        return list(videos.values())

    def report(self, read: Iterable[Path], skip: Callable[[str], bool] | None = None) -> None:
        """Log and keep the remarks about what is not read.

        Args:
            read: the files that are read, and those of videos that are left out.
            skip: as for :meth:`DroppedFiles.add_unread`.
        """
        self._dropped.add_unread(read, self.has_masks, skip=skip)
        if not self.has_masks:
            self._dropped.add_masks_beside()
        self._remarks = self._dropped.report()
        self._dropped = DroppedFiles(self.root)  # each DataLoader worker would copy it

    @abstractmethod
    def read_labels(self, i: int, t: int) -> np.ndarray | None:
        """Read the labels of frame ``t`` of video ``i``.

        Returns:
            ``[H,W]`` of any type, 0 on the background; None if the frame is unannotated.
        """

    def is_annotated(self, i: int, t: int) -> bool:
        """Return whether frame ``t`` of video ``i`` is annotated."""
        return self.read_labels(i, t) is not None

    def annotated_frames(self, i: int) -> Iterator[int]:
        return (t for t in range(self.num_frames(i)) if self.is_annotated(i, t))

    def object_names(self, i: int) -> Mapping[int, ObjectId]:
        """Return the object ids of video ``i`` that differ from their labels, by label."""
        return {}

    def frame_size(self, i: int) -> tuple[int, int]:
        """Return the rows and columns of the frames of video ``i``."""
        shape = self.raw_frame(i, 0).shape
        return shape[0], shape[1]

    def window(self, i: int) -> tuple[float, float] | None:
        """Return the window that the files of video ``i`` recommend; None if they name none."""
        return None

    def check_index(self, i: int, t: int) -> None:
        """Reject a frame that does not exist.

        Raises:
            IndexError: no such video or frame.
        """
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self.name(i)!r}, which has {self.num_frames(i)}")

    def read_frame(self, i: int, t: int) -> np.ndarray:
        self.check_index(i, t)
        frame = self._scaler.scale(
            i,
            self.raw_frame(i, t),
            lambda k: self.raw_frame(i, k),
            self.num_frames(i),
            self.name(i),
            self.window(i),
        )
        return as_rgb(frame)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        self.check_index(i, t)
        labels = self.read_labels(i, t)
        if labels is None:
            return None
        size = self.frame_size(i)
        if labels.shape != size:
            raise DataError(
                f"video {visible_text(self.name(i))}, frame {t}: its labels have the shape "
                f"{labels.shape}, but its frame has {size[0]} rows and {size[1]} columns",
                hint="export labels at the size of their frames",
            )
        return masks_by_label(labels, self.object_names(i), f"{self.name(i)}, frame {t}")


def as_rgb(frame: np.ndarray) -> np.ndarray:
    """Return ``[H,W]`` or ``[H,W,C]`` with up to 3 channels as a new ``[H,W,3]``.

    One channel is grey, two are red and green.
    """
    if frame.ndim == 2:
        frame = frame[..., None]
    if frame.shape[2] == 1:
        return np.repeat(frame, 3, axis=2)
    rgb = np.zeros((*frame.shape[:2], 3), frame.dtype)
    rgb[..., : frame.shape[2]] = frame[..., :3]
    return rgb


def masks_by_label(
    labels: np.ndarray, names: Mapping[int, ObjectId], where: str
) -> dict[ObjectId, np.ndarray]:
    """Split a label image into the masks of its objects.

    Args:
        labels: ``[H,W]`` of any type with integer values, 0 on the background.
        names: ids by label; a label without an entry is the id.
        where: name of the image in the error.

    Returns:
        ``[H,W]`` bool by object; labels with the same id are one object.

    Raises:
        DataError: a value is negative or no integer.
    """
    labels = integer_labels(labels, where)
    masks: dict[ObjectId, np.ndarray] = {}
    for label in labels_in(labels):
        object_id = names.get(label, label)
        mask = labels == label
        masks[object_id] = masks[object_id] | mask if object_id in masks else mask
    return masks


def integer_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Return labels as integers.

    Raises:
        DataError: a value is negative or no integer.
    """
    if labels.dtype == bool:
        return labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        with np.errstate(invalid="ignore"):
            integers = labels.astype(np.int64)
        wrong = labels[integers != labels]
        labels = integers
    else:
        wrong = labels[labels < 0] if np.issubdtype(labels.dtype, np.signedinteger) else ()
    if len(wrong) or (labels.size and labels.min() < 0):
        value = wrong[0] if len(wrong) else labels.min()
        raise DataError(
            f"the labels of {visible_text(where)} have the value {value}",
            hint="labels are object numbers, 0 on the background; export a label image, not "
            "intensities or probabilities",
        )
    return labels


def labels_in(labels: np.ndarray) -> list[int]:
    """Return the sorted labels above 0 in an image of non-negative integers."""
    if not labels.size:
        return []
    if int(labels.max()) <= _COUNTED_LABELS:
        return (np.flatnonzero(np.bincount(labels.reshape(-1))[1:]) + 1).tolist()
    return [n for n in np.unique(labels).tolist() if n]


def overlapping(one: np.ndarray, other: np.ndarray) -> list[tuple[int, int, int]]:
    """Count the pixels of every pair of labels of two label images of one size.

    Args:
        one, other: ``[H,W]`` non-negative integers.

    Returns:
        Label in ``one``, label in ``other`` and number of pixels; pairs with a 0 included, except
        for two zeros.
    """
    some = (one > 0) | (other > 0)
    pairs = np.stack([one[some], other[some]]).astype(np.int64)
    base = int(pairs[1].max(initial=0)) + 1
    if int(pairs[0].max(initial=0)) < 2**62 // base:
        keys, counts = np.unique(pairs[0] * base + pairs[1], return_counts=True)
        rows = np.stack([keys // base, keys % base])
    else:  # the product would overflow
        rows, counts = np.unique(pairs, axis=1, return_counts=True)
    return list(zip(rows[0].tolist(), rows[1].tolist(), counts.tolist(), strict=True))


def check_size(path: str | Path, shape: Sequence[int], itemsize: int, limit: int) -> None:
    """Reject an array that is too large to be decoded, before it is decoded.

    Args:
        path: the file, for the error.
        shape: shape of the array.
        itemsize: bytes per value.
        limit: largest allowed number of bytes.

    Raises:
        DataError: the array is larger.
    """
    size = math.prod(shape) * itemsize  # Python integers: a forged shape must not overflow
    if size > limit:
        raise DataError(
            f"{path} has an array of shape {tuple(shape)}, which needs {size / 2**30:.1f} GiB of "
            f"memory, more than the limit of {limit / 2**30:g} GiB",
            hint="crop or split it, or save fewer bits per value",
        )
