"""What a tracker keeps of a video: for each object, the memories that attention may still read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from sam2kit.tracking.options import TrackerOptions


@dataclass(eq=False)
class Memory:
    """What one object keeps of one frame; of frames farther back, the pointer alone.

    Attributes:
        pointer: ``[1,C]`` object pointer.
        object_score, iou: ``[1]`` logit, and predicted IoU.
        features: ``[1,C,h,w]`` spatial memory.
        mask_logits: ``[1,1,h,w]``, low resolution.
        reverse: the direction of the pass that tracked the frame; None before any did.
    """

    pointer: Tensor
    object_score: Tensor
    iou: Tensor
    features: Tensor | None
    mask_logits: Tensor | None
    reverse: bool | None = field(default=None, kw_only=True)

    def tensors(self) -> Iterator[Tensor]:
        return (value for value in vars(self).values() if isinstance(value, Tensor))


@dataclass
class ObjectBank:
    """The memories of one object, by frame.

    Attributes:
        conditioning, others: what upstream calls ``cond_frame_outputs`` and
            ``non_cond_frame_outputs``.
        pending: (whether it conditions, frame) -> the answer to a prompt; it is read by others from
            the next tracked frame on.
        clicks: the points given on a frame, in upstream's form.
    """

    conditioning: dict[int, Memory] = field(default_factory=dict)
    others: dict[int, Memory] = field(default_factory=dict)
    pending: dict[tuple[bool, int], Memory] = field(default_factory=dict)
    clicks: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def get(self, t: int) -> Memory | None:
        return self.conditioning.get(t) or self.others.get(t)

    def settle(self) -> None:
        """Take the pending answers in; a conditioning memory rules out another one of its frame."""
        for (conditions, t), memory in self.pending.items():
            (self.conditioning if conditions else self.others)[t] = memory
        self.pending.clear()
        for t in self.conditioning:
            self.others.pop(t, None)

    def tensors(self) -> Iterator[Tensor]:
        for memories in (self.conditioning, self.others, self.pending):
            for memory in memories.values():
                yield from memory.tensors()
        for clicks in self.clicks.values():
            yield from clicks.values()


class Read(NamedTuple):
    """The frames that memory attention reads: objects that agree on them can share a batch."""

    conditioning: tuple[int, ...]
    others: tuple[int, ...]


class Horizon:
    """How far memory attention looks, and so what a bank has to keep.

    Attributes:
        memories: frames from the present to the oldest spatial memory that is read.
        pointers: the same for object pointers; not less than ``memories``.
        history: further frames that are kept whole; infinite: all.
        max_conditioning: maximum number of conditioning frames that are kept of those that
            tracking has passed: the first of all and the nearest. None: no limit.
    """

    def __init__(self, model: SAM2Base, options: TrackerOptions) -> None:
        # A model reads the last frame, every stride-th before it, and the pointers.
        self.memories = 1 + max(0, model.num_maskmem - 2) * model.memory_temporal_stride_for_eval
        pointers = model.max_obj_ptrs_in_encoder - 1 if model.use_obj_ptrs_in_encoder else 0
        self.pointers = max(self.memories, pointers)
        self.history = math.inf if options.history is None else options.history
        self.max_conditioning = options.max_cond_frames

    def read(self, bank: ObjectBank, t: int, reverse: bool) -> Read:
        """Choose what frame ``t`` reads of a bank when it is tracked in a direction."""
        others = []
        for frame, memory in bank.others.items():
            distance = frame - t if reverse else t - frame
            # Where a spatial memory is read, upstream takes a pointer without one for an error.
            nearest = 0 if memory.features is not None else self.memories
            if nearest < distance <= self.pointers:
                others.append(frame)
        return Read(tuple(sorted(bank.conditioning)), tuple(sorted(others)))

    def forget(self, bank: ObjectBank, t: int, reverse: bool, anchor: int) -> None:
        """Drop what will not be read once frame ``t`` is tracked.

        Args:
            anchor: the frame from which a pass in the other direction would set out; what that
                pass would read is kept.
        """
        for frame, memory in list(bank.others.items()):
            distance = min(abs(frame - t) - self.history, abs(frame - anchor))
            if distance > self.pointers:
                del bank.others[frame]
            elif distance > self.memories:
                memory.features = memory.mask_logits = None
        if self.max_conditioning is not None:
            first = min(bank.conditioning)
            passed = [
                f for f in bank.conditioning if f != first and (f >= t if reverse else f <= t)
            ]
            for frame in sorted(passed, key=lambda f: abs(f - t))[self.max_conditioning - 1 :]:
                del bank.conditioning[frame]
        for frame in [f for f in bank.clicks if bank.get(f) is None]:
            del bank.clicks[frame]


def upstream_bank(
    banks: Sequence[ObjectBank], read: Read, position: list[Tensor]
) -> dict[str, dict[int, dict]]:
    """Upstream's ``output_dict`` of n objects that read the same frames.

    Args:
        position: ``maskmem_pos_enc`` of one object, the same on every frame.
    """

    def together(memories: list[Memory]) -> dict:
        features = [m.features for m in memories if m.features is not None]
        pointers = torch.cat([m.pointer for m in memories])
        return {
            "obj_ptr": pointers,
            # Without a pointer beside them upstream leaves bfloat16 memories as they are, and then
            # fails on float32 weights: an object before its first prompt may have no pointer.
            "maskmem_features": torch.cat(features).to(pointers.dtype) if features else None,
            "maskmem_pos_enc": [x.expand(len(memories), -1, -1, -1) for x in position],
        }

    return {
        "cond_frame_outputs": {
            t: together([bank.conditioning[t] for bank in banks]) for t in read.conditioning
        },
        "non_cond_frame_outputs": {
            t: together([bank.others[t] for bank in banks]) for t in read.others
        },
    }
