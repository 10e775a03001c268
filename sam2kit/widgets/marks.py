"""What was pointed at by hand, as prompts in a file and as training would draw it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip import VideoClip, collate
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.transforms import resize_masks
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.io import SCHEMA_VERSION
from sam2kit.utils.errors import DataError

Point = tuple[int, int]
Box = tuple[int, int, int, int]
Place = tuple[ObjectId, int]
"""An object and a frame."""


@dataclass(frozen=True, eq=False)
class Mark:
    """What was pointed at for one object on one frame, in pixels of the video's frames.

    Attributes:
        points: x and y.
        labels: 1 on the object, 0 beside it.
        box: x0, y0, x1, y1, inclusive.
        base: ``[H,W]`` bool that the clicks refine.
        mask: ``[H,W]`` bool that is the prompt in place of the rest.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    base: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def clicked(self) -> bool:
        return bool(self.points) or self.box is not None


def to_document(marks: Mapping[Place, Mark], video: str, size: tuple[int, int]) -> dict[str, Any]:
    """The content of ``prompts.json``, in pixels of the video's frames, which have ``size``."""
    entries: list[dict[str, Any]] = []
    for (o, t), mark in marks.items():
        place = {"video": video, "object_id": o, "frame_index": t}
        if mark.mask is not None:
            entries.append(place | {"kind": "mask", "mask": encode_mask(mark.mask)})
            continue
        if mark.box is not None:
            entries.append(place | {"kind": "box", "box": list(mark.box)})
        if mark.points:
            points = {"points": [list(p) for p in mark.points], "labels": list(mark.labels)}
            entries.append(place | {"kind": "point"} | points)
    return {"version": SCHEMA_VERSION, "image_size": list(size), "prompts": entries}


def draw_mark(
    place: Place, mask: np.ndarray, video: str, side: int, recipe: DatasetConfig, seed: int
) -> Mark:
    """What :class:`~sam2kit.prompts.generator.PromptGenerator` gives for an object on a frame.

    Args:
        mask: ``[H,W]`` bool, of the object.
        side: rows and columns of the model's frames, in whose pixels training draws.

    Raises:
        DataError: nothing of the object is left at that size.
    """
    o, t = place
    shown = resize_masks(torch.from_numpy(mask)[None, None], (side, side))
    if not shown.any():
        raise DataError(f"object {o} is not seen on frame {t} at {side} pixels a side")
    frames, annotated = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.ones(1, 1).bool()
    batch = collate([VideoClip(frames, shown, annotated, video, [t], [o])])
    generator = torch.Generator().manual_seed(seed)
    (prompt,) = PromptGenerator.from_config(recipe)(batch, generator)
    if prompt.points is None or prompt.labels is None:
        return Mark(mask=mask)
    size = np.array(mask.shape[::-1])
    places = ((prompt.points[0].numpy() + 0.5) * size / side - 0.5).round().astype(int)
    points = tuple((int(x), int(y)) for x, y in places.clip(0, size - 1))
    if prompt.kind == "box":
        return Mark(box=(*points[0], *points[1]))
    return Mark(points, tuple(prompt.labels[0].tolist()))
