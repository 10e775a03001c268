"""Read masks from PNG files: the meaning of pixel values, and the files of one video."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import msgspec
import numpy as np
from PIL import Image

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import Listing, list_folder, stem
from sam2kit.utils.errors import DataError

# The void label: in palette masks, and in grey masks that also have other ids (as in DAVIS).
VOID = 255
OBJECTS_FILE = "objects.json"
WIDE = "I;16"  # begins the name of each Pillow mode of 16 bits
# Grey values above this are shades of an image or of a soft edge, not object numbers.
_LARGEST_GREY_ID = 64


class MaskFiles:
    """Index the mask files of one video: ``FOLDER/FRAME.png`` or ``FOLDER/OBJECT/FRAME.png``.

    In the first layout each pixel holds the number of its object (:func:`read_id_mask`);
    ``FOLDER/objects.json`` may map numbers to ids (:func:`object_names`). In the second layout each
    object has a directory named by its id (``002`` is object 2), and all nonzero pixels belong to
    the object, so objects may overlap. A frame is annotated if it has a mask file of any object;
    the objects without a file are absent there.

    Args:
        folder: the directory of the video's masks.
        num_frames: number of frames of the video.
        frame_index: maps the name of a mask without extension to a frame index, or to None if no
            such frame exists.
        naming_hint: how masks must be named; the hint of the error about masks without a frame.

    Attributes:
        others: names in the directories that are not masks.

    Raises:
        DataError: no directory, no masks in it, a mask without a frame, two masks of one frame, or
            two directories of one object.
    """

    def __init__(
        self,
        folder: Path,
        num_frames: int,
        frame_index: Callable[[str], int | None],
        naming_hint: str,
    ) -> None:
        self.folder = folder
        listing = list_folder(folder, (".png",))
        self.others = list(listing.others)
        # Per object: its directory, and the file names of all frames joined by "/" ("" for a frame
        # without a mask). One string instead of a list keeps a data set of millions of masks small.
        self._files: dict[ObjectId | None, tuple[str, str]] = {}
        self._names: dict[int, ObjectId] = {}

        def pack(folder: Path, listing: Listing) -> str:
            slots, orphans = [""] * num_frames, []
            for name in listing.files:
                if (t := frame_index(stem(name))) is None:
                    orphans.append(name)
                elif slots[t]:
                    raise DataError(
                        f"{folder}: {slots[t]} and {name} are masks of one frame",
                        hint="keep one of them",
                    )
                else:
                    slots[t] = name
            if orphans:
                raise DataError(
                    f"{folder}: {len(orphans)} masks without a frame of that name, such as "
                    f"{min(orphans)}",
                    hint=naming_hint,
                )
            return "/".join(slots)

        # PNG files directly in the directory decide for the first layout.
        if listing.files:
            if OBJECTS_FILE in listing.others:
                self._names = object_names(folder)
                self.others.remove(OBJECTS_FILE)
            self.others += listing.folders
            self._files[None] = "", pack(folder, listing)
            return
        for name in sorted(listing.folders):
            object_id: ObjectId = int(name) if name.isdecimal() else name
            if object_id in self._files:
                raise DataError(
                    f"{folder}: two folders belong to object {object_id}", hint="keep one of them"
                )
            below = list_folder(folder / name, (".png",))
            self.others += below.others + below.folders
            if not below.files:
                raise DataError(
                    f"{folder / name} holds no PNG masks", hint="add masks or remove the folder"
                )
            self._files[object_id] = name, pack(folder / name, below)
        if not self._files:
            raise DataError(
                f"{folder} holds no PNG masks", hint="save masks as PNG files named like the frames"
            )

    def annotated(self) -> list[int]:
        """Return the indices of the frames that have a mask file, sorted."""
        frames = {
            t
            for _, names in self._files.values()
            for t, name in enumerate(names.split("/"))
            if name
        }
        return sorted(frames)

    def paths(self, t: int) -> Iterator[tuple[ObjectId | None, Path]]:
        """Yield the mask files of frame ``t`` with their object ids.

        An id of None means that the pixels of the file hold the object numbers.
        """
        for object_id, (below, names) in self._files.items():
            if name := names.split("/")[t]:
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
            ids = read_id_mask(path) if object_id is None else _read_object(path)
            if ids.shape != size:
                raise DataError(
                    f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, but its frame "
                    f"{frame} has {size[0]} and {size[1]}",
                    hint="export masks at the size of their frames",
                )
            if object_id is None:
                masks |= {self._names.get(n, n): ids == n for n in values_in(ids) if n != 0}
            else:
                masks[object_id] = ids
        return masks if files else None

    def read_void(self, t: int) -> np.ndarray | None:
        """Read the void pixels of frame ``t`` as ``[H,W]`` bool; None if it cannot have any."""
        for object_id, path in self.paths(t):
            if object_id is None:
                mode, pixels = _read_pixels(path)
                # In a grey mask of 0 and 255 only, 255 is the object.
                grey = mode == "L" and bool(((pixels > 0) & (pixels < VOID)).any())
                return pixels == VOID if mode == "P" or grey else None
        return None


def object_names(folder: Path) -> dict[int, ObjectId]:
    """Read the ids of the object numbers in the masks of a video from its ``objects.json``.

    The file (``{"1": "cat"}``) exists if an id is a string, or a number that a pixel cannot hold.

    Returns:
        Object ids by their numbers in the masks; ``{}`` without the file.

    Raises:
        DataError: the file cannot be read, or gives two numbers to one id.
    """
    path = folder / OBJECTS_FILE
    if not path.is_file():
        return {}
    try:
        names = msgspec.convert(json.loads(path.read_text()), dict[int, int | str], str_keys=True)
        if len(set(names.values())) < len(names):
            raise ValueError("two numbers have the same object id")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="export the masks again") from error
    return names


def read_id_mask(path: Path) -> np.ndarray:
    """Read the object number of each pixel.

    * palette PNG: the pixel is the object number, 0 is background, 255 is void;
    * grey PNG of 0 and 255 only, or 1-bit PNG: one object, number 1;
    * other grey PNG with values up to 64: as a palette PNG, where 255 is void;
    * 16-bit grey PNG: the pixel is the object number, 0 is background, and no value is void.

    Returns:
        ``[H,W]`` uint8, or uint16 for 16 bits; 0 is background or void.

    Raises:
        DataError: a file that is damaged, has colours, or is a grey image with shades.
    """
    mode, pixels = _read_pixels(path)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode.startswith(WIDE):
        return pixels.astype(np.uint16)
    if mode == "L":
        values = values_in(pixels)
        if set(values) <= {0, VOID}:
            return (pixels == VOID).astype(np.uint8)
        # Anti-aliased or JPEG-compressed masks would otherwise become dozens of tiny objects.
        shades = [v for v in values if _LARGEST_GREY_ID < v != VOID]
        if shades:
            raise DataError(
                f"{path} has grey values such as {shades[0]}, which are shades, not object numbers",
                hint=f"use 0 and 255 for one object, or object numbers up to {_LARGEST_GREY_ID}",
            )
    return np.where(pixels == VOID, 0, pixels).astype(np.uint8)


def values_in(pixels: np.ndarray) -> list[int]:
    """Return the sorted distinct values of a uint8 or uint16 image.

    A histogram, because ``np.unique`` sorts all pixels, which takes longer than reading the file.
    """
    if pixels.dtype == np.uint16:
        return np.flatnonzero(np.bincount(pixels.ravel())).tolist()
    return np.flatnonzero(cv2.calcHist([pixels], [0], None, [256], [0, 256])).tolist()


def _read_object(path: Path) -> np.ndarray:
    """Read the mask of a file with one object as ``[H,W]`` bool."""
    _, pixels = _read_pixels(path)
    dtype = np.uint8 if pixels.dtype == bool else pixels.dtype
    values = [v for v in values_in(pixels.astype(dtype)) if v]
    if len(values) > 1:
        raise DataError(
            f"{path} must show one object, but has the values {values[:3]}",
            hint="use 0 and one other value, or save masks of several objects without a folder per "
            "object",
        )
    return pixels > 0


def _read_pixels(path: Path) -> tuple[str, np.ndarray]:
    """Return the Pillow mode of a mask and its pixels.

    Returns:
        P, L, 1, or a mode of 16 bits; and ``[H,W]`` uint8, bool or uint16.
    """
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise DataError(
            f"{path} cannot be read as a mask: {error}", hint="replace the file"
        ) from error
    if mode not in ("P", "L", "1") and not mode.startswith(WIDE):
        raise DataError(
            f"{path} is an image of mode {mode}",
            hint="colours are not object numbers. Save the mask as a palette PNG (pixel = object "
            "number), or as a grey PNG of 0 and 255 for one object",
        )
    return mode, pixels
