"""Masks as PNG files: what their pixels mean, and the files of one video."""

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

# In palette masks, and in grey ones beside other ids, 255 marks pixels that nobody decided on.
VOID = 255
OBJECTS_FILE = "objects.json"
# Grey values above this are shades of a picture or of a soft edge, not numbers of objects.
_LARGEST_GREY_ID = 64


class MaskFiles:
    """The mask files of one video: ``FOLDER/FRAME.png``, or ``FOLDER/OBJECT/FRAME.png``.

    In the first layout the pixels say which object they show (:func:`read_id_mask`), by number or,
    where ``FOLDER/objects.json`` names that number, by name (:func:`object_names`). In the second
    each object has a folder, which names it (a number where the name is one: ``002`` is object 2),
    and the pixels that are not 0 are the object; objects may overlap. A frame is annotated where
    there is a file for it, of any object; an object without one there is absent.

    Args:
        folder: where they are.
        num_frames: frames of the video.
        place: the frame's number by the name of a mask without ending; None: there is no such
            frame.
        expected: ends the message about masks of no frame: how they are named.

    Attributes:
        others: names in the folders that are no masks.

    Raises:
        DataError: no folder, no masks in it, a mask without its frame, two for one frame, two
            folders of one object.
    """

    def __init__(
        self, folder: Path, num_frames: int, place: Callable[[str], int | None], expected: str
    ) -> None:
        self.folder = folder
        found = list_folder(folder, (".png",))
        self.others = list(found.others)
        # One text for each object, the names of its files parted by "/", "" where there is none:
        # a list of names for each video of a large data set would fill the memory.
        self._files: dict[ObjectId | None, tuple[str, str]] = {}
        self._names: dict[int, ObjectId] = {}

        def pack(folder: Path, found: Listing) -> str:
            slots, orphans = [""] * num_frames, []
            for name in found.files:
                if (t := place(stem(name))) is None:
                    orphans.append(name)
                elif slots[t]:
                    raise DataError(
                        f"{folder}: {slots[t]} and {name} are masks of one frame; keep one"
                    )
                else:
                    slots[t] = name
            if orphans:
                raise DataError(
                    f"{folder}: {len(orphans)} masks without a frame of that name, such as "
                    f"{min(orphans)}; {expected}"
                )
            return "/".join(slots)

        if found.files:
            if OBJECTS_FILE in found.others:
                self._names = object_names(folder)
                self.others.remove(OBJECTS_FILE)
            self.others += found.folders
            self._files[None] = "", pack(folder, found)
            return
        for name in sorted(found.folders):
            owner: ObjectId = int(name) if name.isdecimal() else name
            if owner in self._files:
                raise DataError(f"{folder}: two folders are of object {owner}; keep one of them")
            below = list_folder(folder / name, (".png",))
            self.others += below.others + below.folders
            if not below.files:
                raise DataError(f"{folder / name} holds no PNG masks; add them, or remove it")
            self._files[owner] = name, pack(folder / name, below)
        if not self._files:
            raise DataError(f"{folder} holds no PNG masks; masks are PNG files named as the frames")

    def paths(self, t: int) -> Iterator[tuple[ObjectId | None, Path]]:
        """The files of frame ``t`` with their objects; None: the pixels say which."""
        for owner, (below, names) in self._files.items():
            if name := names.split("/")[t]:
                yield owner, self.folder / below / name

    def read(self, t: int, frame: str, size: tuple[int, int]) -> dict[ObjectId, np.ndarray] | None:
        """The masks of frame ``t`` by object, None where nobody annotated it.

        Args:
            frame: what to call the frame in messages.
            size: its rows and columns.

        Raises:
            DataError: a file that is no mask, or not of the frame's size.
        """
        masks: dict[ObjectId, np.ndarray] = {}
        files = list(self.paths(t))
        for owner, path in files:
            ids = read_id_mask(path) if owner is None else _read_object(path)
            if ids.shape != size:
                raise DataError(
                    f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, its frame {frame} "
                    f"{size[0]} and {size[1]}; masks must have their frame's size"
                )
            if owner is None:
                masks |= {self._names.get(n, n): ids == n for n in values_in(ids) if n != 0}
            else:
                masks[owner] = ids
        return masks if files else None

    def read_void(self, t: int) -> np.ndarray | None:
        """Where frame ``t`` has pixels that nobody decided on, as ``[H,W]`` bool."""
        for owner, path in self.paths(t):
            if owner is None:
                mode, pixels = _read_pixels(path)
                # In grey masks of 0 and 255 alone the latter is the object.
                grey = mode == "L" and bool(((pixels > 0) & (pixels < VOID)).any())
                return pixels == VOID if mode == "P" or grey else None
        return None


def object_names(folder: Path) -> dict[int, ObjectId]:
    """The objects by their numbers in the masks of a video, where they had to be numbered.

    That is so where an id is a text, or a number that no pixel can have; ``objects.json`` beside
    the masks then says which is which (``{"1": "cat"}``). Without one the names are {}.

    Raises:
        DataError: the file cannot be read, or gives one id two numbers.
    """
    path = folder / OBJECTS_FILE
    if not path.is_file():
        return {}
    try:
        names = msgspec.convert(json.loads(path.read_text()), dict[int, int | str], str_keys=True)
        if len(set(names.values())) < len(names):
            raise ValueError("two numbers stand for one object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; write the masks again") from error
    return names


def read_id_mask(path: Path) -> np.ndarray:
    """``[H,W]`` uint8: the object at each pixel, 0 where there is none (or void).

    * palette PNG: the pixel is the object, 0 is background, 255 is void;
    * grey PNG of 0 and 255 only (and 1-bit PNG): one object, number 1;
    * grey PNG with values up to 64: the pixel is the object, 255 beside them is void.

    Raises:
        DataError: damaged, in colour, of 16 bits, or a grey picture that is no mask.
    """
    mode, pixels = _read_pixels(path)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode == "L":
        values = values_in(pixels)
        if set(values) <= {0, VOID}:
            return (pixels == VOID).astype(np.uint8)
        shades = [v for v in values if _LARGEST_GREY_ID < v != VOID]
        if shades:
            raise DataError(
                f"{path} has grey values such as {shades[0]}: shades, not object numbers; use "
                f"0 and 255 for one object, or numbers up to {_LARGEST_GREY_ID}"
            )
    return np.where(pixels == VOID, 0, pixels).astype(np.uint8)


def values_in(pixels: np.ndarray) -> list[int]:
    """The values of a uint8 picture in order; ``np.unique`` sorts all pixels, which takes longer
    than reading the file."""
    return np.flatnonzero(cv2.calcHist([pixels], [0], None, [256], [0, 256])).tolist()


def _read_object(path: Path) -> np.ndarray:
    """``[H,W]`` bool: the one object of a file."""
    _, pixels = _read_pixels(path)
    shown = [v for v in values_in(pixels.astype(np.uint8)) if v]
    if len(shown) > 1:
        raise DataError(
            f"{path} shows one object and has the values {shown[:3]}; write 0 beside one other "
            "value, or masks of several objects without a folder for each"
        )
    return pixels > 0


def _read_pixels(path: Path) -> tuple[str, np.ndarray]:
    """Mode and pixels of a mask: P, L (uint8) or 1 (bool)."""
    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{path} cannot be read as a mask: {error}; replace the file") from error
    if mode not in ("P", "L", "1"):
        what = "has 16 bits a pixel" if mode.startswith("I") else f"is a picture of mode {mode}"
        raise DataError(
            f"{path} {what}; colours are not object numbers. Save the mask as a palette PNG (the "
            "pixel is the object's number) or as grey 0 and 255 for one object"
        )
    return mode, pixels
