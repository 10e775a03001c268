"""Convert frame prompts from and to prompt files and stored annotations, and sample them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip import VideoClip, collate
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.data.transforms import resize_masks
from sam2kit.prompts.annotations import ObjectFrame, StoredPrompt
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.geometry import mask_center, rescale_points
from sam2kit.prompts.io import SCHEMA_VERSION
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

Point = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """The prompt of one object on one frame, in pixels of the video's frames.

    Attributes:
        points: x and y of each click.
        labels: 1 for a positive click (on the object), 0 for a negative one (off the object).
        box: x0, y0, x1, y1, inclusive, or None (default).
        base: ``[H,W]`` bool, mask that the clicks refine, or None (default).
        mask: ``[H,W]`` bool, mask prompt that replaces points and box, or None (default).
        provenance: ``click``, ``painted``, ``imported``, ``automatic`` or ``truth``.
        result: mask predicted from points and box, as compressed run lengths, or None (default) for
            a mask prompt or before the prediction.
        correction: whether the object had a tracked mask on the frame when it was prompted.
        model: name of the model that predicted the mask, or None (default) if there is none or it
            is unknown.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    base: np.ndarray | None = None
    mask: np.ndarray | None = None
    provenance: str = "click"
    result: str | None = None
    correction: bool = False
    model: str | None = None

    @property
    def clicked(self) -> bool:
        """Whether there is a click or a box."""
        return bool(self.points) or self.box is not None


def from_entry(
    entry: Mapping[str, Any],
    size: tuple[int, int],
    frame_size: tuple[int, int],
    other: FramePrompt | None = None,
) -> FramePrompt:
    """Convert a checked entry of ``prompts.json`` to a prompt in pixels of the frames.

    Args:
        entry: the entry.
        size: ``image_size`` of the file, to which the coordinates refer.
        frame_size: H and W of the frames.
        other: an earlier entry for the same object and frame, to which points are added, or None
            (default).
    """
    if entry["kind"] == "mask":
        mask = decode_mask(entry["mask"], size)
        if size != frame_size:
            resized = cv2.resize(
                mask.astype(np.uint8), frame_size[::-1], interpolation=cv2.INTER_NEAREST
            )
            mask = resized.astype(bool)
        return FramePrompt(mask=mask, provenance="imported")
    last = np.array([frame_size[1] - 1, frame_size[0] - 1])

    def scaled(values: Any) -> list[Point]:
        points = rescale_points(np.array(values, float).reshape(-1, 2), size, frame_size)
        return [(int(x), int(y)) for x, y in points.round().clip(0, last)]

    if entry["kind"] == "box":
        (x0, y0), (x1, y1) = scaled(entry["box"])
        return FramePrompt(box=(x0, y0, x1, y1))
    previous = FramePrompt() if other is None or other.mask is not None else other
    points, labels = scaled(entry["points"]), [int(label) for label in entry["labels"]]
    return replace(previous, points=(*previous.points, *points), labels=(*previous.labels, *labels))


def decode_stored(counts: str, size: tuple[int, int], video: str, key: ObjectFrame) -> np.ndarray:
    """Decode a stored mask.

    Args:
        counts: compressed run lengths.
        size: H and W of the mask.
        video, key: name of the video, and object and frame, for error messages.

    Returns:
        ``[H,W]`` bool.

    Raises:
        DataError: the mask is damaged.
    """
    try:
        return decode_mask({"size": size, "counts": counts}, size)
    except (ValueError, OverflowError) as error:
        o, t = key
        raise DataError(
            f"the stored mask of object {visible_text(o)} on frame {t} of "
            f"{visible_text(video)!r} is damaged ({error})",
            hint="delete the object, or track it again",
        ) from error


def from_stored(stored: StoredPrompt, size: tuple[int, int], video: str) -> FramePrompt:
    """Convert a stored prompt to a :class:`FramePrompt`.

    Raises:
        DataError: a stored mask is damaged.
    """
    base, mask = (
        None if m is None else decode_stored(m, size, video, (stored.object, stored.frame))
        for m in (stored.base, stored.mask)
    )
    return FramePrompt(
        tuple((x, y) for x, y in stored.points),
        tuple(stored.labels),
        stored.box,
        base,
        mask,
        stored.provenance,
        stored.result,
        stored.correction,
        stored.model,
    )


def to_stored(key: ObjectFrame, prompt: FramePrompt) -> StoredPrompt:
    """Convert the prompt of an object on a frame to stored form."""
    base, mask = (
        None if m is None else encode_mask(m)["counts"] for m in (prompt.base, prompt.mask)
    )
    return StoredPrompt(
        *key,
        prompt.provenance,
        list(prompt.points),
        list(prompt.labels),
        prompt.box,
        base,
        mask,
        prompt.result,
        prompt.correction,
        prompt.model,
    )


def add_centre_click(prompt: FramePrompt) -> FramePrompt:
    """Add a positive click at the centre of the refined mask if all clicks are negative.

    Discs around the negative clicks are removed from the mask before computing its centre. If
    nothing remains, no click is added.
    """
    if prompt.base is None or any(prompt.labels):
        return prompt
    rest = np.array(prompt.base, np.uint8, order="C")
    radius = int(np.sqrt(rest.sum()) / 4)
    for point in prompt.points:
        cv2.circle(rest, point, radius, 0, -1)
    if not rest.any():
        return prompt
    return replace(
        prompt, points=(mask_center(rest > 0), *prompt.points), labels=(1, *prompt.labels)
    )


def to_document(
    prompts: Mapping[ObjectFrame, FramePrompt], video: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the content of ``prompts.json``.

    Args:
        prompts: in pixels of the video's frames.
        video: name of the video.
        size: H and W of its frames.
    """
    entries: list[dict[str, Any]] = []
    for (o, t), prompt in prompts.items():
        head = {"video": video, "object_id": o, "frame_index": t}
        if prompt.mask is not None:
            entries.append(head | {"kind": "mask", "mask": encode_mask(prompt.mask)})
            continue
        if prompt.box is not None:
            entries.append(head | {"kind": "box", "box": list(prompt.box)})
        if prompt.points:
            points = {"points": [list(p) for p in prompt.points], "labels": list(prompt.labels)}
            entries.append(head | {"kind": "point"} | points)
    return {"version": SCHEMA_VERSION, "image_size": list(size), "prompts": entries}


def draw_prompt(
    key: ObjectFrame, mask: np.ndarray, video: str, side: int, recipe: DatasetConfig, seed: int
) -> FramePrompt:
    """Sample a prompt for an object with :class:`~sam2kit.prompts.generator.PromptGenerator`.

    Args:
        key: the object and the frame.
        mask: mask of the object, ``[H,W]`` bool.
        video: name of the video.
        side: side length of the model's input, in whose pixels training samples prompts.
        recipe: settings of the generator.
        seed: random seed.

    Raises:
        DataError: the mask is empty after resizing it to the model's input.
    """
    o, t = key
    resized = resize_masks(torch.from_numpy(mask)[None, None], (side, side))
    if not resized.any():
        raise DataError(
            f"object {o} is not visible on frame {t} at the model's size of {side} x {side} pixels",
            hint="go to a frame on which it is larger",
        )
    frames, annotated = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.ones(1, 1).bool()
    batch = collate([VideoClip(frames, resized, annotated, video, [t], [o])])
    generator = torch.Generator().manual_seed(seed)
    (prompt,) = PromptGenerator.from_config(recipe)(batch, generator)
    if prompt.points is None or prompt.labels is None:
        return FramePrompt(mask=mask)
    last = np.array(mask.shape[::-1]) - 1
    scaled = rescale_points(prompt.points[0].numpy(), (side, side), mask.shape).round().astype(int)
    points = tuple((int(x), int(y)) for x, y in scaled.clip(0, last))
    if prompt.kind == "box":
        return FramePrompt(box=(*points[0], *points[1]))
    return FramePrompt(points, tuple(prompt.labels[0].tolist()))
