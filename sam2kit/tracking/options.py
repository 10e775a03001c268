"""Define the options of a tracker; the defaults are those of upstream's predictor."""

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
"""Former options, each with the value of upstream's convention, which is now the only one."""


@dataclass(frozen=True)
class TrackerOptions:
    """Options of tracking; the defaults are those of upstream's predictor.

    Attributes:
        max_cond_frames: maximum number of conditioning frames kept of those that tracking has
            passed: the first of all and the nearest. None: all, as upstream; memory then grows
            with every prompt.
        history: frames kept beyond what attention reads. A prompt corrects a frame that is still
            kept; on a forgotten one it is a new conditioning frame. None: all, as upstream.
        object_chunk: maximum number of objects per call of the model.
        autocast: compute in bfloat16; None: where the device is a GPU that does it well.
        zero_memory: zero all that the bank keeps (ablation).
        track_before_prompt: track objects on frames before their first prompt.
        corrected_frames_condition: a prompt on a tracked frame makes it a conditioning frame.
        non_overlapping: give each pixel to the object with the highest logit.
        fill_hole_area: fill holes of up to this many pixels of the low-resolution mask, where
            upstream's compiled extension is installed and the model is on a GPU.

    Raises:
        ValueError: a number below its minimum.
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

    def __post_init__(self) -> None:
        minima = {"max_cond_frames": 1, "object_chunk": 1, "history": 0, "fill_hole_area": 0}
        for name, minimum in minima.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> TrackerOptions:
        """Read options by name, also those that a configuration of an older version stored.

        Raises:
            TypeError: an unknown name.
            ValueError: an impossible value, or a former option that differs from upstream's
                convention.
        """
        for name in values.keys() & _FIXED_CONVENTIONS.keys():
            if values[name] != _FIXED_CONVENTIONS[name]:
                raise ValueError(
                    f"{name}={values[name]} is not supported any more: tracking always follows "
                    f"upstream's convention, {name}={_FIXED_CONVENTIONS[name]}; remove {name}"
                )
        return cls(**{k: v for k, v in values.items() if k not in _FIXED_CONVENTIONS})
