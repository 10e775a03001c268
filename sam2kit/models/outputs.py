"""Define what a model returns for a batch of clips.

T frames, O objects, h and w rows and columns of the mask grid (a quarter of the frame's size).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class DecoderStep:
    """What the mask decoder answers for N objects on a frame: first, or after a correction click.

    Attributes:
        frame: position in the clip.
        objects: ``[N]`` int64, positions in the batch's O axis.
        mask_logits: ``[N,M,h,w]`` float32 at a quarter of the frame's size: three masks where the
            prompt is ambiguous, else one. For a mask prompt it is that mask itself, at full size,
            as upstream puts it: 10 inside, -10 outside.
        iou: ``[N,M]`` the IoU that the model predicts for each.
        object_score: ``[N]`` logits.
    """

    frame: int
    objects: Tensor
    mask_logits: Tensor
    iou: Tensor
    object_score: Tensor


@dataclass
class TrackOutput:
    """What a model says of every object on every frame of a :class:`ClipBatch`.

    Attributes:
        mask_logits: ``[T,O,h,w]`` float32 at a quarter of the frame's size; above 0 is the object.
            Where the model calls the object absent, upstream sets all of them to -1024.
        iou: ``[T,O]`` the IoU that the model predicts for its mask, 0 to 1. Of three masks the
            model takes the one of the highest predicted IoU.
        object_score: ``[T,O]`` logits; above 0 the model calls the object visible.
        tracked: ``[T,O]`` bool: from an object's first prompt on. Elsewhere the other fields mean
            nothing (and are 0).
        prompted: ``[T,O]`` bool: frames on which the object was prompted or corrected.
        steps: every answer of the decoder. A frame's last answer is what the other fields hold.
    """

    mask_logits: Tensor
    iou: Tensor
    object_score: Tensor
    tracked: Tensor
    prompted: Tensor
    steps: list[DecoderStep] = field(default_factory=list)

    def masks(self, size: Sequence[int]) -> Tensor:
        """``[T,O,H,W]`` bool at ``size`` (rows, columns); False where an object is not tracked."""
        return (upsample(self.mask_logits, size) > 0) & self.tracked[..., None, None]


def upsample(logits: Tensor, size: Sequence[int]) -> Tensor:
    """``[...,h,w]`` logits bilinearly at ``size``, as upstream brings masks to the frame's size."""
    flat = logits.flatten(0, -3).unsqueeze(1).float()
    resized = torch.nn.functional.interpolate(
        flat, size=list(size), mode="bilinear", align_corners=False
    )
    return resized.squeeze(1).unflatten(0, logits.shape[:-2])
