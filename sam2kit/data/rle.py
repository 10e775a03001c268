"""Encode and decode single masks as COCO polygons and run lengths."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MAX_PIXELS

# COCO's compressed run lengths: each number is one to eight groups of five bits, lowest group
# first, stored as characters from "0" on. The sixth bit means that another group follows.
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
        runs: ``{"size": [H, W], "counts": ...}`` with a list of run lengths (in column-major order)
            or COCO's compressed text.
        size: expected rows and columns. None (default): any size.

    Raises:
        KeyError: ``size`` or ``counts`` is missing.
        TypeError, ValueError, OverflowError: a value of the wrong type, another size, or runs that
            do not fill the frame.
    """
    height, width = runs["size"]
    counts = runs["counts"]
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"its size {[height, width]} is not the frame's {list(size)}")
    if not isinstance(counts, (list, str)):
        raise TypeError(f"its counts are {counts!r}, neither a list nor a string")
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise ValueError(f"its size {[height, width]} has more than {MAX_PIXELS} pixels")
    lengths = np.asarray(_run_lengths(counts) if isinstance(counts, str) else counts)
    whole = lengths.dtype.kind == "i" and ((lengths >= 0) & (lengths <= pixels)).all()
    # Checked here, because pycocotools leaves uninitialised memory in the mask if the runs end
    # early, and leaks the mask if they exceed the frame.
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
        raise ValueError(f"its counts {text[:20]!r} are truncated or contain invalid characters")
    groups = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    # All numbers are decoded at once, without a Python loop over the groups.
    last = np.flatnonzero(groups & 32 == 0)  # position of the last group of each number
    size = np.diff(last, prepend=-1)
    digit = np.arange(len(groups)) - np.repeat(last - size + 1, size)  # position within its number
    lengths = np.add.reduceat((groups & 31) << (5 * digit), last - size + 1) if text else groups
    lengths -= np.where(groups[last] & 16, 1 << (5 * size), 0)  # two's complement
    # From the fourth number on, the difference from the number two positions before is stored.
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    return lengths


def decode(segmentation: Any, size: tuple[int, int] | None, where: str) -> np.ndarray:
    """Decode COCO polygons or run lengths to ``[H,W]`` bool.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, all of one object, or run
            lengths (:func:`decode_mask`).
        size: rows and columns of the frame. None: the size stored with the run lengths.
        where: name of the annotation, to start error messages with.

    Raises:
        DataError: neither polygons nor run lengths, damaged, or not of the frame's size.
    """
    try:
        if isinstance(segmentation, list):
            return _fill(segmentation, size)
        return decode_mask(segmentation, size)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        problem = f"has no {error}" if isinstance(error, KeyError) else f"is invalid: {error}"
        raise DataError(
            f"{where}: 'segmentation' {problem}", hint="export the annotation again"
        ) from error


def _fill(polygons: list[Any], size: tuple[int, int] | None) -> np.ndarray:
    """Rasterise the union of polygons to ``[H,W]`` bool."""
    if not polygons or any(len(p) < 6 or len(p) % 2 for p in polygons):
        raise ValueError("polygons need three points or more, as x0, y0, x1, y1, ...")
    if size is None:
        raise ValueError(
            "polygons need the size of the frame, and its image has no 'height' and 'width'"
        )
    # pycocotools walks along each edge pixel by pixel, so a far corner would take hours.
    if not all(np.all(np.abs(np.asarray(p, float)) < 10 * (sum(size) + 100)) for p in polygons):
        raise ValueError(
            f"a corner is far outside the frame of {size[0]} rows and {size[1]} columns"
        )
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))).astype(bool)
