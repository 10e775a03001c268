"""Changes of a whole clip: every frame and its masks in the same way.

The pixel work is torchvision's; what is random is drawn from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sam2kit.clip import VideoClip

# ImageNet's mean and deviation of RGB in 0 to 1, which SAM 2's encoder was trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)


def normalize(frames: Tensor) -> Tensor:
    """``[...,3,H,W]`` uint8 to float32 of about zero mean and unit deviation, on the same device.

    Raises:
        TypeError: the frames are not uint8, so perhaps normalised already.
        ValueError: the third dimension from the end is not 3.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(f"normalize takes uint8 frames, got {frames.dtype}: normalised already?")
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise ValueError(f"normalize takes frames [...,3,H,W], got {tuple(frames.shape)}")
    mean = torch.tensor(IMAGE_MEAN, device=frames.device).view(3, 1, 1)
    deviation = torch.tensor(IMAGE_DEVIATION, device=frames.device).view(3, 1, 1)
    return (frames.float() / 255 - mean) / deviation


def resize_frames(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """``[...,3,H,W]`` uint8 to rows and columns ``size``: bilinear with antialiasing."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.resize(frames, list(size), InterpolationMode.BILINEAR, antialias=True)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """``[...,H,W]`` bool to rows and columns ``size``.

    Resized as upstream's predictor does it: bilinear with antialiasing, then true from one half up.
    An object much thinner than a pixel of the new size vanishes.
    """
    if tuple(masks.shape[-2:]) == tuple(size) or masks.numel() == 0:
        return masks.new_zeros(*masks.shape[:-2], *size) if masks.numel() == 0 else masks
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    resized = F.resize(flat, list(size), InterpolationMode.BILINEAR, antialias=True) >= 0.5
    return resized.reshape(*masks.shape[:-2], *size)


def resize(clip: VideoClip, image_size: int) -> VideoClip:
    """The clip squashed to a square of ``image_size`` pixels; ``clip.size`` stays as stored."""
    size = (image_size, image_size)
    return replace(
        clip, frames=resize_frames(clip.frames, size), masks=resize_masks(clip.masks, size)
    )


def augment(clip: VideoClip, generator: np.random.Generator) -> VideoClip:
    """A training clip flipped, played backwards, cropped and recoloured, each at random.

    Half of the clips are mirrored left to right and half are reversed in time; a box of 70 to 100
    percent of the frame's area, somewhat stretched, is blown up to the frame; brightness,
    contrast and saturation change by up to 20 percent. Every frame of the clip gets the same.
    A reversal or a crop after which no object would be visible on the first frame is left out,
    because a clip must begin with something to track.

    Args:
        clip: uint8 frames.
        generator: advanced by the same number of draws whatever the clip holds.
    """
    mirrored, backwards = generator.random(2) < 0.5
    box = _crop_box(generator, clip.frames.shape[-2], clip.frames.shape[-1])
    brightness, contrast, saturation = generator.uniform(0.8, 1.2, 3)
    if backwards:
        clip = _if_it_begins_with_an_object(_reverse(clip), clip)
    clip = _if_it_begins_with_an_object(_crop(clip, *box), clip)
    frames, masks = clip.frames, clip.masks
    if mirrored:
        frames, masks = frames.flip(-1), masks.flip(-1)
    frames = F.adjust_brightness(frames, brightness)
    # Contrast about the mean of the whole clip: a mean of each frame would make the clip flicker.
    middle = F.rgb_to_grayscale(frames).float().mean()
    frames = ((frames.float() - middle) * float(contrast) + middle).round().clamp(0, 255)
    frames = F.adjust_saturation(frames.to(torch.uint8), saturation)
    return replace(clip, frames=frames, masks=masks)


def _if_it_begins_with_an_object(changed: VideoClip, clip: VideoClip) -> VideoClip:
    return changed if bool(changed.visible[0].any()) else clip


def _reverse(clip: VideoClip) -> VideoClip:
    return replace(
        clip,
        frames=clip.frames.flip(0),
        masks=clip.masks.flip(0),
        annotated=clip.annotated.flip(0),
        frame_indices=clip.frame_indices[::-1],
    )


def _crop_box(generator: np.random.Generator, h: int, w: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of 70 to 100 percent of the area, sides' ratio off by 10%."""
    side, stretch = np.sqrt(generator.uniform(0.7, 1.0)), np.exp(generator.uniform(-0.1, 0.1) / 2)
    rows = max(1, min(h, round(h * side * stretch)))
    columns = max(1, min(w, round(w * side / stretch)))
    top, left = generator.random(2) * (h - rows + 1, w - columns + 1)
    return int(top), int(left), rows, columns


def _crop(clip: VideoClip, top: int, left: int, rows: int, columns: int) -> VideoClip:
    size = (clip.frames.shape[-2], clip.frames.shape[-1])
    frames = clip.frames[..., top : top + rows, left : left + columns]
    masks = clip.masks[..., top : top + rows, left : left + columns]
    return replace(clip, frames=resize_frames(frames, size), masks=resize_masks(masks, size))
