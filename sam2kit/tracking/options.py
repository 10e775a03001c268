"""Define the options of a tracker; the defaults are those of upstream's predictor."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrackerOptions:
    """The conventions of tracking; the defaults are those of upstream's predictor.

    Attributes:
        max_cond_frames: conditioning frames kept of those that tracking has passed: the first of
            all and the nearest. None: all, as upstream; memory then grows with every prompt.
        history: frames kept beyond what attention reads. A prompt corrects a frame that is still
            kept; on a forgotten one it is a new conditioning frame. None: all, as upstream.
        object_chunk: at most so many objects in one call of the model.
        autocast: compute in bfloat16; None: where the device is a GPU that does it well.
        zero_memory: zero all that the bank keeps (ablation).
        memory_in_bfloat16: keep spatial memories in bfloat16.
        reencode_prompted: encode a prompted frame's memory from its low-resolution mask, enlarged;
            otherwise from the mask at full size.
        binarize_prompted: cut the mask of a prompted frame at 0 before its memory is encoded.
        binarize_mask_prompts: that of a mask prompt too.
        choose_by_stability: where the decoder gives one mask and it is unstable, take the best of
            three.
        pointer_positions_by_length: in a video shorter than the number of object pointers,
            normalise their positions by its length.
        corrected_frames_condition: a prompt on a tracked frame makes it a conditioning frame.
        previous_logits: clicks on a frame that has a mask are given to the decoder with that mask,
        previous_logits_limit: clamped to plus and minus this.
        fill_hole_area: fill holes of at most so many pixels of the low-resolution mask,
        fill_without_extension: even without upstream's compiled extension, which it needs;
        fill_before_prompted_memory, fill_before_tracked_memory: before or after the memory of a
            prompted or of another frame is encoded.
        track_before_prompt: track objects on frames before their first prompt.
        read_other_direction: a backward pass reads memories of the forward pass, and vice versa.
        pil_bicubic: resize frames by PIL's bicubic filter; otherwise as in training.
        antialias_masks: resize mask prompts with antialiasing, cut at 0.5; otherwise nearest.
        non_overlapping: give each pixel to one object, that with the highest logit.
    """

    max_cond_frames: int | None = 8
    history: int | None = 0
    object_chunk: int = 16
    autocast: bool | None = None
    zero_memory: bool = False
    memory_in_bfloat16: bool = True
    reencode_prompted: bool = True
    binarize_prompted: bool = True
    binarize_mask_prompts: bool = True
    choose_by_stability: bool = True
    pointer_positions_by_length: bool = True
    corrected_frames_condition: bool = False
    previous_logits: bool = True
    previous_logits_limit: float = 32.0
    fill_hole_area: int = 8
    fill_without_extension: bool = False
    fill_before_prompted_memory: bool = True
    fill_before_tracked_memory: bool = False
    track_before_prompt: bool = True
    read_other_direction: bool = True
    pil_bicubic: bool = True
    antialias_masks: bool = True
    non_overlapping: bool = False

    def __post_init__(self) -> None:
        for name in ("max_cond_frames", "object_chunk"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("history", "fill_hole_area", "previous_logits_limit"):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
