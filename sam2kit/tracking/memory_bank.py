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
from sam2.modeling.sam2_utils import select_closest_cond_frames
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


class MemoryOrder(NamedTuple):
    """The memories that one frame reads, in upstream's order; conditioning frames are first.

    Attributes:
        spatial: frames whose spatial memories are read, each with its temporal position as in
            upstream: 0 for conditioning frames, otherwise 1 to ``num_maskmem`` - 1 (the previous
            frame).
        pointers: frames whose object pointers are read, each with its distance in frames.
        is_full: whether no later frame reads more, unless there are new prompts.
    """

    spatial: list[tuple[int, int]]
    pointers: list[tuple[int, int]]
    is_full: bool


class MemoryInput(NamedTuple):
    """The memories of n objects that one call of the model reads.

    The shapes are constant once the bank is full, so that the call can be compiled.

    Attributes:
        features: spatial memories, ``[n,C,h,w]`` each.
        temporal: the temporal position of each spatial memory.
        pointers: object pointers, ``[n,C]`` each.
        distances: ``[len(pointers)]`` float32, relative to the largest distance. None: no pointers.
        is_full: see :class:`MemoryOrder`.
    """

    features: list[Tensor]
    temporal: list[int]
    pointers: list[Tensor]
    distances: Tensor | None
    is_full: bool


def order_memories(
    model: SAM2Base, frames: MemoryFrames, t: int, num_frames: int, reverse: bool
) -> MemoryOrder:
    """Order the memories as upstream's ``_prepare_memory_conditioned_features``.

    Args:
        model: its settings are read.
        frames: the frames whose memories may be read.
        t: the frame to track.
        num_frames: the length of the video.
        reverse: whether tracking runs backward.
    """
    selected, unselected = select_closest_cond_frames(
        t, dict.fromkeys(frames.conditioning), model.max_cond_frames_in_attn
    )
    available, sign = {*frames.others, *unselected}, -1 if reverse else 1
    stride, recent = model.memory_temporal_stride_for_eval, []
    for position in range(1, model.num_maskmem):
        # The previous frame, and every stride-th frame before it.
        steps = model.num_maskmem - position
        nearest = (sign * t - 2) // stride * stride
        frame = t - sign if steps == 1 else sign * (nearest - (steps - 2) * stride)
        if frame in available:
            recent.append((frame, position))
    spatial = [(f, 0) for f in selected] + recent
    is_full = len(recent) == model.num_maskmem - 1
    if not model.use_obj_ptrs_in_encoder:
        return MemoryOrder(spatial, [], is_full)
    signed = model.use_signed_tpos_enc_to_obj_ptrs
    conditioning = [
        (f, sign * (t - f) if signed else abs(t - f))
        for f in selected
        if not model.only_obj_ptrs_in_the_past_for_eval or sign * (t - f) >= 0
    ]
    distances = range(1, min(num_frames, model.max_obj_ptrs_in_encoder))
    pointers = [(t - sign * d, d) for d in distances if t - sign * d in available]
    return MemoryOrder(
        spatial, conditioning + pointers, is_full and len(pointers) == len(distances)
    )


def read_memories(
    model: SAM2Base,
    banks: Sequence[ObjectBank],
    frames: MemoryFrames,
    t: int,
    num_frames: int,
    reverse: bool,
) -> MemoryInput:
    """Read the memories of n objects that read the same frames, without copies if possible.

    Args:
        banks: the memories of each object.
        model, frames, t, num_frames, reverse: see :func:`order_memories`.
    """
    order = order_memories(model, frames, t, num_frames, reverse)
    memories = {
        f: [memory for bank in banks if (memory := bank.get(f)) is not None]
        for f, _ in (*order.spatial, *order.pointers)
    }
    distances = None
    if order.pointers:
        largest = min(num_frames, model.max_obj_ptrs_in_encoder) - 1
        relative = torch.tensor([distance for _, distance in order.pointers]) / largest
        distances = relative.to(model.device, non_blocking=True)
    return MemoryInput(
        [join_rows([m.features for m in memories[f]]) for f, _ in order.spatial],
        [position for _, position in order.spatial],
        [join_rows([m.pointer for m in memories[f]]) for f, _ in order.pointers],
        distances,
        order.is_full,
    )


def join_rows(rows: Sequence[Tensor | None]) -> Tensor:
    """Concatenate tensors ``[1,...]``, without a copy if they are the rows of one tensor."""
    parts = [row for row in rows if row is not None]
    first = parts[0]
    step = first.stride(0)
    is_one_tensor = all(
        part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and part.storage_offset() == first.storage_offset() + n * step
        and part.stride() == first.stride()
        for n, part in enumerate(parts)
    )
    if is_one_tensor:
        return first.as_strided((len(parts), *first.shape[1:]), first.stride())
    return torch.cat(parts)
