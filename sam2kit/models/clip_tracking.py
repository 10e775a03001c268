"""Tracking a group of objects through a clip: the order of frames, corrections, the memory bank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
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
"""Upstream's ``output_dict``: memories of conditioning and of other frames, by frame."""


@dataclass
class PromptGroup:
    """Objects that are prompted and corrected on the same frames in the same way.

    Each frame of a group is one upstream call.
    """

    objects: Tensor  # [n], positions in the batch's O axis
    prompts: dict[int, Prompt]
    corrected: frozenset[int]


class FrameFeatures(NamedTuple):
    """What upstream's ``_prepare_backbone_features`` makes of all frames of all clips."""

    vision: list[Tensor]  # each level [h*w, B*T, C]
    position: list[Tensor]  # of the last level, which alone is read
    sizes: list[tuple[int, int]]

    @staticmethod
    def of_backbone(model: SAM2Base, backbone: dict) -> FrameFeatures:
        """From what upstream's ``forward_image`` gives."""
        _, vision, position, sizes = model._prepare_backbone_features(backbone)
        return FrameFeatures(vision, position[-1:], sizes)

    def of(self, images: Sequence[int]) -> FrameFeatures:
        """The features of the n images at ``images``: a view where it is n times the same one."""
        first, n = images[0], len(images)
        rows: slice | Tensor = slice(first, first + 1)
        if any(image != first for image in images):
            rows = torch.tensor(images, device=self.vision[-1].device)
        vision, position = (
            [x[:, rows].expand(-1, n, -1) for x in levels]
            for levels in (self.vision, self.position)
        )
        return FrameFeatures(vision, position, self.sizes)


class FrameResult(NamedTuple):
    """A frame of a group: the decoder's steps, the last one's mask, and what the bank keeps."""

    steps: list[DecoderStep]
    mask_logits: Tensor  # [n,h,w]
    memory: dict[str, Any]


def track_group(
    model: SAM2Base,
    group: PromptGroup,
    features: FrameFeatures,
    first_image: Sequence[int],
    num_frames: int,
    corrections: Corrections | None = None,
    *,
    zero_memory: bool = False,
    detach_memory_every: int | None = None,
    activation_checkpointing: bool = False,
) -> dict[int, FrameResult]:
    """Track one group from its first prompt to the last frame.

    Prompted frames come first, then the others in order; prompted and corrected frames are
    conditioning frames. All of it as upstream's ``SAM2Train`` does.

    Args:
        first_image: where in ``features`` the clip of each of the n objects begins.
        zero_memory: see :meth:`sam2kit.models.sam2.SAM2Model.forward`.
        detach_memory_every: after every so many frames, all memories lose their history.
        activation_checkpointing: compute each frame again in the backward pass.
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
            (features, [first + t for first in first_image]),
            # A frame that is computed again must find the bank as it was, so it gets a copy.
            {kind: dict(memories) for kind, memories in bank.items()},
            num_frames,
            corrections,
            {},
            t != order[-1],  # the last frame's memory is not read
        )
        recompute = activation_checkpointing and torch.is_grad_enabled()
        results[t] = checkpoint(frame, use_reentrant=False) if recompute else frame()
        memory = dict(results[t].memory)
        if zero_memory and memory["maskmem_features"] is not None:
            memory |= {k: torch.zeros_like(memory[k]) for k in ("maskmem_features", "obj_ptr")}
        conditioning = is_conditioning_frame(t, group)
        bank["cond_frame_outputs" if conditioning else "non_cond_frame_outputs"][t] = memory
        if detach_memory_every and count % detach_memory_every == 0:
            bank = _detached(bank)
    return results


def is_conditioning_frame(t: int, group: PromptGroup) -> bool:
    """Whether a frame's memory serves all others: it was prompted or corrected."""
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

    Upstream's ``track_step`` drops the predicted IoU and, in training, the object score, so its
    parts are called here.

    Args:
        images: the features of all images, and each object's image.
        clicks: the corrections made on this frame; they are kept, so that the frame gets the same
            ones when it is computed again.
    """
    prompt = group.prompts.get(t)
    features, rows = images
    vision, position, sizes = features.of(rows)
    points, mask = upstream_inputs(prompt)
    _, answer, high_res_features, fused = model._track_step(
        t, prompt is not None, vision, position, sizes, points, mask, bank, num_frames, False, None
    )
    # A mask prompt is answered by itself, and exactly so at full size only.
    steps = [_step(t, group, answer, answer[0] if mask is None else answer[1])]
    if corrections is not None and t in group.corrected:
        for number in range(corrections.clicks):
            if number not in clicks:
                clicks[number] = corrections.click(t, number, group.objects, answer[4][:, 0] > 0)
            points = concat_points(points, *clicks[number])
            answer = model._forward_sam_heads(
                backbone_features=fused,
                point_inputs=points,
                mask_inputs=answer[3],
                high_res_features=high_res_features,
                multimask_output=model._use_multimask(prompt is not None, points),
            )
            steps.append(_step(t, group, answer, answer[0]))
    _, _, _, low_res_mask, high_res_mask, pointer, object_score = answer
    memory: dict[str, Any] = {"obj_ptr": pointer}
    model._encode_memory_in_output(
        vision, sizes, points, encode_memory, high_res_mask, object_score, memory
    )
    return FrameResult(steps, low_res_mask[:, 0], memory)


def _step(t: int, group: PromptGroup, answer: tuple, logits: Tensor) -> DecoderStep:
    return DecoderStep(t, group.objects, logits.float(), answer[2].float(), answer[6][:, 0].float())


def _detached(bank: MemoryBank) -> MemoryBank:
    return {
        kind: {
            t: {k: v.detach() if isinstance(v, Tensor) else v for k, v in memory.items()}
            for t, memory in memories.items()
        }
        for kind, memories in bank.items()
    }


def upstream_inputs(prompt: Prompt | None) -> tuple[dict | None, Tensor | None]:
    """Upstream's (point_inputs, mask_inputs) for a prompt."""
    if prompt is None:
        return None, None
    if prompt.masks is not None:
        return None, prompt.masks.unsqueeze(1)
    return {"point_coords": prompt.points, "point_labels": prompt.labels}, None


def group_objects(
    prompts: list[Prompt], corrections: Corrections | None = None, most: int | None = None
) -> list[PromptGroup]:
    """Objects with prompts on the same frames, of the same kind and number of points, together.

    Args:
        most: objects in a group, 1 or more; None: all that go together.
    """
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
            corrected = frozenset(corrections.frames[:, index].nonzero()[:, 0].tolist())
        members[signature, corrected].append(index)
    groups = []
    for (_, corrected), together in members.items():
        size = most or len(together)
        for i in range(0, len(together), size):
            groups.append(_merge([of_object[o] for o in together[i : i + size]], corrected))
    return groups


def _merge(rows: list[dict[int, tuple[Prompt, int]]], corrected: frozenset[int]) -> PromptGroup:
    """Make a group of n objects; ``rows`` gives each one's prompt, and its row there, by frame."""
    prompts = {}
    for t in sorted(rows[0]):
        parts = [row[t] for row in rows]
        fields = {
            name: torch.stack([getattr(prompt, name)[row] for prompt, row in parts])
            for name in ("objects", "masks", "points", "labels")
            if getattr(parts[0][0], name) is not None
        }
        prompts[t] = Prompt(t, **fields)
    return PromptGroup(prompts[t].objects, prompts, corrected)
