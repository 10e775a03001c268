"""Define prompts, which select the objects to track.

Coordinates are (x, y), in pixel indices of the resized frame (upstream ``sam2`` adds the half
pixel). Labels are those of upstream: 1 positive, 0 negative, 2 and 3 the top-left and bottom-right
corners of a box, both inclusive.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.geometry import BOX_LABELS


@dataclass(eq=False)
class Prompt:
    """Prompt N objects on one frame with the same kind of prompt.

    There are no padding points, because their embedding in upstream ``sam2`` changes the result:
    all N objects have P points, and objects with a different number of points need another
    ``Prompt``.

    Attributes:
        frame: position in the clip, from 0.
        objects: ``[N]`` int64, positions in the O axis of the batch.
        masks: ``[N,H,W]`` bool, not empty. None (default): a prompt with points.
        points: ``[N,P,2]`` float32 (x, y). None (default): a prompt with masks.
        labels: ``[N,P]`` int32; required with ``points``.

    Raises:
        ValueError: shapes or types do not match, there are no objects, or a mask is empty.
    """

    frame: int
    objects: Tensor
    masks: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.objects.dtype != torch.int64 or self.objects.ndim != 1 or not len(self.objects):
            raise ValueError(f"prompt objects must be int64 [N] with N > 0, got {self.objects}")
        if self.frame < 0:
            raise ValueError(f"prompt frame must be at least 0, got {self.frame}")
        if (self.masks is None) == (self.points is None):
            raise ValueError("a prompt must have either masks or points")
        if (self.points is None) != (self.labels is None):
            raise ValueError("a prompt must have both points and labels, or neither")
        n = len(self.objects)
        if self.masks is not None:
            if self.masks.ndim != 3 or len(self.masks) != n or self.masks.dtype != torch.bool:
                raise ValueError(
                    f"prompt masks must be bool [{n},H,W], got "
                    f"{self.masks.dtype} {tuple(self.masks.shape)}"
                )
            if not self.masks.flatten(1).any(1).all():
                raise ValueError("prompt masks must not be empty")
        if self.points is not None and self.labels is not None:
            p = self.points.shape[1] if self.points.ndim == 3 else 0
            if self.points.shape != (n, p, 2) or self.labels.shape != (n, p) or p == 0:
                raise ValueError(
                    f"prompt points must be [{n},P,2] and labels [{n},P] with P > 0, got "
                    f"{tuple(self.points.shape)} and {tuple(self.labels.shape)}"
                )
            if self.points.dtype != torch.float32 or self.labels.dtype != torch.int32:
                raise ValueError("prompt points must be float32 and labels int32")

    @property
    def kind(self) -> str:
        """``mask``, ``box`` (the two corners and no other point) or ``point``."""
        if self.labels is None:
            return "mask"
        corners = torch.tensor(BOX_LABELS, device=self.labels.device)
        is_box = self.labels.shape[1] == 2 and bool((self.labels == corners).all())
        return "box" if is_box else "point"

    def to(self, device: torch.device | str) -> Prompt:
        """Return the prompt with its tensors on ``device``."""
        waits = torch.device(device).type == "cpu"
        # A copy is not checked again, because on a GPU that would wait for the data.
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, non_blocking=not waits))
        return moved

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Prompt):
            return NotImplemented
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return all(
            torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
            for a, b in pairs
        )


def group_prompts(prompts: list[Prompt]) -> list[Prompt]:
    """Join prompts of the same frame, kind and number of points, sorted by these three.

    The model then processes the objects of a group in one call.
    """
    groups: dict[tuple[int, str, int], list[Prompt]] = {}
    for prompt in prompts:
        count = 0 if prompt.points is None else prompt.points.shape[1]
        groups.setdefault((prompt.frame, prompt.kind, count), []).append(prompt)
    return [_join(groups[key]) for key in sorted(groups)]


def _join(prompts: list[Prompt]) -> Prompt:
    def cat(name: str) -> Tensor | None:
        parts = [getattr(prompt, name) for prompt in prompts]
        return None if parts[0] is None else torch.cat(parts)

    return replace(
        prompts[0],
        objects=torch.cat([prompt.objects for prompt in prompts]),
        masks=cat("masks"),
        points=cat("points"),
        labels=cat("labels"),
    )


def video_frame(batch: ClipBatch, clip: int, frame: int) -> int:
    """Return the position in the video of a frame of a clip.

    Args:
        batch: the clips. A clip without ``frame_indices`` counts as a whole video.
        clip: number of the clip.
        frame: position in the clip, from 0.
    """
    return batch.frame_indices[clip][frame] if batch.frame_indices[clip] else frame
