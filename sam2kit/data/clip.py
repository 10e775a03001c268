"""Define clips and batches of clips.

Shapes are given as B clips per batch, T frames, O objects, H rows and W columns. The objects of all
clips in a batch share one flat axis, so that clips with different numbers of objects need no
padding; ``clip_of_object`` says which clip each object belongs to.
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
    """Hold T consecutive (or strided) frames of one video and the masks of its objects.

    Attributes:
        frames: ``[T,3,H,W]`` uint8 RGB; float32 after :func:`sam2kit.data.transforms.normalize`.
        masks: ``[T,O,H,W]`` bool.
        annotated: ``[T,O]`` bool. False where the frame is unannotated, so that the object may be
            visible. An empty mask on an annotated frame means that it is not.
        name: the video's name.
        frame_indices: T positions in the video, from 0.
        object_ids: O object ids from the dataset (ints or strings).
        size: (rows, columns) of the stored frames, before any resize.
        generated: whether the objects are generated instead of annotated.

    Raises:
        ValueError: the shapes disagree.
    """

    frames: Tensor
    masks: Tensor
    annotated: Tensor
    name: str = ""
    frame_indices: list[int] = field(default_factory=list)
    object_ids: list[int | str] = field(default_factory=list)
    size: tuple[int, int] = (0, 0)
    generated: bool = False

    def __post_init__(self) -> None:
        t, o = self.masks.shape[:2]
        if self.frames.shape[0] != t or self.frames.shape[-2:] != self.masks.shape[-2:]:
            raise ValueError(
                f"clip {self.name!r}: frames {tuple(self.frames.shape)} and masks "
                f"{tuple(self.masks.shape)} differ in length or size"
            )
        if self.annotated.shape != (t, o):
            raise ValueError(
                f"clip {self.name!r}: annotated must have shape {(t, o)}, got "
                f"{tuple(self.annotated.shape)}"
            )
        if self.size == (0, 0):
            self.size = (self.frames.shape[-2], self.frames.shape[-1])

    @property
    def visible(self) -> Tensor:
        """``[T,O]`` bool: annotated and not empty."""
        return self.annotated & self.masks.flatten(2).any(-1)

    def select_objects(self, indices: list[int]) -> VideoClip:
        """Return the clip with only the objects at ``indices`` (positions in the O axis)."""
        return replace(
            self,
            masks=self.masks[:, indices],
            annotated=self.annotated[:, indices],
            object_ids=[self.object_ids[i] for i in indices] if self.object_ids else [],
        )


@dataclass
class ClipBatch:
    """Hold B clips of T frames of the same size, with all their objects in one flat axis.

    Attributes:
        frames: ``[B,T,3,H,W]`` uint8, or float32 when already normalised.
        masks: ``[T,O,H,W]`` bool.
        annotated: ``[T,O]`` bool.
        clip_of_object: ``[O]`` int64, from 0 to B-1.
        names: B video names.
        frame_indices: B lists of T positions.
        object_ids: O object ids; equal ids in different clips are different objects.
        sizes: B pairs (rows, columns) of the stored frames.
        frame_keys: B*T keys of the feature cache, all frames of the first clip first. None
            (default): not computed.
        generated: numbers of the clips whose objects are generated instead of annotated.
        host: the batch in main memory from which :meth:`to` made this one, so that prompts can be
            drawn without waiting for the device. None if this batch is in main memory or was made
            in another way.
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
    generated: list[int] = field(default_factory=list)
    host: ClipBatch | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def num_clips(self) -> int:
        """B."""
        return self.frames.shape[0]

    @property
    def num_frames(self) -> int:
        """T."""
        return self.frames.shape[1]

    @property
    def num_objects(self) -> int:
        """O, over all clips."""
        return self.masks.shape[1]

    @property
    def visible(self) -> Tensor:
        """``[T,O]`` bool: annotated and not empty."""
        return self.annotated & self.masks.flatten(2).any(-1)

    @property
    def first_visible(self) -> Tensor:
        """``[O]`` int64: the first frame on which each object is visible; T if never."""
        visible = self.visible
        # argmax of equal values is the first one: the first True, but 0 where there is none.
        first = visible.to(torch.uint8).argmax(0)
        return torch.where(visible.any(0), first, torch.full_like(first, self.num_frames))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ClipBatch:
        """Return the batch with its tensors on ``device``."""
        moved = self._map_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))
        if self.masks.device.type == "cpu" and moved.masks.device.type != "cpu":
            moved.host = self
        return moved

    def on_host(self) -> ClipBatch:
        """Return the batch in main memory, without a copy if :attr:`host` has the same content."""
        if self.masks.device.type == "cpu":
            return self
        # torch counts the writes to a tensor; a batch that was changed on its device is copied.
        if self.host is None or self.masks._version or self.annotated._version:
            return self.to("cpu")
        return self.host

    def pin_memory(self) -> ClipBatch:
        """Return the batch in page-locked memory; ``DataLoader`` calls it with pin_memory=True."""
        return self._map_tensors(Tensor.pin_memory)

    def share_memory(self) -> ClipBatch:
        """Return the batch in memory that other processes can read.

        Raises:
            RuntimeError: there is too little shared memory.
        """
        return self._map_tensors(Tensor.share_memory_)

    def _map_tensors(self, function: Callable[[Tensor], Tensor]) -> ClipBatch:
        """Return the batch with ``function`` applied to each of its tensors."""
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        mapped: dict[str, Any] = {k: function(v) for k, v in tensors.items()}
        return replace(self, **mapped)


def frame_keys(frames: Tensor) -> list[str]:
    """Hash the pixels of each frame, as keys of the feature cache.

    Args:
        frames: ``[...,3,H,W]`` uint8, in any memory layout.

    Returns:
        One key per frame, in the order of the frames.
    """
    pixels = frames.reshape(-1, *frames.shape[-3:]).cpu()
    return [blake2b(frame.contiguous().numpy(), digest_size=20).hexdigest() for frame in pixels]


def collate(clips: list[VideoClip], with_keys: bool = False) -> ClipBatch:
    """Join clips of equal length and size to one batch.

    Args:
        clips: at least one.
        with_keys: set ``frame_keys`` of the batch (:func:`frame_keys`).

    Raises:
        ValueError: there are no clips, or their frames differ in shape.
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
        generated=[n for n, clip in enumerate(clips) if clip.generated],
    )
