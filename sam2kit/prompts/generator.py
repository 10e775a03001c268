"""Generate the prompts of a training batch from its masks.

:mod:`sam2kit.prompts.geometry` samples points and boxes; :mod:`sam2kit.prompts.noise` degrades
them.
"""

from __future__ import annotations

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
from sam2kit.utils.text import text_checksum


@dataclass(eq=False)
class PromptGenerator:
    """Generate the prompts of a batch from its masks.

    Every visible object gets a prompt on the first frame on which it is visible, and possibly more
    on later frames; an object that is never visible gets none. Each object draws the kind of its
    prompt and its points from its own generator, so that they do not depend on the other objects in
    the batch, except for negative clicks of the kind ``object``.

    Args:
        prompt_types: any of ``mask``, ``box``, ``point``.
        probabilities: one per prompt type, with sum 1. None (default): equal probabilities.
        num_positive_points: number of clicks on the object, at least 1. An object with fewer pixels
            gets one click per pixel.
        num_negative_points: number of clicks off the object; see :func:`sample_negative_points`.
        include_center: whether the first positive click is :func:`mask_center`.
        per_batch: whether all objects of a batch get the same kind of prompt, so that the model
            can process them in one call.
        box_noise: see :func:`jitter_box`; 0 (default): tight boxes.
        max_frames: maximum number of frames on which an object is prompted, with the same kind of
            prompt on each. Number and frames are drawn once per clip, so that objects share them
            where they are visible.
        mask_noise: level of :class:`~sam2kit.prompts.noise.PromptNoise` for masks; 0 (default):
            exact masks.
        negative_kinds: see :func:`sample_negative_points`, where other objects are those of the
            same clip.

    Raises:
        ConfigError: an unknown prompt type, or a probability or number out of range.
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
        probabilities = None if self.probabilities is None else list(self.probabilities)
        # Check the values of a generator that is created without a configuration, too.
        check_dataset(
            DatasetConfig(
                prompt_types=list(self.prompt_types),
                prompt_probabilities=probabilities,
                num_positive_points=self.num_positive_points,
                num_negative_points=self.num_negative_points,
                box_noise=self.box_noise,
                mask_noise=self.mask_noise,
                max_conditioning_frames=self.max_frames,
                negative_kinds=list(self.negative_kinds),
            )
        )
        count = len(self.prompt_types)
        self.probabilities = probabilities or [1 / count] * count
        self.noise = PromptNoise(self.mask_noise)

    @classmethod
    def from_config(cls, config: DatasetConfig) -> PromptGenerator:
        """Create the generator that the configuration of a dataset describes."""
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
        """Generate the prompts of a batch, grouped, on the device of its masks.

        Args:
            batch: the clips.
            generator: advanced by one number for any batch. This number, the name of the video, the
                frame and the id of the object seed the generator of the object.
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
                object_generator = np.random.default_rng(
                    (seed, text_checksum(name), video_frame(batch, clip, frame))
                )
                object_kind = kind or object_generator.choice(
                    self.prompt_types, p=self.probabilities
                )
                for t in [frame, *self._later_frames(batch, visible, position, frame, seed)]:
                    prompts.append(self._prompt(batch, position, t, object_generator, object_kind))
        return [prompt.to(batch.masks.device) for prompt in group_prompts(prompts)]

    def _later_frames(
        self, batch: ClipBatch, visible: Tensor, position: int, first: int, seed: int
    ) -> list[int]:
        """Draw the frames after ``first`` on which to prompt an object, in order."""
        if self.max_frames == 1:
            return []
        clip = int(batch.clip_of_object[position])
        start = video_frame(batch, clip, 0)
        # Seeded by the clip and not by the object, so that its objects share the frames.
        clip_seed = (seed, text_checksum(batch.names[clip]), start)
        clip_generator = np.random.default_rng(clip_seed)
        count = clip_generator.integers(self.max_frames)
        frames = clip_generator.permutation(batch.num_frames).tolist()
        return sorted([t for t in frames if t > first and visible[t, position]][:count])

    def _prompt(
        self,
        batch: ClipBatch,
        position: int,
        frame: int,
        generator: np.random.Generator,
        kind: str,
    ) -> Prompt:
        """Generate the prompt of one object on one frame."""
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
            is_other = batch.clip_of_object == batch.clip_of_object[position]
            is_other[position] = False
            others = batch.masks[frame, is_other].any(0).cpu().numpy()
        positive = sample_positive_points(
            mask.numpy(), self.num_positive_points, generator, self.include_center
        )
        negative = sample_negative_points(
            mask.numpy(), self.num_negative_points, generator, self.negative_kinds, others
        )
        labels = torch.tensor([[1] * len(positive) + [0] * len(negative)], dtype=torch.int32)
        points = torch.from_numpy(np.concatenate([positive, negative]))[None]
        return Prompt(frame, objects, points=points, labels=labels)
