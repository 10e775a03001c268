"""Define the tracker's options, whose defaults are upstream's conventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FIXED_CONVENTIONS = {
    "memory_in_bfloat16": True,
    "reencode_prompted": True,
    "binarize_prompted": True,
    "binarize_mask_prompts": True,
    "choose_by_stability": True,
    "pointer_positions_by_length": True,
    "previous_logits": True,
    "previous_logits_limit": 32.0,
    "fill_without_extension": False,
    "fill_before_prompted_memory": True,
    "fill_before_tracked_memory": False,
    "read_other_direction": True,
    "pil_bicubic": True,
    "antialias_masks": True,
}
"""Former options and upstream's value, which is now the only supported one."""


@dataclass(frozen=True)
class TrackerOptions:
    """Options of the tracker; unless noted, defaults follow upstream's predictor.

    Attributes:
        max_cond_frames: maximum number of past conditioning frames per object, 1 or more; the first
            and the nearest ones are kept. None means no limit, as in upstream, but memory then
            grows with every prompt.
        history: number of frames to keep in addition to those that attention reads, 0 or more. A
            prompt on a kept frame corrects it; on an evicted frame, it creates a new conditioning
            frame. None means no limit, as in upstream.
        object_chunk: maximum number of objects per model call, 1 or more.
        autocast: whether to compute in bfloat16. If None (default), only on GPUs with native
            bfloat16.
        zero_memory: set all memories to zero, as an ablation.
        track_before_prompt: also track objects on frames before their first prompt.
        corrected_frames_condition: make a tracked frame a conditioning frame when it is corrected.
        non_overlapping: assign each pixel to the object with the highest logit.
        fill_hole_area: fill holes of up to N pixels in the low-resolution mask; ignored without
            upstream's compiled extension and a GPU.
        lookahead: number of frames that the image encoder computes in one call, 1 or more. Their
            features are in memory together. On a GPU, the next ones are computed meanwhile, so that
            there are twice as many.
        resize_on_device: resize frames on the model's device. Pixels differ by rounding.

    Raises:
        ValueError: a number is below its minimum.
    """

    max_cond_frames: int | None = 8
    history: int | None = 0
    object_chunk: int = 16
    autocast: bool | None = None
    zero_memory: bool = False
    track_before_prompt: bool = True
    corrected_frames_condition: bool = False
    non_overlapping: bool = False
    fill_hole_area: int = 8
    lookahead: int = 1
    resize_on_device: bool = False

    def __post_init__(self) -> None:
        minima = {
            "max_cond_frames": 1,
            "object_chunk": 1,
            "lookahead": 1,
            "history": 0,
            "fill_hole_area": 0,
        }
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrackerOptions:
        """Create options from a mapping, which an earlier version may have stored.

        Raises:
            TypeError: an option is unknown.
            ValueError: a value is below its minimum, or a former option differs from upstream's
                convention.
        """
        for name in values.keys() & _FIXED_CONVENTIONS.keys():
            if values[name] != _FIXED_CONVENTIONS[name]:
                raise ValueError(
                    f"{name}={values[name]} is no longer supported: tracking always follows "
                    f"upstream's convention, {name}={_FIXED_CONVENTIONS[name]}; remove {name}"
                )
        return cls(**{k: v for k, v in values.items() if k not in _FIXED_CONVENTIONS})
