"""Read a label image: a picture whose pixel values are numbers of objects."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from sam2kit.data.pictures import opened
from sam2kit.data.sources.base import ObjectId
from sam2kit.utils.errors import DataError

MAX_LABELS = 2000  # an image with more values is no label image


def read_label_image(file: str | Path | bytes, size: tuple[int, int]) -> dict[ObjectId, np.ndarray]:
    """Read one mask per nonzero value of a label image.

    Args:
        file: a palette, grey or 16-bit PNG or a TIFF of one page, or its bytes.
        size: expected H and W.

    Returns:
        ``[H,W]`` bool by value, in ascending order.

    Raises:
        DataError: the image cannot be read, has colours, another size, negative values, fractions,
            no object, or more than :data:`MAX_LABELS` objects.
    """
    name = "the label image" if isinstance(file, bytes) else str(file)
    labels = _read_pixels(file, name)
    invalid = partial(_invalid, name)
    if labels.ndim == 3 and (labels == labels[..., :1]).all():
        labels = labels[..., 0]  # a grey image that was saved with three equal channels
    if labels.ndim != 2:
        raise invalid(f"it has {labels.shape[-1]} channels", "one number per pixel")
    if labels.shape != size:
        raise invalid(
            f"it has {labels.shape[0]} rows and {labels.shape[1]} columns",
            f"{size[0]} rows and {size[1]} columns, as the frames",
        )
    values, inverse = np.unique(labels, return_inverse=True)
    if not np.isfinite(values).all() or (values < 0).any() or (values != values.round()).any():
        raise invalid("it has negative values or fractions", "whole numbers, 0 for background")
    if len(values) - (values[0] == 0) > MAX_LABELS:
        raise invalid(f"it has {len(values)} values", f"up to {MAX_LABELS} objects")
    if not values.any():
        raise invalid("all its pixels are 0", "a number above 0 on each object")
    inverse = inverse.reshape(labels.shape)
    return {int(value): inverse == n for n, value in enumerate(values) if value}


def _read_pixels(file: str | Path | bytes, name: str) -> np.ndarray:
    with opened(file, "a label image", name) as image:
        if (pages := getattr(image, "n_frames", 1)) > 1:
            raise _invalid(name, f"it has {pages} pages", "a single page", _ONE_PAGE)
        # The values of a palette image are the labels; its colours are arbitrary.
        return np.asarray(image).astype(np.float64 if image.mode == "F" else np.int64)


_EXPORT = "export one number per object, at the size of the frames"
_ONE_PAGE = "save the page of the frame to prompt as a file of its own"


def _invalid(name: str, problem: str, expected: str, hint: str = _EXPORT) -> DataError:
    return DataError(
        f"{name} cannot be used as a label image: {problem}, but {expected} is expected",
        key="file",
        hint=hint,
    )
