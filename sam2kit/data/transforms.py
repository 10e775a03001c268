"""Normalise, resize and augment clips, frames and masks alike.

Random values come from the generator that is passed in.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sam2kit.config.schema import AugmentationConfig
from sam2kit.data.clip import VideoClip
from sam2kit.data.domains import DOMAINS, Filter

# Mean and standard deviation of RGB values (0 to 1) in ImageNet, which SAM 2 was trained with.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_DEVIATION = (0.229, 0.224, 0.225)
_GREY = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in luma (ITU-R BT.601)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation ``[3,1,1]``, which are copied to a device only once."""
    # The cache may be filled in inference mode, and training cannot use inference tensors.
    with torch.inference_mode(False):
        values = torch.tensor([IMAGE_MEAN, IMAGE_DEVIATION]).to(device)
        mean, deviation = values.view(2, 3, 1, 1).unbind()
    return mean, deviation


def normalize(frames: Tensor) -> Tensor:
    """Normalise frames with the mean and standard deviation of ImageNet.

    Args:
        frames: ``[...,3,H,W]`` uint8 RGB.

    Returns:
        ``[...,3,H,W]`` float32 with about zero mean and unit deviation, on the same device.

    Raises:
        TypeError: the frames are not uint8, so they may be normalised already.
        ValueError: the third dimension from the end is not 3.
    """
    if frames.dtype != torch.uint8:
        raise TypeError(
            f"normalize expects uint8 frames, got {frames.dtype}; are they normalised already?"
        )
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise ValueError(f"normalize expects frames [...,3,H,W], got {tuple(frames.shape)}")
    mean, deviation = _constants(frames.device)
    return frames.float().div_(255).sub_(mean).div_(deviation)  # in place: a clip is large


def resize_frames(
    frames: Tensor, size: tuple[int, int], mode: InterpolationMode = InterpolationMode.BILINEAR
) -> Tensor:
    """Resize ``[...,3,H,W]`` uint8 to ``size`` (rows, columns), with antialiasing."""
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    return F.resize(frames, list(size), mode, antialias=True)


def resize_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[...,H,W]`` bool to ``size`` (rows, columns).

    As in upstream's predictor: bilinear with antialiasing, then True where the value is at least
    0.5. An object much thinner than a pixel of the new size vanishes.
    """
    if tuple(masks.shape[-2:]) == tuple(size) or masks.numel() == 0:
        return masks.new_zeros(*masks.shape[:-2], *size) if masks.numel() == 0 else masks
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    resized = F.resize(flat, list(size), InterpolationMode.BILINEAR, antialias=True) >= 0.5
    return resized.reshape(*masks.shape[:-2], *size)


def resize_mask(mask: np.ndarray, side: int) -> np.ndarray:
    """Resize ``[H,W]`` bool to a square as :func:`resize_masks` does, but only around the object.

    Resizing takes as long as decoding. Most of a mask is background, which stays background.

    Returns:
        ``[side,side]`` bool, the same pixels as those of :func:`resize_masks`.
    """
    if mask.shape == (side, side):
        return mask
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    resized = np.zeros((side, side), bool)
    if not width:
        return resized
    rows = _resized_part(mask.shape[0], side, top, top + height)
    columns = _resized_part(mask.shape[1], side, left, left + width)
    part = torch.from_numpy(mask[rows.stored, columns.stored]).float()[None, None]
    values = torch.ops.aten._upsample_bilinear2d_aa(
        part, [rows.size, columns.size], False, side / mask.shape[0], side / mask.shape[1]
    )
    resized[rows.resized, columns.resized] = (values[0, 0] >= 0.5).numpy()
    return resized


class _Part(NamedTuple):
    """A range of rows or columns of a mask, and of the resized mask."""

    stored: slice
    resized: slice

    @property
    def size(self) -> int:
        return self.resized.stop - self.resized.start


def _resized_part(count: int, side: int, begin: int, end: int) -> _Part:
    """Choose the part of ``count`` rows that contains ``begin`` to ``end``, for exact resizing.

    Rows near an end of the part are interpolated with other weights than in the whole mask, so they
    must be empty, unless the mask ends there too.
    """
    scale = count / side
    margin = math.ceil(2 * max(scale, 1) + scale) + 1
    stop = min(count, end + margin)
    resized_stop = side if stop == count else min(side, int(stop / scale))
    # The first row of the part must be at the same distance from its new rows as in the whole mask,
    # in floating-point numbers too. It is at multiples of a period of a power of two.
    common = math.gcd(count, side)
    period = side // common
    periods = max(begin - margin, 0) // (count // common) if period & (period - 1) == 0 else 0
    return _Part(slice(periods * (count // common), stop), slice(periods * period, resized_stop))


def augment(
    clip: VideoClip,
    generator: np.random.Generator,
    strengths: AugmentationConfig | None = None,
    objects: int = 1,
) -> VideoClip:
    """Augment a training clip at random, all of its frames in the same way.

    In this order: reverse in time; crop and resize to the frame; rotate, shear, scale and translate
    about the centre, in the aspect ratio of the stored frames, filling pixels from outside the
    frame with ImageNet's mean colour; mirror; change brightness, contrast and saturation, or
    convert to grey. Brightness, contrast and saturation may also change per frame, as exposure and
    light do in filmed videos. Last, a filter may imitate another domain
    (:mod:`sam2kit.data.domains`). ``strengths`` sets the probability or range of each step.

    A reversal, crop or affine transform is skipped if the first frame would show fewer than
    ``objects`` objects afterwards (or fewer than before, if those are less). An object that leaves
    the first frame is prompted where it first appears; one that leaves all frames is visible on
    none, and :class:`~sam2kit.data.clip_dataset.ClipDataset` removes it from the clip.

    Args:
        clip: uint8 frames.
        generator: source of all random values. It is advanced by the same number of draws for any
            content of the clip.
        strengths: None (default): the default configuration.
        objects: number of objects that the first frame should show, at least 1.
    """
    s = AugmentationConfig() if strengths is None else strengths
    # Everything is drawn before anything is applied, so that no draw depends on the clip's content.
    mirrored, reversed_ = generator.random(2) < (s.flip, s.reverse)
    box = _crop_box(generator, s, clip.frames.shape[-2], clip.frames.shape[-1])
    limits = np.array([s.brightness, s.contrast, s.saturation])
    clip_factors = generator.uniform(1 - limits, 1 + limits)
    # A generator for the steps that are off by default: they were added later, and draws from the
    # generator above would change the clips of earlier versions.
    extra_generator = generator.spawn(1)[0]
    affine = _affine_matrix(extra_generator, s, clip)
    grey = extra_generator.random() < s.grayscale
    limits = np.array([s.frame_brightness, s.frame_contrast, s.frame_saturation])
    frame_factors = extra_generator.uniform(1 - limits, 1 + limits, (len(clip.frames), 3))
    domain = _draw_domain(generator.spawn(1)[0], s)
    if reversed_:
        clip = _keep_if_visible(objects, _reverse(clip), clip)
    clip = _keep_if_visible(objects, _crop(clip, *box), clip)
    if s.degrees or s.shear or s.scale or s.translate:
        clip = _keep_if_visible(objects, _warp(clip, affine), clip)
    if mirrored:
        clip = replace(clip, frames=clip.frames.flip(-1), masks=clip.masks.flip(-1))
    frames = _recolour(clip.frames, clip_factors, grey, frame_factors)
    if domain is not None:
        frames = _frames([domain(frame, t) for t, frame in enumerate(_pixels(frames))])
    return replace(clip, frames=frames)


def _draw_domain(generator: np.random.Generator, s: AugmentationConfig) -> Filter | None:
    """Draw the filter of a domain; None: no filter. With both domains, thermal is drawn first."""
    for name, probability in (("thermal", s.thermal), ("endoscopy", s.endoscopy)):
        if probability and generator.random() < probability:
            return DOMAINS[name](generator)
    return None


def _keep_if_visible(min_objects: int, changed: VideoClip, clip: VideoClip) -> VideoClip:
    """Return ``changed`` if its first frame shows enough objects, otherwise ``clip``.

    Enough are ``min_objects``, or as many as the first frame of ``clip`` shows if these are fewer.
    """
    if changed is clip:
        return clip
    after, before = (
        int((c.annotated[0] & c.masks[0].flatten(1).any(1)).sum()) for c in (changed, clip)
    )
    return changed if after >= min(min_objects, before) else clip


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
    """Draw the part of the frame to crop to: top, left, height and width."""
    side = np.sqrt(generator.uniform(1 - s.crop, 1.0))
    stretch = np.exp(generator.uniform(-s.stretch, s.stretch) / 2)
    rows = max(1, min(h, round(h * side * stretch)))
    columns = max(1, min(w, round(w * side / stretch)))
    top, left = generator.random(2) * (h - rows + 1, w - columns + 1)
    return int(top), int(left), rows, columns


def _crop(clip: VideoClip, top: int, left: int, rows: int, columns: int) -> VideoClip:
    size = (clip.frames.shape[-2], clip.frames.shape[-1])
    if (rows, columns) == size:
        return clip
    frames = clip.frames[..., top : top + rows, left : left + columns]
    masks = clip.masks[..., top : top + rows, left : left + columns]
    return replace(clip, frames=resize_frames(frames, size), masks=resize_masks(masks, size))


def _affine_matrix(
    generator: np.random.Generator, s: AugmentationConfig, clip: VideoClip
) -> np.ndarray:
    """Draw an affine transform ``[2,3]`` from pixels (x, y, 1) of the clip to pixels.

    Angles have the sign and order of torchvision's ``F.affine``.
    """
    limits = (s.degrees, s.shear, s.scale, s.translate, s.translate)
    degrees, shear, growth, *translation = generator.uniform(-1, 1, 5) * limits
    angle, shear = np.deg2rad([degrees, shear])
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = (1 + growth) * linear @ [[1, -np.tan(shear)], [0, 1]]
    # The clip is resized to a square. Rotate in the aspect ratio of the stored frames, so that a
    # circle there remains a circle.
    side = np.array(clip.frames.shape[:-3:-1], float)  # width, height
    scale = side / clip.size[::-1]
    linear = linear * scale[:, None] / scale
    center = (side - 1) / 2
    return np.column_stack([linear, center + np.multiply(translation, side) - linear @ center])


def _warp(clip: VideoClip, matrix: np.ndarray) -> VideoClip:
    """Transform frames and masks with OpenCV, which takes a tenth of the time of ``F.affine``."""
    size = (clip.frames.shape[-1], clip.frames.shape[-2])
    outside = tuple(255 * c for c in IMAGE_MEAN)
    frames = [
        cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_LINEAR, borderValue=outside)
        for frame in _pixels(clip.frames)
    ]
    masks = clip.masks.flatten(0, 1).view(torch.uint8).numpy()
    warped = [cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST) for mask in masks]
    stacked = torch.from_numpy(np.stack(warped)) if warped else clip.masks
    masks_shape = clip.masks.shape
    return replace(clip, frames=_frames(frames), masks=stacked.view(torch.bool).view(masks_shape))


def _recolour(
    frames: Tensor, clip_factors: np.ndarray, grey: bool, frame_factors: np.ndarray
) -> Tensor:
    """Scale brightness, contrast and saturation by ``[3]`` per clip, then by ``[T,3]`` per frame.

    Each step is an affine function of the colour, so all of them combine to one matrix per frame:
    one pass over the pixels and one rounding. Contrast is relative to the mean of the whole clip,
    because relative to the mean of each frame it would make the clip flicker.
    """
    pixels = _pixels(frames)
    mean = float(np.mean([cv2.mean(frame)[:3] for frame in pixels], axis=0) @ _GREY)
    common = _colour_matrix(clip_factors, mean)
    if grey:
        common = _colour_matrix(np.array([1, 1, 0]), 0) @ common
    mean *= clip_factors[0]
    changed = []
    for frame, factors in zip(pixels, frame_factors, strict=True):
        matrix = _colour_matrix(factors, mean) @ common
        unchanged = np.array_equal(matrix, np.eye(4))
        changed.append(frame if unchanged else cv2.transform(frame, matrix[:3]))
    return _frames(changed)


def _colour_matrix(factors: np.ndarray, mean: float) -> np.ndarray:
    """Make the ``[4,4]`` matrix of a change of colours (red, green, blue, 1).

    Args:
        factors: of brightness, contrast and saturation, defined as in torchvision.
        mean: luma that a change of contrast leaves as it is.
    """
    brightness, contrast, saturation = factors
    matrix = np.eye(4)
    linear = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    matrix[:3, :3] = brightness * contrast * linear
    matrix[:3, 3] = brightness * (1 - contrast) * mean
    return matrix


def _pixels(frames: Tensor) -> np.ndarray:
    """Return ``[T,3,H,W]`` as OpenCV's ``[T,H,W,3]``, without a copy if memory is channels-last."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def _frames(pixels: list[np.ndarray]) -> Tensor:
    """Return T arrays ``[H,W,3]`` as ``[T,3,H,W]``, channels-last in memory."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
