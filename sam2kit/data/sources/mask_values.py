"""Decide once per dataset what the pixel values of its mask files mean.

The same file may mean different things in different datasets: 255 is the only object of a mask of
0 and 255, and void beside numbered objects. So the values of many masks are read before the first
one is used, and the decision is logged; ``dataset.mask_values`` overrides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from loguru import logger

from sam2kit.data.pictures import Labels, read_labels
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import MASK_ENDINGS
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MIB, read_json, read_text
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import visible_text

# The void label: in palette masks, and in grey masks that also have other ids (as in DAVIS).
VOID = 255
# Grey values above this may be shades of an image or of a soft edge instead of object numbers.
_LARGEST_SAFE_ID = 64
_MAX_COLOURS = 256  # in one mask; a photo or a JPEG has thousands
# Limits of the sample that is read to decide, which takes about a second.
_SAMPLED_MASKS, _SAMPLED_PIXELS = 256, 1 << 27
_WHITE = (255, 65535)
_CITYSCAPES = (
    "parking 250,170,160; rail track 230,150,140; guard rail 180,165,180; bridge 150,100,100; "
    "tunnel 150,120,90; ground 81,0,81; dynamic 111,74,0; caravan 0,0,90; trailer 0,0,110; "
    "road 128,64,128; sidewalk 244,35,232; building 70,70,70; wall 102,102,156; "
    "fence 190,153,153; pole 153,153,153; traffic light 250,170,30; traffic sign 220,220,0; "
    "vegetation 107,142,35; terrain 152,251,152; sky 70,130,180; person 220,20,60; "
    "rider 255,0,0; car 0,0,142; truck 0,0,70; bus 0,60,100; train 0,80,100; "
    "motorcycle 0,0,230; bicycle 119,11,32"
)


@dataclass(frozen=True)
class MaskValues:
    """The meaning of the pixel values of mask files.

    Attributes:
        kind: one of :data:`~sam2kit.config.schema.MASK_VALUES` except auto. Default: ``ids``.
        colours: object or None (background) by colour, as red * 65536 + green * 256 + blue. None:
            each colour is an object, named after it.
        shades: whether grey values above 64 are rejected as the shades of an image.
        known: the values above 64 on which the decision is based. None: any value is accepted.
        is_guess: whether the meaning was inferred from the values of some masks; others may
            contradict it.
        reason: what the decision is based on, for the log and the doctor; "" if there was no
            choice.
    """

    kind: str = "ids"
    colours: Mapping[int, ObjectId | None] | None = None
    shades: bool = True
    known: frozenset[int] | None = None
    is_guess: bool = False
    reason: str = ""

    def read(self, path: Path) -> tuple[np.ndarray, Mapping[int, ObjectId]]:
        """Read the object number of each pixel of a mask file.

        Returns:
            ``[H,W]`` uint8 or int32, 0 where there is no object; and the objects of the mask by
            their numbers.

        Raises:
            DataError: the file cannot be read, or has values that contradict the decision.
        """
        labels = read_labels(path)
        if self.kind == "colours":
            return self._coloured(path, labels)
        if labels.form == "colour" and self.kind not in ("binary", "threshold"):
            raise _colour_error(path)
        form, pixels = labels
        if self.kind == "threshold" and form != "bits":
            if form == "colour":  # the largest channel, as of white on black with JPEG noise
                pixels = np.maximum.reduce([pixels >> 16, (pixels >> 8) & 255, pixels & 255])
            pixels = (pixels >= 128).view(np.uint8)
        # The values are counted once per file, because that takes a tenth of the time of decoding.
        values = [value for value in values_in(pixels) if value]
        if self.kind == "threshold" or form == "bits":
            return pixels, {n: n for n in values}
        if self.kind == "binary":
            if self.is_guess and (others := set(values) - (self.known or set())):
                raise self._contradiction(path, min(others))
            return (pixels > 0).view(np.uint8), {1: 1} if values else {}
        if form == "grey":
            self._reject_shades(path, pixels, values)
        if self.kind == "ids" and form != "deep" and VOID in values:
            pixels = np.where(pixels == VOID, np.uint8(0), pixels)
            values.remove(VOID)
        return pixels, {n: n for n in values}

    def void(self, path: Path) -> np.ndarray | None:
        """Read the void pixels of a mask file as ``[H,W]`` bool; None if it cannot have any."""
        if self.kind not in ("ids", "colours"):
            return None
        form, pixels = read_labels(path)
        if self.kind == "colours":
            is_voc = form == "colour" and self.colours is not None and _VOC_VOID in self.colours
            return pixels == _VOC_VOID if is_voc else None
        return pixels == VOID if form in ("palette", "grey") else None

    def _reject_shades(self, path: Path, pixels: np.ndarray, values: list[int]) -> None:
        """Raise if grey values are the shades of an image, which is anti-aliased or compressed.

        They would otherwise become dozens of tiny objects.
        """
        if self.known is None:
            return
        values = [v for v in values if v > _LARGEST_SAFE_ID and v not in self.known]
        if self.kind == "ids":
            values = [v for v in values if v != VOID]
        if values and (self.shades or 2 * len(thin_values(pixels, values)) > len(values)):
            raise DataError(
                f"{path} has grey values such as {values[0]}, which are shades, not object numbers",
                key="dataset.mask_values",
                value="auto",
                expected="threshold (one object, from 128 on) or ids (each value is an object)",
                hint="write masks as PNG without smoothing, or set this key",
            )

    def _contradiction(self, path: Path, value: int) -> DataError:
        return DataError(
            f"{path} has the value {value}, but {self.reason}",
            key="dataset.mask_values",
            value="auto",
            expected="binary (one object) or ids (each value is an object, 255 is void)",
            hint="set this key",
        )

    def _coloured(self, path: Path, labels: Labels) -> tuple[np.ndarray, Mapping[int, ObjectId]]:
        """Assign numbers from 1 on to the colours of a mask, in the order of their values."""
        form, pixels = labels
        if form in ("grey", "palette"):
            pixels = pixels.astype(np.int32) * 0x10101
        elif form != "colour":
            raise DataError(
                f"{path} has no colours",
                key="dataset.mask_values",
                value="colours",
                expected="ids",
                hint="set this key, or remove the file",
            )
        values = colours_in(pixels)
        if len(values) > _MAX_COLOURS:
            raise _colour_error(path)
        objects: dict[int, ObjectId] = {}
        numbers: dict[int, int] = {}
        for value in values:
            if self.colours is None:
                object_id: ObjectId | None = colour_name(value) if value else None
            elif value in self.colours or not value:
                object_id = self.colours.get(value)
            else:
                raise DataError(
                    f"{path} has the colour {colour_name(value)}, which is not in the colour table",
                    key="dataset.mask_colours",
                    expected="a table of all colours",
                    hint="add it to the table, or set dataset.mask_values=colours and no table",
                )
            if object_id is not None:
                known = next((n for n, o in objects.items() if o == object_id), len(objects) + 1)
                objects[known], numbers[value] = object_id, known
        ids = np.zeros(pixels.shape, np.int32)
        for value, number in numbers.items():
            ids[pixels == value] = number
        return ids, objects


def decide(
    paths: Sequence[Path], kind: str = "auto", colours: str | None = None, where: str = "masks"
) -> MaskValues:
    """Decide what the values of the mask files of a dataset mean.

    Up to :data:`_SAMPLED_MASKS` files are read, until further ones cannot change the decision:

    * masks in colours: each colour is an object. Colours of the palette of PASCAL VOC and DAVIS
      are the object numbers that they stand for;
    * no other values than 0 and 255 (65535 in 16 bits): one object, number 1;
    * otherwise values are object numbers. In masks of 8 bits, 255 is void, unless all numbers are
      above 64 (such as 85, 170 and 255).

    Args:
        paths: mask files to choose from, in a fixed order; those that cannot be read are ignored.
        kind: ``auto`` or another of :data:`~sam2kit.config.schema.MASK_VALUES`.
        colours: colour table (:func:`read_colours`). None (default): no table.
        where: the dataset in the log.

    Raises:
        DataError: the colour table cannot be read.
    """
    if colours is not None:
        return MaskValues("colours", read_colours(colours))
    if kind != "auto":
        return MaskValues(kind, shades=False)
    decision = _decide(_Sample(paths))
    if decision.reason and parent_process() is None:  # each DataLoader worker would log it again
        logger.info("{}: {}", visible_text(where), decision.reason)
    return decision


class MaskDecision:
    """Decide what the mask values of a dataset mean when the first mask is read, and cache it.

    Opening a dataset must not decode pixels. The decision depends only on the files, so every
    process makes the same.

    Args:
        paths, kind, colours, where: as for :func:`decide`.

    Raises:
        DataError: the colour table cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[Path] = (),
        kind: str = "auto",
        colours: str | None = None,
        where: object = "masks",
    ) -> None:
        self._paths, self._where = list(paths), str(where)
        is_open = kind == "auto" and colours is None
        self._values = None if is_open else decide((), kind, colours)

    @property
    def values(self) -> MaskValues:
        """The meaning; the first access reads masks."""
        if self._values is None:
            self._values = decide(self._paths, where=self._where)
        return self._values


@dataclass
class _Sample:
    """Collect the values of a sample of mask files."""

    paths: Sequence[Path]
    forms: set[str] = field(default_factory=set)
    values: set[int] = field(default_factory=set)  # without 0, of files that are not in colours
    colours: set[int] = field(default_factory=set)
    large: int = 0  # grey values above 64, summed over the files
    thin: int = 0  # of these, values of thin seams
    count: int = 0

    def read(self) -> None:
        pixels_left = _SAMPLED_PIXELS
        for k in evenly_spaced(len(self.paths), _SAMPLED_MASKS):
            try:
                form, pixels = read_labels(self.paths[k])
            except DataError:  # raised again when the mask is used
                continue
            self.count += 1
            self._add(form, pixels)
            pixels_left -= pixels.size
            safe = {v for v in self.values if v <= _LARGEST_SAFE_ID}
            if pixels_left < 0 or (safe and form == "palette"):
                return

    def _add(self, form: str, pixels: np.ndarray) -> None:
        if form == "colour":
            self.colours.update(colours_in(pixels)[: 2 * _MAX_COLOURS])
            self.forms.add(form)
            return
        if form == "bits":
            return
        values = [v for v in values_in(pixels) if v]
        if values:
            self.forms.add(form)
        self.values.update(values)
        if form == "grey" and (large := [v for v in values if _LARGEST_SAFE_ID < v != VOID]):
            self.large += len(large)
            self.thin += len(thin_values(pixels, large))


def _decide(sample: _Sample) -> MaskValues:
    sample.read()
    values, count = sample.values, sample.count
    large = frozenset(v for v in values if v > _LARGEST_SAFE_ID)
    if "colour" in sample.forms and values <= {VOID}:
        return _decide_colours(sample)
    shades = 2 * sample.thin > sample.large
    one = next(iter(values)) if len(values) == 1 else 0
    if one in _WHITE and not shades:
        reason = f"the {count} sampled masks have only the values 0 and {one}: one object"
        return MaskValues("binary", known=frozenset(values), is_guess=True, reason=reason)
    if shades:
        return MaskValues(known=frozenset())
    numbers = values - {VOID}
    kind, reason = "ids", ""
    if VOID in values and min(numbers) > _LARGEST_SAFE_ID and sample.forms == {"grey"}:
        kind = "all_ids"
        reason = f"grey values {_some(values)} are object numbers, including 255"
    elif "grey" in sample.forms:
        void = ", 255 is void" if VOID in values else ""
        reason = f"grey values {_some(numbers)} are object numbers{void}"
    elif "deep" in sample.forms:
        reason = f"values {_some(values)} of more than 8 bits are object numbers"
    if reason:
        reason += " (dataset.mask_values)"
    return MaskValues(kind, shades=False, known=large, is_guess=True, reason=reason)


def _decide_colours(sample: _Sample) -> MaskValues:
    colours = sample.colours - {0}
    if len(colours) > _MAX_COLOURS:
        return MaskValues(known=frozenset())  # each file is rejected when it is read
    if colours <= set(_voc_colours()):
        reason = f"colours of the VOC palette, {len(colours)}, are object numbers"
        return MaskValues("colours", _voc_colours(), reason=f"{reason} (dataset.mask_colours)")
    names = ", ".join(map(colour_name, sorted(colours)[:4]))
    reason = f"each of {len(colours)} colours, such as {names}, is an object"
    return MaskValues("colours", reason=f"{reason} (dataset.mask_colours)")


def _some(values: Iterable[int]) -> str:
    """List up to four values: 1, 2, 3 ... 17."""
    ordered = sorted(values)
    if len(ordered) <= 4:
        return ", ".join(map(str, ordered))
    return f"{', '.join(map(str, ordered[:3]))} ... {ordered[-1]}"


def values_in(pixels: np.ndarray) -> list[int]:
    """Return the sorted distinct values of an image of uint8, or of int32 from 0 on.

    A histogram, because ``np.unique`` sorts all pixels, which takes longer than reading the file.
    """
    if pixels.dtype == np.uint8:
        # Most pixels of a mask are 0. Cropping the empty rows and columns makes this far faster.
        x, y, width, height = cv2.boundingRect(pixels)
        visible = pixels[y : y + height, x : x + width]
        histogram = cv2.calcHist([visible], [0], None, [256], [0, 256])
        histogram[0] += pixels.size - visible.size
        return np.flatnonzero(histogram).tolist()
    if pixels.size and pixels.max() < 1 << 16:
        return np.flatnonzero(np.bincount(pixels.reshape(-1))).tolist()
    return np.unique(pixels).tolist()


def looks_like_mask(path: Path) -> bool:
    """Return whether an image looks like a mask: few grey or palette values, 0 among them.

    JPEG files and unreadable files are not examined.
    """
    if path.suffix.lower() not in MASK_ENDINGS:
        return False
    try:
        form, pixels = read_labels(path)
    except DataError:
        return False
    if form == "colour":
        return False
    values = values_in(pixels)
    few = 2 <= len(values) <= _LARGEST_SAFE_ID and values[0] == 0
    return few and 10 * np.count_nonzero(pixels == 0) >= pixels.size


def colours_in(pixels: np.ndarray) -> list[int]:
    """Return the sorted distinct values of packed colours."""
    # Neighbours are mostly equal in a mask; new colours are only where the colour changes.
    flat = pixels.reshape(-1)
    return np.unique(flat[np.flatnonzero(np.diff(flat, prepend=-1))]).tolist()


def thin_values(pixels: np.ndarray, values: Iterable[int]) -> list[int]:
    """Return the values whose regions are nowhere three pixels wide and high."""
    kernel = np.ones((3, 3), np.uint8)
    return [v for v in values if not cv2.erode((pixels == v).astype(np.uint8), kernel).any()]


def colour_name(colour: int) -> str:
    """Return the name of a packed colour: ``#ff0080``."""
    return f"#{colour:06x}"


def davis_palette() -> np.ndarray:
    """Return ``[256,3]`` uint8: the palette of DAVIS, which PASCAL VOC uses too.

    Bits 0, 3 and 6 of a number are the highest bits of its red channel, bits 1, 4 and 7 those of
    green, bits 2 and 5 those of blue.
    """
    numbers = np.arange(256)
    channels = [sum(((numbers >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)


@lru_cache(1)
def _voc_colours() -> dict[int, ObjectId | None]:
    """Map the packed colours of the palette of VOC and DAVIS to numbers; void to None."""
    red, green, blue = davis_palette().astype(int).T
    packed = (red << 16 | green << 8 | blue).tolist()
    return {c: (n if 0 < n < VOID else None) for n, c in enumerate(packed)}


_VOC_VOID = 0xE0E0C0


def read_colours(table: str) -> dict[int, ObjectId | None]:
    """Read a colour table: the object of each packed colour, None for the background.

    Args:
        table: ``voc`` (each colour of the palette of PASCAL VOC is its index), ``cityscapes`` (the
            names of the classes of Cityscapes), a JSON file (``{"cell": [255, 0, 0]}``), or a
            ``labelmap.txt`` of CVAT (lines ``cell:255,0,0::``). Black and the names ``background``
            and ``void`` are background.

    Raises:
        DataError: the file is missing or invalid.
    """
    if table == "voc":
        return _voc_colours()
    try:
        if table == "cityscapes":
            parts = (entry.strip().rpartition(" ") for entry in _CITYSCAPES.split(";"))
            rows: Any = {name: [int(v) for v in rgb.split(",")] for name, _, rgb in parts}
        elif table.lower().endswith(".json"):
            rows = read_json(table)
        else:
            lines = read_text(table, max_bytes=MIB).splitlines()
            cells = [line.split(":") for line in lines if line.strip() and line[0] != "#"]
            rows = {cell[0]: [int(v) for v in cell[1].split(",")] for cell in cells}
        named = msgspec.convert(rows, dict[str, tuple[int, int, int]])
        if any(not 0 <= v <= 255 for rgb in named.values() for v in rgb):
            raise ValueError("a colour has three values from 0 to 255")
    except (OSError, ValueError, IndexError, DataError) as error:
        raise DataError(
            f"the colour table cannot be read: {error}",
            key="dataset.mask_colours",
            value=table,
            expected='voc, cityscapes, a JSON file such as {"cell": [255, 0, 0]} or a labelmap.txt',
            hint="correct the file or the path",
        ) from error
    packed = {name: r << 16 | g << 8 | b for name, (r, g, b) in named.items()}
    empty = ("background", "void")
    return {c: None if not c or n.lower() in empty else n for n, c in packed.items()}


def _colour_error(path: Path) -> DataError:
    return DataError(
        f"{path} is a colour image, and colours are not object numbers",
        key="dataset.mask_values",
        value="auto",
        expected="colours, if each colour is an object",
        hint="save the mask as a palette PNG (pixel = object number), set dataset.mask_colours to "
        "a colour table, or set this key",
    )
