"""Find and read the mask files of one video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from sam2kit.data.pictures import read_labels
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import (
    JPEG_ENDINGS,
    MASK_ENDINGS,
    Listing,
    list_folder,
    same_form,
    stem,
    unpacked,
)
from sam2kit.data.sources.mask_values import MaskDecision, values_in
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_json
from sam2kit.utils.sampling import evenly_spaced

OBJECTS_FILE = "objects.json"
# Kinds of values that survive the compression of JPEG; see MaskValues.
JPEG_KINDS = ("binary", "threshold")
SAMPLED_VIDEOS = 256  # maximum number of videos whose masks are read to decide what values mean


class MaskSample(Protocol):
    """The mask files of one video, of which some can be read to decide what their values mean."""

    decision: MaskDecision

    def sample(self, count: int) -> list[Path]:
        """Return up to ``count`` evenly spaced mask files whose pixels hold object numbers."""


class MaskFiles:
    """Index the mask files of one video: ``FOLDER/FRAME.png`` or ``FOLDER/OBJECT/FRAME.png``.

    In the first layout each pixel stores the number of its object
    (:class:`~sam2kit.data.sources.mask_values.MaskValues`); ``FOLDER/objects.json`` may map numbers
    to ids (:func:`object_names`). In the second layout each object has a folder named by its id
    (``002`` is object 2), and all nonzero pixels belong to the object, so objects may overlap. A
    frame is annotated if it has a mask file of any object; the objects without a file are absent
    there.

    Args:
        folder: the folder of the video's masks.
        num_frames: number of frames of the video.
        frame_index: maps the name of a mask without extension to a frame index, or to None if no
            such frame exists.
        naming_hint: how masks must be named; the hint of the error about masks without a frame.
        jpeg: whether JPEG files are masks too. Their values are inexact, so they can only be
            read as one object.
        files: the masks in the folder, if it also contains other images. None (default): all
            images are masks, or in one folder per object.

    Attributes:
        others: names in the folders that are not masks.
        dropped: paths of JPEG files that are not read as masks.
        decision: the meaning of the pixel values. :func:`share_decision` sets it for a dataset;
            until then it is decided from the masks of the video.

    Raises:
        DataError: no folder, no masks in it, a mask without a frame, two masks of one frame, or
            two folders of one object.
    """

    def __init__(
        self,
        folder: Path,
        num_frames: int,
        frame_index: Callable[[str], int | None],
        naming_hint: str,
        jpeg: bool = False,
        files: Sequence[str] | None = None,
    ) -> None:
        self.folder = folder
        self._jpeg = jpeg
        self._num_frames, self._frame_index, self._hint = num_frames, frame_index, naming_hint
        self.dropped: list[Path] = []
        listing = self._list(folder) if files is None else Listing([*files], [], [])
        self.others = list(listing.others)
        # Per object: its folder, and the file names of all frames joined by "/" ("" for a frame
        # without a mask). One string instead of a list keeps a dataset of millions of masks small.
        self._files: dict[ObjectId | None, tuple[str, str]] = {}
        self._names: dict[int, ObjectId] = {}
        # Mask files directly in the folder decide for the first layout.
        if listing.files:
            if OBJECTS_FILE in listing.others:
                self._names = object_names(folder)
                self.others.remove(OBJECTS_FILE)
            self.others += listing.folders
            self._files[None] = "", self._pack(folder, listing.files)
        else:
            self._add_objects(listing.folders)
        del self._frame_index  # may not be picklable, and is no longer needed
        self.decision = MaskDecision(self.sample(SAMPLED_VIDEOS), where=folder)

    def _add_objects(self, folders: list[str]) -> None:
        """Add one folder per object."""
        for name in sorted(folders):
            object_id: ObjectId = int(name) if name.isdecimal() else name
            if object_id in self._files:
                raise DataError(
                    f"{self.folder}: two folders belong to object {object_id}",
                    hint="keep one of them",
                )
            below = self._list(self.folder / name)
            self.others += below.others + below.folders
            if not below.files:
                raise self._empty(self.folder / name, "add masks or remove the folder")
            self._files[object_id] = name, self._pack(self.folder / name, below.files)
        if not self._files:
            raise self._empty(self.folder, "save masks as PNG files named like the frames")

    def _list(self, folder: Path) -> Listing:
        listing = list_folder(folder, MASK_ENDINGS + JPEG_ENDINGS)
        if self._jpeg:
            return listing
        jpeg = [name for name in listing.files if name.lower().endswith(JPEG_ENDINGS)]
        self.dropped += [folder / name for name in sorted(jpeg)]
        return listing._replace(files=[name for name in listing.files if name not in set(jpeg)])

    def _empty(self, folder: Path, hint: str) -> DataError:
        if not self.dropped:
            return DataError(f"{folder} contains no PNG masks", hint=hint)
        return DataError(
            f"{folder} contains no PNG masks, but JPEG files such as {self.dropped[0].name}, whose "
            "values have been changed by compression",
            key="dataset.mask_values",
            value="auto",
            expected="threshold, if they show one object in white",
            hint="export the masks as PNG, or set this key",
        )

    def _pack(self, folder: Path, files: list[str]) -> str:
        """Sort mask files by frame, and join their names by "/"."""
        slots, orphans = [""] * self._num_frames, []
        for name in files:
            if (t := self._frame_index(same_form(stem(name)))) is None:
                orphans.append(name)
            elif slots[t]:
                raise DataError(
                    f"{folder}: {slots[t]} and {name} are masks of the same frame",
                    hint="keep one of them",
                )
            else:
                slots[t] = name
        if orphans:
            raise DataError(
                f"{folder}: {len(orphans)} masks without a frame of that name, such as "
                f"{min(orphans)}",
                hint=self._hint,
            )
        return "/".join(slots)

    def sample(self, count: int) -> list[Path]:
        """Return up to ``count`` evenly spaced mask files whose pixels hold object numbers."""
        if None not in self._files:
            return []
        below, names = self._files[None]
        files = [name for name in unpacked(names) if name]
        return [self.folder / below / files[k] for k in evenly_spaced(len(files), count)]

    def annotated(self) -> list[int]:
        """Return the indices of the frames that have a mask file, sorted."""
        frames = {
            t for _, names in self._files.values() for t, name in enumerate(unpacked(names)) if name
        }
        return sorted(frames)

    def paths(self, t: int) -> Iterator[tuple[ObjectId | None, Path]]:
        """Yield the mask files of frame ``t`` with their object ids.

        An id of None means that the pixels of the file hold the object numbers.
        """
        for object_id, (below, names) in self._files.items():
            if name := unpacked(names)[t]:
                yield object_id, self.folder / below / name

    def read(self, t: int, frame: str, size: tuple[int, int]) -> dict[ObjectId, np.ndarray] | None:
        """Read the masks of frame ``t``.

        Args:
            t: frame index.
            frame: name of the frame in error messages.
            size: rows and columns of the frame.

        Returns:
            ``[H,W]`` bool per object, or None if the frame is unannotated.

        Raises:
            DataError: a file is not a mask, or its size differs from the frame.
        """
        masks: dict[ObjectId, np.ndarray] = {}
        files = list(self.paths(t))
        for object_id, path in files:
            ids, objects = (
                self.decision.values.read(path) if object_id is None else (_read_object(path), {})
            )
            if ids.shape != size:
                raise DataError(
                    f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, but its frame "
                    f"{frame} has {size[0]} and {size[1]}",
                    hint="export masks at the size of their frames",
                )
            if object_id is None:
                masks |= {self._names.get(n, name): ids == n for n, name in objects.items()}
            else:
                masks[object_id] = ids
        return masks if files else None

    def read_void(self, t: int) -> np.ndarray | None:
        """Read the void pixels of frame ``t`` as ``[H,W]`` bool; None if it cannot have any."""
        for object_id, path in self.paths(t):
            if object_id is None:
                return self.decision.values.void(path)
        return None


def object_names(folder: Path) -> dict[int, ObjectId]:
    """Read the ids of the object numbers in the masks of a video from its ``objects.json``.

    The file (``{"1": "cat"}``) exists if an id is a string, or a number that a pixel cannot store.

    Returns:
        Object ids by their numbers in the masks; ``{}`` without the file.

    Raises:
        DataError: the file cannot be read, or gives two numbers to one id.
    """
    return read_object_names(folder / OBJECTS_FILE)


def read_object_names(path: Path) -> dict[int, ObjectId]:
    """Read a file of object ids by number; see :func:`object_names`."""
    if not path.is_file():
        return {}
    try:
        names = msgspec.convert(read_json(path), dict[int, int | str], str_keys=True)
        if len(set(names.values())) < len(names):
            raise ValueError("two numbers have the same object id")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="export the masks again") from error
    return names


def share_decision(
    mask_files: Sequence[MaskSample], kind: str, colours: str | None, where: object
) -> MaskDecision:
    """Make one decision about the pixel values of all videos of a dataset.

    Args:
        mask_files: the masks of each video.
        kind: ``dataset.mask_values``.
        colours: ``dataset.mask_colours``.
        where: the dataset in the log.

    Raises:
        DataError: the colour table cannot be read.
    """
    count = max(1, -(-SAMPLED_VIDEOS // max(len(mask_files), 1)))
    step = max(1, len(mask_files) // SAMPLED_VIDEOS)
    paths = [path for files in mask_files[::step] for path in files.sample(count)]
    decision = MaskDecision(paths, kind, colours, where)
    for files in mask_files:
        files.decision = decision
    return decision


def _read_object(path: Path) -> np.ndarray:
    """Read the mask of a file with one object as ``[H,W]`` bool."""
    form, pixels = read_labels(path)
    values = [] if form == "colour" else [v for v in values_in(pixels) if v]
    if len(values) > 1:
        raise DataError(
            f"{path} must show one object, but has the values {values[:3]}",
            hint="use 0 and one other value, or save masks of several objects without a folder per "
            "object",
        )
    return pixels > 0
