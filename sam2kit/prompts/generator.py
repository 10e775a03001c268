"""Generate the prompts of a training batch from its masks.

:mod:`sam2kit.prompts.geometry` samples points and boxes, :mod:`sam2kit.prompts.noise` degrades
them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2kit.config.schema import DatasetConfig
from sam2kit.config.validation import check_dataset
from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.geometry import (
    box_to_points,
    jitter_box,
    mask_to_box,
    sample_negative_points,
    sample_positive_points,
)
from sam2kit.prompts.noise import PromptNoise
from sam2kit.prompts.prompt import Prompt, group_prompts, video_frame


@dataclass(eq=False)
class PromptGenerator:
    """Makes the first prompts of a batch from its masks.

    Every object that is visible somewhere gets a prompt on the first frame on which it is, and may
    get more on later ones; an object that is never visible gets none. Each object draws its kind
    of prompt and its points from its own generator, so the other objects of the batch change
    nothing about them, but for negative clicks of the kind ``object``.

    Args:
        prompt_types: any of ``mask``, ``box``, ``point``.
        probabilities: one for each of ``prompt_types``, adding up to 1; None: equal.
        num_positive_points: clicks on the object, at least 1; a smaller object gets one a pixel.
        num_negative_points: clicks beside the object; see :func:`sample_negative_points`.
        include_center: whether the first positive click is :func:`mask_center`.
        per_batch: all objects of a batch draw the same kind; they then share upstream's calls.
        box_noise: see :func:`jitter_box`; 0 leaves boxes tight.
        mask_noise: the level of :class:`~sam2kit.prompts.noise.PromptNoise` that masks are degraded
            with; 0 leaves them as they are.
        negative_kinds: see :func:`sample_negative_points`; the other objects are those of the clip.
        max_frames: an object is prompted on 1 to this many frames, in the same way on each. Number
            and frames are drawn once a clip, so that its objects share them while visible.

    Raises:
        ConfigError: an unknown type, or probabilities or counts that make no sense.
    """

    prompt_types: Sequence[str]
    probabilities: Sequence[float] | None = None
    num_positive_points: int = 1
    num_negative_points: int = 0
    include_center: bool = True
    per_batch: bool = False
    box_noise: float = 0.0
    max_frames: int = 1
    mask_noise: float = 0.0
    negative_kinds: Sequence[str] = ("near",)

    def __post_init__(self) -> None:
        shares = None if self.probabilities is None else list(self.probabilities)
        check_dataset(
            DatasetConfig(
                prompt_types=list(self.prompt_types),
                prompt_probabilities=shares,
                num_positive_points=self.num_positive_points,
                num_negative_points=self.num_negative_points,
                box_noise=self.box_noise,
                mask_noise=self.mask_noise,
                max_conditioning_frames=self.max_frames,
                negative_kinds=list(self.negative_kinds),
            )
        )
        count = len(self.prompt_types)
        self.probabilities = shares or [1 / count] * count
        self.noise = PromptNoise(self.mask_noise)

    @classmethod
    def from_config(cls, config: DatasetConfig) -> PromptGenerator:
        """The generator that a data set's configuration asks for."""
        return cls(
            prompt_types=config.prompt_types,
            probabilities=config.prompt_probabilities,
            num_positive_points=config.num_positive_points,
            num_negative_points=config.num_negative_points,
            include_center=config.include_center,
            per_batch=config.prompt_per_batch,
            box_noise=config.box_noise,
            max_frames=config.max_conditioning_frames,
            mask_noise=config.mask_noise,
            negative_kinds=config.negative_kinds,
        )

    def __call__(self, batch: ClipBatch, generator: torch.Generator) -> list[Prompt]:
        """Prompts for the objects of ``batch``, grouped, on the device of its masks.

        ``generator`` is advanced by one number whatever the batch holds; that number, the video's
        name, the frame and the object's identity together seed the object's own generator.
        """
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())
        kind = None
        if self.per_batch:
            kind = np.random.default_rng(seed).choice(self.prompt_types, p=self.probabilities)
        visible = batch.visible.cpu()
        prompts = []
        for position, frame in enumerate(batch.first_visible.tolist()):
            if frame < batch.num_frames:
                clip = int(batch.clip_of_object[position])
                name = f"{batch.names[clip]}/{batch.object_ids[position]}"
                own = np.random.default_rng(
                    (seed, zlib.crc32(name.encode()), video_frame(batch, clip, frame))
                )
                drawn = kind or own.choice(self.prompt_types, p=self.probabilities)
                for t in [frame, *self._later_frames(batch, visible, position, frame, seed)]:
                    prompts.append(self._prompt(batch, position, t, own, drawn))
        return [prompt.to(batch.masks.device) for prompt in group_prompts(prompts)]

    def _later_frames(
        self, batch: ClipBatch, visible: Tensor, position: int, first: int, seed: int
    ) -> list[int]:
        """Further frames on which to prompt an object, in order."""
        if self.max_frames == 1:
            return []
        clip = int(batch.clip_of_object[position])
        start = video_frame(batch, clip, 0)
        shared = np.random.default_rng((seed, zlib.crc32(batch.names[clip].encode()), start))
        count = shared.integers(self.max_frames)
        frames = shared.permutation(batch.num_frames).tolist()
        return sorted([t for t in frames if t > first and visible[t, position]][:count])

    def _prompt(
        self,
        batch: ClipBatch,
        position: int,
        frame: int,
        generator: np.random.Generator,
        kind: str,
    ) -> Prompt:
        objects, mask = torch.tensor([position]), batch.masks[frame, position].cpu()
        if kind == "mask":
            if self.noise.level > 0:
                mask = torch.from_numpy(self.noise.mask(mask.numpy(), generator))
            return Prompt(frame, objects, masks=mask[None].clone())
        if kind == "box":
            box = mask_to_box(mask[None])[0]
            if self.box_noise > 0:
                box = jitter_box(box, self.box_noise, (mask.shape[0], mask.shape[1]), generator)
            points, labels = box_to_points(box[None])
            return Prompt(frame, objects, points=points, labels=labels)
        others = None
        if "object" in self.negative_kinds:
            beside = batch.clip_of_object == batch.clip_of_object[position]
            beside[position] = False
            others = batch.masks[frame, beside].any(0).cpu().numpy()
        on = sample_positive_points(
            mask.numpy(), self.num_positive_points, generator, self.include_center
        )
        off = sample_negative_points(
            mask.numpy(), self.num_negative_points, generator, self.negative_kinds, others
        )
        labels = torch.tensor([[1] * len(on) + [0] * len(off)], dtype=torch.int32)
        points = torch.from_numpy(np.concatenate([on, off]))[None]
        return Prompt(frame, objects, points=points, labels=labels)
