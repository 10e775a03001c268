"""Encode and decode single masks: COCO polygons and run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools import mask as mask_utils

from sam2kit.utils.errors import DataError


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """``[H,W]`` bool as COCO's run lengths: ``size`` and ``counts``."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """COCO's run lengths as ``[H,W]`` bool.

    Raises:
        ValueError: of another size, or they do not fill it.
    """
    if list(encoded["size"]) != list(size):
        raise ValueError(f"its size is {encoded['size']}, not {list(size)}")
    counts = encoded["counts"].encode("ascii")
    decoded = coco_mask.decode({"size": list(size), "counts": counts})
    # Runs that end too early leave the rest of the decoder's memory as it was, without an error.
    if coco_mask.encode(np.asfortranarray(decoded))["counts"] != counts:
        raise ValueError("its run lengths do not fill the frame")
    return decoded.astype(bool)


_LONGEST_NUMBER = 8  # groups of five bits; more would be a run of 2**40 pixels


def decode(segmentation: Any, size: tuple[int, int] | None, where: str) -> np.ndarray:
    """``[H,W]`` bool from COCO polygons or run lengths.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, all of one object, or ``{"size":
            [H, W], "counts": ...}`` with a list of run lengths (down the columns) or COCO's
            compressed text.
        size: rows and columns of the frame; None: what the run lengths say.
        where: begins the message of an error.

    Raises:
        DataError: not of these forms, damaged, or not of the frame's size.
    """
    try:
        if isinstance(segmentation, list):
            return _fill(segmentation, size)
        stated, counts = tuple(segmentation["size"]), segmentation["counts"]
        if stated != (size or stated):
            raise ValueError(f"its size {list(stated)} is not the frame's {list(size or ())}")
        if not isinstance(counts, (list, str)):
            raise TypeError(f"its counts are {counts!r}, neither a list nor a text")
        height, width = stated
        pixels = height * width
        lengths = np.asarray(run_lengths(counts) if isinstance(counts, str) else counts)
        whole = lengths.dtype.kind == "i" and ((lengths >= 0) & (lengths <= pixels)).all()
        # pycocotools fills what the runs leave open with whatever the memory holds.
        if not whole or lengths.sum() != pixels:
            raise ValueError(
                "its runs must be whole numbers, 0 or more, and add up to "
                f"{pixels} pixels, not {sum(lengths.tolist())}"
            )
        if isinstance(counts, list):
            segmentation = mask_utils.frPyObjects(segmentation, height, width)
        return mask_utils.decode(segmentation).astype(bool)
    except KeyError as error:
        raise DataError(f"{where}: 'segmentation' has no {error}; export it again") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where}: 'segmentation' cannot be used: {error}; export it again"
        ) from error


def _fill(polygons: list[Any], size: tuple[int, int] | None) -> np.ndarray:
    if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons):
        raise ValueError("polygons need three points or more, as x0, y0, x1, y1, ...")
    if size is None:
        raise ValueError("polygons need a frame's size, and its image has no 'height' and 'width'")
    # pycocotools walks along each edge pixel by pixel, however far it leads.
    if not all(np.all(np.abs(np.asarray(p, float)) < 10 * (sum(size) + 100)) for p in polygons):
        raise ValueError(
            f"a corner lies far outside the frame of {size[0]} rows, {size[1]} columns"
        )
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygons, *size))).astype(bool)


def run_lengths(text: str) -> np.ndarray:
    """``[N]`` int64: the run lengths in COCO's compressed text.

    Each number is written in groups of five bits, lowest first, as characters from "0" on; bit 5
    says that another group follows, bit 4 of the last is the sign. From the fourth number on it is
    the difference from the number two places before (the format of pycocotools' ``maskApi.c``).

    Raises:
        ValueError: the text ends within a number or has other characters.
    """
    groups = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return groups
    foreign = np.flatnonzero((groups < 0) | (groups >= 64))
    if len(foreign):
        raise ValueError(f"its counts have the character {text[foreign[0]]!r}")
    last = np.flatnonzero(groups & 32 == 0)
    if groups[-1] & 32:
        raise ValueError("its counts end within a number")
    first = np.concatenate([[0], last[:-1] + 1])
    count = last - first + 1
    if count.max() > _LONGEST_NUMBER:
        raise ValueError("its counts have a number of too many characters")
    place = np.arange(len(groups)) - np.repeat(first, count)
    lengths = np.add.reduceat((groups & 31) << (5 * place), first)
    lengths -= np.where(groups[last] & 16, 1 << (5 * count), 0)
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths
