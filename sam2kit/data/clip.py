"""Define clips and batches of clips: the shapes everything else agrees on.

B clips in a batch, T frames, O objects, H and W rows and columns. The objects of all clips of a
batch share one flat axis, so that clips with different numbers of objects need no padding;
``clip_of_object`` says which clip each belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor


@dataclass
class VideoClip:
    """T consecutive (or strided) frames of one video with the masks of its objects.

    Attributes:
        frames: ``[T,3,H,W]`` uint8 RGB; float32 after :func:`sam2kit.data.transforms.normalize`.
        masks: ``[T,O,H,W]`` bool.
        annotated: ``[T,O]`` bool. False where no annotator looked, which is not an empty mask.
        name: the video's name.
        frame_indices: T positions in the video, counted from 0.
        object_ids: O identities as the data set names them (ints or strings).
        size: (rows, columns) of the frames as stored, before any resize.
    """

    frames: Tensor
    masks: Tensor
    annotated: Tensor
    name: str = ""
    frame_indices: list[int] = field(default_factory=list)
    object_ids: list[int | str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        t, o = self.masks.shape[:2]
        if self.frames.shape[0] != t or self.frames.shape[-2:] != self.masks.shape[-2:]:
            raise ValueError(
                f"clip {self.name!r}: frames {tuple(self.frames.shape)} and masks "
                f"{tuple(self.masks.shape)} disagree"
            )
        if self.annotated.shape != (t, o):
            raise ValueError(
                f"clip {self.name!r}: annotated is {tuple(self.annotated.shape)}, not {(t, o)}"
            )
        if self.size == (0, 0):
            self.size = (self.frames.shape[-2], self.frames.shape[-1])

    @property
    def visible(self) -> Tensor:
        """``[T,O]`` bool: annotated and not empty."""
        return self.annotated & self.masks.flatten(2).any(-1)

    def select_objects(self, indices: list[int]) -> VideoClip:
        """The same clip with only the objects at ``indices`` (positions in the O axis)."""
        return replace(
            self,
            masks=self.masks[:, indices],
            annotated=self.annotated[:, indices],
            object_ids=[self.object_ids[i] for i in indices] if self.object_ids else [],
        )


@dataclass
class ClipBatch:
    """B clips of T frames of the same size, with all their objects in one flat axis.

    Attributes:
        frames: ``[B,T,3,H,W]`` uint8, or float32 when already normalised.
        masks: ``[T,O,H,W]`` bool.
        annotated: ``[T,O]`` bool.
        clip_of_object: ``[O]`` int64, from 0 to B-1.
        names: B video names.
        frame_indices: B lists of T positions.
        object_ids: O identities.
        sizes: B pairs (rows, columns) of the frames as stored.
        frame_keys: B*T names, clip-major, by which features are kept; None: not asked for.
    """

    frames: Tensor
    masks: Tensor
    annotated: Tensor
    clip_of_object: Tensor
    names: list[str]
    frame_indices: list[list[int]]
    object_ids: list[int | str]
    sizes: list[tuple[int, int]]
    frame_keys: list[str] | None = None

    @property
    def num_clips(self) -> int:
        return self.frames.shape[0]

    @property
    def num_frames(self) -> int:
        return self.frames.shape[1]

    @property
    def num_objects(self) -> int:
        return self.masks.shape[1]

    @property
    def visible(self) -> Tensor:
        """``[T,O]`` bool: annotated and not empty."""
        return self.annotated & self.masks.flatten(2).any(-1)

    @property
    def first_visible(self) -> Tensor:
        """``[O]`` int64: the first frame on which each object is visible; T if it never is."""
        visible = self.visible
        first = visible.to(torch.uint8).argmax(0)
        return torch.where(visible.any(0), first, torch.full_like(first, self.num_frames))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ClipBatch:
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> ClipBatch:
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        changed: dict[str, Any] = {k: change(v) for k, v in tensors.items()}
        return replace(self, **changed)


def frame_keys(frames: Tensor) -> list[str]:
    """A name for each frame: a hash of its pixels.

    Args:
        frames: ``[...,3,H,W]`` uint8, in any order in memory.

    Returns:
        as many names as there are frames, in their order.
    """
    pixels = frames.reshape(-1, *frames.shape[-3:]).cpu()
    return [blake2b(frame.contiguous().numpy(), digest_size=20).hexdigest() for frame in pixels]


def collate(clips: list[VideoClip], with_keys: bool = False) -> ClipBatch:
    """Put clips of equal length and size into one batch.

    Args:
        with_keys: name the frames, by :func:`frame_keys`.

    Raises:
        ValueError: no clips, or clips whose frames differ in shape.
    """
    if not clips:
        raise ValueError("collate needs at least one clip")
    shapes = {tuple(clip.frames.shape) for clip in clips}
    if len(shapes) > 1:
        raise ValueError(
            "clips of one batch must have the same length and size, got "
            + ", ".join(f"{clip.name!r} {tuple(clip.frames.shape)}" for clip in clips)
        )
    counts = torch.tensor([clip.masks.shape[1] for clip in clips])
    frames = torch.stack([clip.frames for clip in clips])
    return ClipBatch(
        frames=frames,
        masks=torch.cat([clip.masks for clip in clips], dim=1),
        annotated=torch.cat([clip.annotated for clip in clips], dim=1),
        clip_of_object=torch.repeat_interleave(torch.arange(len(clips)), counts),
        names=[clip.name for clip in clips],
        frame_indices=[list(clip.frame_indices) for clip in clips],
        object_ids=[
            i
            for clip in clips
            for i in (clip.object_ids or list(range(1, clip.masks.shape[1] + 1)))
        ],
        sizes=[clip.size for clip in clips],
        frame_keys=frame_keys(frames) if with_keys else None,
    )
