"""Define the output of a model for a batch of clips.

T frames, O objects, h and w rows and columns of the mask grid (a quarter of the frame's size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class DecoderStep:
    """The mask decoder's output for N objects on a frame, initially or after a correction click.

    Attributes:
        frame: position in the clip.
        objects: ``[N]`` int64, positions in the batch's O axis.
        mask_logits: ``[N,M,h,w]`` float32 at a quarter of the frame's size: M=3 masks for an
            ambiguous prompt, otherwise M=1. For a mask prompt it is the prompted mask itself, at
            full size, with upstream's logits: 10 inside, -10 outside.
        iou: ``[N,M]`` predicted IoU of each mask, 0 to 1.
        object_score: ``[N]`` logits.
        indices: ``objects`` as a list, to avoid a copy from the device. Empty (default): unknown.
    """

    frame: int
    objects: Tensor
    mask_logits: Tensor
    iou: Tensor
    object_score: Tensor
    indices: list[int] = field(default_factory=list)


@dataclass
class TrackOutput:
    """The prediction for every object on every frame of a :class:`~sam2kit.data.clip.ClipBatch`.

    Attributes:
        mask_logits: ``[T,O,h,w]`` float32 at a quarter of the frame's size; the object is where
            they are above 0. If the model predicts that the object is absent, upstream sets all of
            them to -1024.
        iou: ``[T,O]`` predicted IoU of the mask, 0 to 1. Of three masks the model selects the one
            with the highest predicted IoU.
        object_score: ``[T,O]`` logits; above 0 the object is predicted to be visible.
        tracked: ``[T,O]`` bool: True from the object's first prompt on. Where it is False, the
            other fields are 0 and have no meaning.
        prompted: ``[T,O]`` bool: True where the object was prompted or corrected.
        steps: all outputs of the decoder. The other fields hold the last one of each frame.
        host_tracked: ``tracked`` in main memory. None (default): unknown.
    """

    mask_logits: Tensor
    iou: Tensor
    object_score: Tensor
    tracked: Tensor
    prompted: Tensor
    steps: list[DecoderStep] = field(default_factory=list)
    host_tracked: Tensor | None = None

    def tracked_on_host(self) -> Tensor:
        """Return ``tracked`` in main memory, without waiting for the device if possible."""
        return self.tracked.cpu() if self.host_tracked is None else self.host_tracked

    def masks(self, size: Sequence[int]) -> Tensor:
        """Threshold the masks at a given size.

        Args:
            size: H and W, rows and columns.

        Returns:
            ``[T,O,H,W]`` bool; False where an object is not tracked.
        """
        return (upsample(self.mask_logits, size) > 0) & self.tracked[..., None, None]


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Resize logits ``[...,h,w]`` bilinearly to ``size`` (rows, columns), as upstream does."""
    flat = logits.flatten(0, -3).unsqueeze(1).float()
    resized = torch.nn.functional.interpolate(
        flat, size=list(size), mode="bilinear", align_corners=False
    )
    return resized.squeeze(1).unflatten(0, logits.shape[:-2])
