"""Store the memories of tracked objects and evict those that attention no longer reads.

In shapes, C is the number of channels and h, w are rows and columns; each tensor belongs to one
object.
"""

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
    """The memory of one object on one frame; distant frames only keep the object pointer.

    Attributes:
        pointer: ``[1,C]`` object pointer.
        object_score: ``[1]`` logit; above 0 the object is predicted to be visible.
        iou: ``[1]`` predicted IoU.
        features: ``[1,C,h,w]`` spatial memory, or None if evicted.
        mask_logits: ``[1,1,h,w]`` low-resolution mask, or None if evicted.
        reverse: whether the frame was tracked backward, or None (default) if it was not tracked
            yet.
        frames: the frames whose memories were read, or None (default) if the frame was not tracked.
    """

    pointer: Tensor
    object_score: Tensor
    iou: Tensor
    features: Tensor | None
    mask_logits: Tensor | None
    reverse: bool | None = field(default=None, kw_only=True)
    frames: MemoryFrames | None = field(default=None, kw_only=True)

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over all tensors, to measure memory usage."""
        return (value for value in vars(self).values() if isinstance(value, Tensor))


@dataclass
class ObjectBank:
    """The memories of one object by frame.

    Attributes:
        conditioning, others: memories of conditioning and of other frames; upstream's
            ``cond_frame_outputs`` and ``non_cond_frame_outputs``.
        pending: maps (whether it is a conditioning frame, frame) to the memory of a prompt. As in
            upstream, other frames read it only after tracking continues.
        clicks: points by frame, in upstream's format.
    """

    conditioning: dict[int, Memory] = field(default_factory=dict)
    others: dict[int, Memory] = field(default_factory=dict)
    pending: dict[tuple[bool, int], Memory] = field(default_factory=dict)
    clicks: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def get(self, t: int) -> Memory | None:
        """Return the memory of a frame, or None; pending memories are ignored."""
        return self.conditioning.get(t) or self.others.get(t)

    def commit_pending(self) -> None:
        """Move pending memories to the bank, where conditioning memories have priority."""
        for (is_conditioning, t), memory in self.pending.items():
            (self.conditioning if is_conditioning else self.others)[t] = memory
        self.pending.clear()
        for t in self.conditioning:
            self.others.pop(t, None)

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over all tensors, to measure memory usage."""
        for memories in (self.conditioning, self.others, self.pending):
            for memory in memories.values():
                yield from memory.tensors()
        for clicks in self.clicks.values():
            yield from clicks.values()


class MemoryFrames(NamedTuple):
    """The frames whose memories attention reads; objects with equal frames can be batched.

    Attributes:
        conditioning: conditioning frames, in ascending order.
        others: other frames, in ascending order.
    """

    conditioning: tuple[int, ...]
    others: tuple[int, ...]


class Horizon:
    """The distances at which attention reads memories, which determine what to evict.

    Attributes:
        memories: maximum distance, in frames, at which spatial memories are read.
        pointers: maximum distance at which object pointers are read; at least ``memories``.
        history: additional distance up to which memories are kept; infinite for no limit.
        max_conditioning: maximum number of past conditioning frames per object; the first and the
            nearest ones are kept. If None, there is no limit.
    """

    def __init__(self, model: SAM2Base, options: TrackerOptions) -> None:
        # Upstream reads spatial memories of the previous frame and of every stride-th frame
        # before it, and object pointers of all recent frames.
        self.memories = 1 + max(0, model.num_maskmem - 2) * model.memory_temporal_stride_for_eval
        pointers = model.max_obj_ptrs_in_encoder - 1 if model.use_obj_ptrs_in_encoder else 0
        self.pointers = max(self.memories, pointers)
        self.history = math.inf if options.history is None else options.history
        self.max_conditioning = options.max_cond_frames

    def read(self, bank: ObjectBank, t: int, reverse: bool) -> MemoryFrames:
        """Select the frames whose memories are read when frame ``t`` is tracked."""
        others = []
        for frame, memory in bank.others.items():
            distance = frame - t if reverse else t - frame
            # Upstream fails if a frame selected for its spatial memory only has a pointer, so
            # frames without spatial memory are read only beyond the distance of spatial memories.
            nearest = 0 if memory.features is not None else self.memories
            if nearest < distance <= self.pointers:
                others.append(frame)
        return MemoryFrames(tuple(sorted(bank.conditioning)), tuple(sorted(others)))

    def evict(self, bank: ObjectBank, t: int, reverse: bool, anchor: int) -> None:
        """Evict the memories that are not needed after frame ``t`` has been tracked.

        Args:
            bank: the memories of one object.
            t: the most recently tracked frame.
            reverse: whether tracking runs backward.
            anchor: the frame from which a later pass in the other direction would start. Memories
                that this pass would read are kept.
        """
        for frame, memory in list(bank.others.items()):
            distance = min(abs(frame - t) - self.history, abs(frame - anchor))
            if distance > self.pointers:
                del bank.others[frame]
            elif distance > self.memories:
                memory.features = memory.mask_logits = None
        if self.max_conditioning is not None:
            first = min(bank.conditioning)
            # Always keep prompts on frames that tracking has not reached yet.
            past = [f for f in bank.conditioning if f != first and (f >= t if reverse else f <= t)]
            for frame in sorted(past, key=lambda f: abs(f - t))[self.max_conditioning - 1 :]:
                del bank.conditioning[frame]
        for frame in [f for f in bank.clicks if bank.get(f) is None]:
            del bank.clicks[frame]


def upstream_bank(
    banks: Sequence[ObjectBank], frames: MemoryFrames, position: list[Tensor]
) -> dict[str, dict[int, dict]]:
    """Build upstream's ``output_dict`` for n objects that read the same frames.

    Args:
        banks: the memories of each object.
        frames: the frames to include.
        position: ``maskmem_pos_enc`` of one object, identical on every frame.
    """

    def stack(memories: list[Memory]) -> dict:
        features = [m.features for m in memories if m.features is not None]
        pointers = torch.cat([m.pointer for m in memories])
        return {
            "obj_ptr": pointers,
            # Upstream concatenates memories and pointers, which casts bfloat16 memories to float32.
            # An object without pointers (before its first prompt) needs this cast explicitly;
            # otherwise upstream fails on float32 weights.
            "maskmem_features": torch.cat(features).to(pointers.dtype) if features else None,
            "maskmem_pos_enc": [x.expand(len(memories), -1, -1, -1) for x in position],
        }

    return {
        "cond_frame_outputs": {
            t: stack([bank.conditioning[t] for bank in banks]) for t in frames.conditioning
        },
        "non_cond_frame_outputs": {
            t: stack([bank.others[t] for bank in banks]) for t in frames.others
        },
    }
