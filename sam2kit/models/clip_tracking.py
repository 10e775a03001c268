"""Track groups of objects through a clip, with upstream's order of frames and memory bank.

B clips of T frames; n objects in a group; h and w rows and columns of the mask grid, a quarter of
the frame's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import concat_points
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sam2kit.models.outputs import DecoderStep
from sam2kit.prompts.corrections import Corrections
from sam2kit.prompts.prompt import Prompt

MemoryBank = dict[str, dict[int, dict[str, Any]]]
"""Upstream's ``output_dict``: kind (``cond_frame_outputs``, ``non_cond_frame_outputs``) -> frame ->
memory."""


@dataclass
class PromptGroup:
    """Objects that are prompted and corrected on the same frames in the same way.

    Each frame of a group takes one upstream call.

    Attributes:
        objects: ``[n]`` int64, positions in the batch's O axis.
        prompts: maps each prompted frame to the prompt of all n objects.
        corrected: frames on which correction clicks are made.
        indices: ``objects`` as a list.
    """

    objects: Tensor
    prompts: dict[int, Prompt]
    corrected: frozenset[int]
    indices: list[int]

    def to(self, device: torch.device) -> PromptGroup:
        """Return the group with its tensors on ``device``."""
        prompts = {t: prompt.to(device) for t, prompt in self.prompts.items()}
        objects = next(iter(prompts.values())).objects
        return PromptGroup(objects, prompts, self.corrected, self.indices)


class FrameFeatures(NamedTuple):
    """Image features of several frames, as upstream's ``_prepare_backbone_features`` returns them.

    Attributes:
        vision: feature levels, ``[rows*columns, B*T, C]`` each, finest first.
        position: positional encoding of the last level, in the same shape. Upstream reads no other.
        sizes: (rows, columns) of each level.
    """

    vision: list[Tensor]
    position: list[Tensor]
    sizes: list[tuple[int, int]]

    @staticmethod
    def from_backbone(model: SAM2Base, backbone: dict) -> FrameFeatures:
        """Convert the output of upstream's ``forward_image``."""
        _, vision, position, sizes = model._prepare_backbone_features(backbone)
        return FrameFeatures(vision, position[-1:], sizes)

    def select(self, images: Sequence[int]) -> FrameFeatures:
        """Select the features of n images, given by their positions, which may repeat.

        The result is a view without copied memory if all n are the same image.
        """
        first, n = images[0], len(images)
        rows: slice | Tensor = slice(first, first + 1)
        if any(image != first for image in images):
            rows = torch.tensor(images).to(self.vision[-1].device, non_blocking=True)
        vision, position = (
            [x[:, rows].expand(-1, n, -1) for x in levels]
            for levels in (self.vision, self.position)
        )
        return FrameFeatures(vision, position, self.sizes)


class FrameResult(NamedTuple):
    """The result of one frame of a group.

    Attributes:
        steps: outputs of the mask decoder: the first, and one per correction click.
        mask_logits: ``[n,h,w]`` of the last step.
        memory: the frame's entry in the memory bank.
    """

    steps: list[DecoderStep]
    mask_logits: Tensor
    memory: dict[str, Any]


def track_group(
    model: SAM2Base,
    group: PromptGroup,
    features: FrameFeatures,
    first_image: Sequence[int],
    num_frames: int,
    corrections: Corrections | None = None,
    *,
    detach_memory_every: int | None = None,
    activation_checkpointing: bool = False,
) -> dict[int, FrameResult]:
    """Track one group from its first prompt to the last frame.

    As in upstream's ``SAM2Train``, prompted frames are processed first, then the others in order;
    prompted and corrected frames are conditioning frames.

    Args:
        model: upstream's model.
        group: the objects and their prompts.
        features: of all frames of all clips, clip after clip.
        first_image: for each of the n objects, the position in ``features`` of its clip's first
            frame.
        num_frames: T, the length of the clips.
        corrections: the source of correction clicks. None (default): no corrections.
        detach_memory_every: detach all memories from the graph every N frames. None (default):
            never.
        activation_checkpointing: discard each frame's activations, and recompute them in the
            backward pass.

    Returns:
        Maps each tracked frame to its result, in the order of processing.
    """
    prompted = sorted(group.prompts)
    rest = [t for t in range(prompted[0], num_frames) if t not in group.prompts]
    order = prompted + rest
    bank: MemoryBank = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    results = {}
    for count, t in enumerate(order, start=1):
        frame = partial(
            _track_frame,
            model,
            t,
            group,
            images=(features, [first + t for first in first_image]),
            # Recomputation must see the same bank, and later frames change it, so pass a copy.
            bank={kind: dict(memories) for kind, memories in bank.items()},
            num_frames=num_frames,
            corrections=corrections,
            clicks={},
            encode_memory=t != order[-1],  # no frame reads the memory of the last one
        )
        if activation_checkpointing and torch.is_grad_enabled():
            results[t] = _recomputed(frame, features.vision[-1])
        else:
            results[t] = frame()
        conditioning = is_conditioning_frame(t, group)
        kind = "cond_frame_outputs" if conditioning else "non_cond_frame_outputs"
        bank[kind][t] = results[t].memory
        if detach_memory_every and count % detach_memory_every == 0:
            bank = _detached(bank)
    return results


def _recomputed(frame: Callable[[], FrameResult], features: Tensor) -> FrameResult:
    """Compute a frame, and discard its activations, which the backward pass recomputes.

    Args:
        frame: the computation.
        features: any tensor on the device of the computation. torch restores the random state and
            the autocast settings of the devices that it finds among the arguments, and of the CPU.
            Without this argument, recomputation on a GPU would draw a different dropout mask, and
            the gradients would be wrong without an error.
    """
    return checkpoint(lambda _: frame(), features, use_reentrant=False)


def is_conditioning_frame(t: int, group: PromptGroup) -> bool:
    """Check whether a frame is a conditioning frame, that is, prompted or corrected.

    The memory of a conditioning frame is read by all other frames, at any distance.
    """
    return t in group.prompts or t in group.corrected


def _track_frame(
    model: SAM2Base,
    t: int,
    group: PromptGroup,
    images: tuple[FrameFeatures, list[int]],
    bank: MemoryBank,
    num_frames: int,
    corrections: Corrections | None,
    clicks: dict[int, tuple[Tensor, Tensor]],
    encode_memory: bool,
) -> FrameResult:
    """Track one frame of one group.

    Upstream's ``track_step`` drops the predicted IoU and, in training, the object score, so this
    function calls its parts.

    Args:
        images: the features of all images, and the position of each object's image in them.
        clicks: stores the points and labels of each correction click of this frame. Clicks are
            random, so recomputation must reuse them.
        encode_memory: whether to encode the spatial memory of the frame.
    """
    prompt = group.prompts.get(t)
    features, rows = images
    vision, position, sizes = features.select(rows)
    points, mask = upstream_inputs(prompt)
    _, output, high_res_features, fused = model._track_step(
        t, prompt is not None, vision, position, sizes, points, mask, bank, num_frames, False, None
    )
    # Upstream returns a prompted mask itself as the output; only its full-size form is exact.
    steps = [_step(t, group, output, output[0] if mask is None else output[1])]
    if corrections is not None and t in group.corrected:
        for number in range(corrections.clicks):
            if number not in clicks:
                clicks[number] = corrections.click(t, number, group.objects, output[4][:, 0] > 0)
            points = concat_points(points, *clicks[number])
            output = model._forward_sam_heads(
                backbone_features=fused,
                point_inputs=points,
                mask_inputs=output[3],
                high_res_features=high_res_features,
                multimask_output=model._use_multimask(prompt is not None, points),
            )
            steps.append(_step(t, group, output, output[0]))
    _, _, _, low_res_mask, high_res_mask, pointer, object_score = output
    memory: dict[str, Any] = {"obj_ptr": pointer}
    model._encode_memory_in_output(
        vision, sizes, points, encode_memory, high_res_mask, object_score, memory
    )
    return FrameResult(steps, low_res_mask[:, 0], memory)


def _step(t: int, group: PromptGroup, output: tuple, logits: Tensor) -> DecoderStep:
    """Make a step from the output tuple of upstream's ``_forward_sam_heads``."""
    iou, score = output[2].float(), output[6][:, 0].float()
    return DecoderStep(t, group.objects, logits.float(), iou, score, group.indices)


def _detached(bank: MemoryBank) -> MemoryBank:
    """Copy a bank with all tensors detached from the graph."""
    return {
        kind: {
            t: {k: v.detach() if isinstance(v, Tensor) else v for k, v in memory.items()}
            for t, memory in memories.items()
        }
        for kind, memories in bank.items()
    }


def upstream_inputs(prompt: Prompt | None) -> tuple[dict | None, Tensor | None]:
    """Convert a prompt to upstream's arguments ``point_inputs`` and ``mask_inputs``."""
    if prompt is None:
        return None, None
    if prompt.masks is not None:
        return None, prompt.masks.unsqueeze(1)
    return {"point_coords": prompt.points, "point_labels": prompt.labels}, None


def group_objects(
    prompts: list[Prompt], corrections: Corrections | None = None, max_objects: int | None = None
) -> list[PromptGroup]:
    """Group the objects that one call can track: same frames, kinds and numbers of points.

    Padding points would change the result, so objects with different numbers of points cannot share
    a call.

    Args:
        prompts: prompts of all objects of a batch, in main memory.
        corrections: only objects with the same corrected frames share a group.
        max_objects: maximum number of objects per group, 1 or more. None (default): no limit.
    """
    # Object -> frame -> its prompt, and its row in that prompt.
    of_object: dict[int, dict[int, tuple[Prompt, int]]] = defaultdict(dict)
    for prompt in prompts:
        for row, index in enumerate(prompt.objects.tolist()):
            of_object[index][prompt.frame] = (prompt, row)
    members: dict[tuple, list[int]] = defaultdict(list)
    for index in sorted(of_object):
        signature = tuple(
            (t, None if p.points is None else p.points.shape[1])
            for t, (p, _) in sorted(of_object[index].items())
        )
        corrected: frozenset[int] = frozenset()
        if corrections is not None:
            corrected = frozenset(corrections.frames[:, index].cpu().nonzero()[:, 0].tolist())
        members[signature, corrected].append(index)
    groups = []
    for (_, corrected), indices in members.items():
        size = max_objects or len(indices)
        for i in range(0, len(indices), size):
            groups.append(_merge([of_object[o] for o in indices[i : i + size]], corrected))
    return groups


def _merge(rows: list[dict[int, tuple[Prompt, int]]], corrected: frozenset[int]) -> PromptGroup:
    """Merge n objects into a group.

    Args:
        rows: for each object: frame -> its prompt, and its row in that prompt.
        corrected: the corrected frames of all of them.
    """
    prompts = {}
    for t in sorted(rows[0]):
        parts = [row[t] for row in rows]
        fields = {
            name: torch.stack([getattr(prompt, name)[row] for prompt, row in parts])
            for name in ("objects", "masks", "points", "labels")
            if getattr(parts[0][0], name) is not None
        }
        prompts[t] = Prompt(t, **fields)
    objects = prompts[t].objects
    return PromptGroup(objects, prompts, corrected, objects.tolist())
