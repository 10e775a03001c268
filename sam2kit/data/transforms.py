"""Changes of a whole clip: every frame and its masks in the same way.

Resizing is torchvision's; what is random is drawn from the generator that is passed in.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sam2kit.config.schema import AugmentationConfig
from sam2kit.data.clip import VideoClip

# ImageNet's mean and deviation of RGB in 0 to 1, which SAM 2's encoder was trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)
_GREY = np.array([0.299, 0.587, 0.114])  # of red, green and blue in a grey picture (ITU-R 601)


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
    return frames.float().div_(255).sub_(mean).div_(deviation)  # in place: a clip is large


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


def augment(
    clip: VideoClip,
    generator: np.random.Generator,
    strengths: AugmentationConfig | None = None,
    objects: int = 1,
) -> VideoClip:
    """A training clip changed at random, in this order; every frame of it in the same way.

    It is played backwards; a part of the frame is blown up to the frame; it is turned, slanted,
    scaled and moved about its centre, in the proportions of the stored frames, what comes in from
    outside being ImageNet's mean colour; it is mirrored; its brightness, contrast and saturation
    change, or all its colours go. Brightness, contrast and saturation may change further on each
    frame by itself, as light and cameras do. Which of this happens, and how much, is for
    ``strengths``.

    The clip's first frame must still show ``objects`` objects, or all if it shows fewer: a
    reversal, crop or affine change after which it would not is left out. An object that a change
    takes off the first frame is prompted where it comes in; one that it takes off all frames is
    visible on none, which leaves it out of the clip
    (:class:`~sam2kit.data.clip_dataset.ClipDataset`).

    Args:
        clip: uint8 frames.
        generator: advanced by the same number of draws whatever the clip holds.
        strengths: None: the defaults.
        objects: at least 1.
    """
    s = AugmentationConfig() if strengths is None else strengths
    mirrored, backwards = generator.random(2) < (s.flip, s.reverse)
    box = _crop_box(generator, s, clip.frames.shape[-2], clip.frames.shape[-1])
    most = np.array([s.brightness, s.contrast, s.saturation])
    alike = generator.uniform(1 - most, 1 + most)
    own = generator.spawn(1)[0]  # of parts that are off by default: it leaves the draws above alone
    affine = _affine_matrix(own, s, clip)
    grey = own.random() < s.grayscale
    most = np.array([s.frame_brightness, s.frame_contrast, s.frame_saturation])
    by_frame = own.uniform(1 - most, 1 + most, (len(clip.frames), 3))
    if backwards:
        clip = _if_it_shows(objects, _reverse(clip), clip)
    clip = _if_it_shows(objects, _crop(clip, *box), clip)
    if s.degrees or s.shear or s.scale or s.translate:
        clip = _if_it_shows(objects, _warp(clip, affine), clip)
    if mirrored:
        clip = replace(clip, frames=clip.frames.flip(-1), masks=clip.masks.flip(-1))
    return replace(clip, frames=_recolour(clip.frames, alike, grey, by_frame))


def _if_it_shows(objects: int, changed: VideoClip, clip: VideoClip) -> VideoClip:
    """``changed``, if its first frame shows so many objects, or as many as that of ``clip``."""
    now, before = (int(c.visible[0].sum()) for c in (changed, clip))
    return changed if now >= min(objects, before) else clip


def _reverse(clip: VideoClip) -> VideoClip:
    return replace(
        clip,
        frames=clip.frames.flip(0),
        masks=clip.masks.flip(0),
        annotated=clip.annotated.flip(0),
        frame_indices=clip.frame_indices[::-1],
    )


def _crop_box(
    generator: np.random.Generator, s: AugmentationConfig, h: int, w: int
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part of the frame that is kept."""
    side = np.sqrt(generator.uniform(1 - s.crop, 1.0))
    stretch = np.exp(generator.uniform(-s.stretch, s.stretch) / 2)
    rows = max(1, min(h, round(h * side * stretch)))
    columns = max(1, min(w, round(w * side / stretch)))
    top, left = generator.random(2) * (h - rows + 1, w - columns + 1)
    return int(top), int(left), rows, columns


def _crop(clip: VideoClip, top: int, left: int, rows: int, columns: int) -> VideoClip:
    size = (clip.frames.shape[-2], clip.frames.shape[-1])
    frames = clip.frames[..., top : top + rows, left : left + columns]
    masks = clip.masks[..., top : top + rows, left : left + columns]
    return replace(clip, frames=resize_frames(frames, size), masks=resize_masks(masks, size))


def _affine_matrix(
    generator: np.random.Generator, s: AugmentationConfig, clip: VideoClip
) -> np.ndarray:
    """``[2,3]``: from pixels (x, y, 1) to pixels, as torchvision's ``F.affine`` has its angles."""
    most = (s.degrees, s.shear, s.scale, s.translate, s.translate)
    degrees, slant, growth, *way = generator.uniform(-1, 1, 5) * most
    turn, slant = np.deg2rad([degrees, slant])
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = (1 + growth) * linear @ [[1, -np.tan(slant)], [0, 1]]
    side = np.array(clip.frames.shape[:-3:-1], float)  # width, height
    squashed = side / clip.size[::-1]  # a circle of the stored frame has to turn into itself
    linear = linear * squashed[:, None] / squashed
    middle = (side - 1) / 2
    return np.column_stack([linear, middle + np.multiply(way, side) - linear @ middle])


def _warp(clip: VideoClip, matrix: np.ndarray) -> VideoClip:
    """OpenCV does here what ``F.affine`` does, in a tenth of its time."""
    size = (clip.frames.shape[-1], clip.frames.shape[-2])
    outside = tuple(255 * c for c in IMAGE_MEAN)
    frames = [
        cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderValue=outside)
        for frame in _pixels(clip.frames)
    ]
    masks = clip.masks.flatten(0, 1).to(torch.uint8).numpy()
    warped = [cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST) for mask in masks]
    stacked = torch.from_numpy(np.stack(warped)) if warped else clip.masks
    return replace(clip, frames=_frames(frames), masks=stacked.bool().view_as(clip.masks))


def _recolour(frames: Tensor, alike: np.ndarray, grey: bool, by_frame: np.ndarray) -> Tensor:
    """Brightness, contrast and saturation times ``alike`` ``[3]``, then ``by_frame`` ``[T,3]``.

    Each of these steps takes a pixel's colour to an affine function of it, so all of them together
    are one: a matrix, and one rounding, in place of a pass over the pixels for every step. Contrast
    turns about the mean of the whole clip: a mean of each frame would make the clip flicker.
    """
    pixels = _pixels(frames)
    middle = float(np.mean([cv2.mean(frame)[:3] for frame in pixels], axis=0) @ _GREY)
    common = _colour_matrix(alike, middle)
    if grey:
        common = _colour_matrix(np.array([1, 1, 0]), 0) @ common
    middle *= alike[0]
    changed = []
    for frame, factors in zip(pixels, by_frame, strict=True):
        matrix = _colour_matrix(factors, middle) @ common
        unchanged = np.array_equal(matrix, np.eye(4))
        changed.append(frame if unchanged else cv2.transform(frame, matrix[:3]))
    return _frames(changed)


def _colour_matrix(factors: np.ndarray, middle: float) -> np.ndarray:
    """``[4,4]``, of a colour (red, green, blue, 1); the factors mean what torchvision's do."""
    brightness, contrast, saturation = factors
    matrix = np.eye(4)
    linear = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    matrix[:3, :3] = brightness * contrast * linear
    matrix[:3, 3] = brightness * (1 - contrast) * middle
    return matrix


def _pixels(frames: Tensor) -> np.ndarray:
    """``[T,3,H,W]`` as OpenCV's ``[T,H,W,3]``, without a copy where they lie so in memory."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _frames(pixels: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
