"""Encode and decode single masks: COCO polygons and run lengths."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam2kit.utils.errors import DataError

# The text of COCO's run lengths: each number is one to eight groups of five bits, lowest first, as
# characters from "0" on. A higher bit says that another group follows.
_COUNTS = re.compile("(?:[P-o]{0,7}[0-O])*")


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode ``[H,W]`` bool as COCO's run lengths: ``size`` and compressed ``counts``."""
    return encode_masks(mask[None])[0]


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encode ``[O,H,W]`` bool as O COCO run lengths: ``size`` and compressed ``counts``."""
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))
    return [{"size": list(e["size"]), "counts": e["counts"].decode("ascii")} for e in encoded]


def decode_mask(runs: Any, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Decode COCO's run lengths to ``[H,W]`` bool.

    Args:
        runs: ``{"size": [H, W], "counts": ...}`` with a list of run lengths (down the columns) or
            COCO's compressed text.
        size: expected rows and columns. None (default): any.

    Raises:
        KeyError: ``size`` or ``counts`` is missing.
        TypeError, ValueError, OverflowError: a value of another form, another size, or runs that
            do not fill the frame.
    """
    height, width = runs["size"]
    counts = runs["counts"]
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"its size {[height, width]} is not the frame's {list(size)}")
    if not isinstance(counts, (list, str)):
        raise TypeError(f"its counts are {counts!r}, neither a list nor a text")
    pixels = height * width
    lengths = np.asarray(_run_lengths(counts) if isinstance(counts, str) else counts)
    whole = lengths.dtype.kind == "i" and ((lengths >= 0) & (lengths <= pixels)).all()
    # Where the runs end early, pycocotools leaves the rest of its memory as it was; where they
    # exceed the frame, it raises and never frees the mask.
    if not whole or lengths.sum() != pixels:
        raise ValueError(
            "its runs must be whole numbers, 0 or more, and add up to "
            f"{pixels} pixels, not {sum(lengths.tolist())}"
        )
    encoded = {"size": [height, width], "counts": counts}
    if isinstance(counts, list):
        encoded = coco_mask.frPyObjects(encoded, height, width)
    return coco_mask.decode(encoded).view(bool)


def _run_lengths(text: str) -> np.ndarray:
    """Decode COCO's compressed text to ``[N]`` int64 (the format of ``maskApi.c``)."""
    if not _COUNTS.fullmatch(text):
        raise ValueError(f"its counts {text[:20]!r} are not COCO's: cut off, or other characters")
    groups = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(groups & 32 == 0)
    size = np.diff(last, prepend=-1)
    place = np.arange(len(groups)) - np.repeat(last - size + 1, size)
    lengths = np.add.reduceat((groups & 31) << (5 * place), last - size + 1) if text else groups
    lengths -= np.where(groups[last] & 16, 1 << (5 * size), 0)  # the sign
    # From the fourth number on it is the difference from the number two places before.
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def decode(segmentation: Any, size: tuple[int, int] | None, where: str) -> np.ndarray:
    """Decode COCO polygons or run lengths to ``[H,W]`` bool.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, all of one object, or run
            lengths (:func:`decode_mask`).
        size: rows and columns of the frame. None: as the run lengths say.
        where: the start of error messages.

    Raises:
        DataError: not of these forms, damaged, or not of the frame's size.
    """
    try:
        if isinstance(segmentation, list):
            return _fill(segmentation, size)
        return decode_mask(segmentation, size)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else f"cannot be used: {error}"
        raise DataError(f"{where}: 'segmentation' {fault}; export it again") from error


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
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)
