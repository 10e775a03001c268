"""Test that transforms change frames and masks in the same way."""

from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from sam2kit.config.schema import AugmentationConfig
from sam2kit.data.clip import VideoClip
from sam2kit.data.transforms import (
    IMAGE_MEAN,
    augment,
    normalize,
    resize_frames,
    resize_mask,
    resize_masks,
)


def bright_square_clip(num_frames: int = 4, size: tuple[int, int] = (64, 96)) -> VideoClip:
    """A clip whose object is exactly the bright part of the frames; it moves to the right."""
    masks = torch.zeros(num_frames, 1, *size, dtype=torch.bool)
    for t in range(num_frames):
        masks[t, 0, 20:44, 20 + 4 * t : 44 + 4 * t] = True
    frames = torch.where(masks, 200, 30).to(torch.uint8).expand(-1, 3, -1, -1).clone()
    frames[:, 0] = frames[:, 0] // 2  # not grey, so that saturation matters
    annotated = torch.ones(num_frames, 1, dtype=torch.bool)
    return VideoClip(
        frames, masks, annotated, "clip", list(range(num_frames)), [1], (2 * size[0], size[1])
    )


def test_normalize_against_numbers_by_hand():
    frames = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [-0.485 / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    assert torch.allclose(normalize(frames).flatten(), torch.tensor(expected), atol=1e-6)
    assert normalize(frames.expand(2, 5, 3, 4, 6)).shape == (2, 5, 3, 4, 6)


def test_normalize_rejects_normalised_frames():
    with pytest.raises(TypeError, match="uint8"):
        normalize(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="3,H,W"):
        normalize(torch.zeros(4, 4, 3, dtype=torch.uint8))


def test_resize_to_a_square_does_not_change_the_stored_size():
    clip = bright_square_clip()
    frames, masks = resize_frames(clip.frames, (32, 32)), resize_masks(clip.masks, (32, 32))
    small = replace(clip, frames=frames, masks=masks)
    assert small.frames.shape == (4, 3, 32, 32) and small.frames.dtype == torch.uint8
    assert small.masks.shape == (4, 1, 32, 32) and small.masks.dtype == torch.bool
    assert small.size == (128, 96)
    assert small.masks[0, 0].nonzero().min(0).values.tolist() == [10, 7]
    assert small.masks[0, 0].nonzero().max(0).values.tolist() == [21, 14]


def test_resize_masks_edge_cases():
    thin = torch.zeros(1, 64, 64, dtype=torch.bool)
    thin[0, 10] = True
    assert not resize_masks(thin, (16, 16)).any()
    assert resize_masks(torch.zeros(3, 0, 8, 8, dtype=torch.bool), (4, 4)).shape == (3, 0, 4, 4)
    assert resize_masks(thin, (64, 64)) is thin


@pytest.mark.parametrize("side", [32, 96, 128, 512])
def test_resizing_only_around_the_object_gives_the_same_pixels(side):
    generator = np.random.default_rng(side)
    for shape in [(120, 214), (128, 128), (60, 90), (37, 100), (1, 5), (480, 854)]:
        for density in (0, 0.5, 0.5, 1, 1, 1):
            (top, bottom), (left, right) = (np.sort(generator.integers(0, n + 1, 2)) for n in shape)
            mask = np.zeros(shape, bool)
            mask[top:bottom, left:right] = generator.random((bottom - top, right - left)) < density
            expected = resize_masks(torch.from_numpy(mask), (side, side)).numpy()
            np.testing.assert_array_equal(resize_mask(mask, side), expected)


@pytest.mark.parametrize("seed", range(25))
def test_masks_stay_on_the_object(seed):
    clip = bright_square_clip()
    changed = augment(clip, np.random.default_rng(seed))
    assert changed.frames.dtype == torch.uint8 and changed.frames.shape == clip.frames.shape
    # The object is still the bright part, except for pixels on the resampled edge.
    blue = changed.frames[:, 2].float()
    middle = (blue.flatten(1).max(1).values + blue.flatten(1).min(1).values) / 2
    bright = blue > middle[:, None, None]
    mask = changed.masks[:, 0]
    iou = (bright & mask).sum((1, 2)) / (bright | mask).sum((1, 2))
    assert iou.min() > 0.93
    assert changed.visible[0].any()
    # Frames and their numbers are reordered together: the object still moves in one direction.
    columns = [float(m.nonzero()[:, 1].float().mean()) for m in mask]
    steps = np.sign(np.diff(columns))
    assert abs(steps.sum()) == 3 and changed.frame_indices in ([0, 1, 2, 3], [3, 2, 1, 0])


def test_all_augmentations_occur_and_are_reproducible():
    clip = bright_square_clip()
    results = [augment(clip, np.random.default_rng(seed)) for seed in range(30)]
    assert {r.frame_indices[0] for r in results} == {0, 3}
    directions = {
        (r.frame_indices[0], bool(r.masks[3].nonzero()[:, 2].min() > r.masks[0].nonzero()[0, 2]))
        for r in results
    }
    assert len(directions) == 4  # reversed or not, mirrored or not
    assert len({int(r.masks[0].sum()) for r in results}) > 5  # crops
    again = augment(clip, np.random.default_rng(7))
    assert torch.equal(again.frames, results[7].frames)
    assert torch.equal(again.masks, results[7].masks)


def test_augment_does_not_change_the_clip_in_place():
    clip = bright_square_clip()
    frames, masks = clip.frames.clone(), clip.masks.clone()
    augment(clip, np.random.default_rng(0))
    assert torch.equal(clip.frames, frames) and torch.equal(clip.masks, masks)


def test_first_frame_of_an_augmented_clip_shows_an_object():
    clip = bright_square_clip()
    masks = clip.masks.clone()
    masks[3] = False  # not on the last frame, so the clip must not be reversed
    masks[:, :, :, 4:] = False
    masks[:3, :, :2, :2] = True  # in the corner: many crops would lose it
    clip = replace(clip, masks=masks)
    for seed in range(40):
        changed = augment(clip, np.random.default_rng(seed))
        assert changed.visible[0].any() and changed.frame_indices == [0, 1, 2, 3]


def test_colours_change_equally_on_all_frames():
    clip = bright_square_clip()
    clip = replace(clip, frames=clip.frames[:1].expand(4, -1, -1, -1).clone())
    changed = augment(clip, np.random.default_rng(3))
    assert (changed.frames == changed.frames[:1]).all()
    assert not torch.equal(changed.frames, clip.frames)


# --- strengths -----------------------------------------------------------------------------------

NOTHING = dict.fromkeys(AugmentationConfig.__dataclass_fields__, 0.0)
shares = st.floats(0, 0.5)


def only(**strengths: float) -> AugmentationConfig:
    return AugmentationConfig(**(NOTHING | strengths))


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    strengths=st.builds(
        AugmentationConfig,
        degrees=st.floats(0, 180),
        shear=st.floats(0, 40),
        crop=shares,
        stretch=shares,
        scale=st.floats(0, 0.3),
        translate=st.floats(0, 0.2),
        brightness=st.floats(0, 0.2),
        contrast=shares,
        frame_brightness=st.floats(0, 0.1),
        frame_contrast=shares,
    ),
    stored=st.sampled_from([(64, 96), (64, 64), (200, 96)]),
)
def test_frames_and_masks_are_augmented_alike(seed, strengths, stored):
    clip = bright_square_clip()
    # A dark object on the colour that fills what comes in from outside: any change of colours keeps
    # the object darker than everything else, so that pixels can be compared without a threshold.
    background = torch.tensor(IMAGE_MEAN).mul(255).round().to(torch.uint8).view(1, 3, 1, 1)
    dark = torch.tensor(20, dtype=torch.uint8)
    painted = torch.where(clip.masks, dark, background.expand_as(clip.frames))
    clip = replace(clip, frames=painted, size=stored)
    changed = augment(clip, np.random.default_rng(seed), strengths)
    assert changed.frames.shape == clip.frames.shape and changed.frames.dtype == torch.uint8
    assert changed.masks.shape == clip.masks.shape and changed.masks.dtype == torch.bool
    # Resampling rounds frames and masks differently on the edge, so pixels next to it do not count.
    # An IoU would: it is low for a thin object, however well the mask fits.
    neighbours = np.ones((3, 3), np.uint8)
    for frame, mask in zip(changed.frames[:, 2].numpy(), changed.masks[:, 0].numpy(), strict=True):
        inside = cv2.erode(mask.astype(np.uint8), neighbours) > 0
        outside = cv2.dilate(mask.astype(np.uint8), neighbours) == 0
        if inside.any() and outside.any():
            assert frame[inside].max() < frame[outside].min()


def test_nothing_changes_at_strength_zero():
    clip = bright_square_clip()
    changed = augment(clip, np.random.default_rng(0), only())
    assert torch.equal(changed.frames, clip.frames) and torch.equal(changed.masks, clip.masks)
    assert changed.frame_indices == clip.frame_indices


@pytest.mark.parametrize("seed", range(3))
def test_affine_transforms_equal_those_of_torchvision(seed):
    clip = replace(bright_square_clip(1), size=(64, 96))
    draws = np.random.default_rng(seed).spawn(1)[0]  # the generator that augment draws from
    angle, shear, growth, x, y = draws.uniform(-1, 1, 5) * (60, 30, 0.3, 0.1, 0.1)
    changed = augment(
        clip, np.random.default_rng(seed), only(degrees=60, shear=30, scale=0.3, translate=0.1)
    )
    shift = [round(x * 96), round(y * 64)]  # torchvision moves by whole pixels
    transform = partial(
        F.affine, angle=angle, translate=shift, scale=1 + growth, shear=[shear, 0.0]
    )
    masks = transform(clip.masks)
    frames = transform(clip.frames, interpolation=InterpolationMode.BILINEAR)
    assert iou(changed.masks, masks) > 0.93
    mask = changed.masks[0, 0] & masks[0, 0]
    difference = (changed.frames[0, 2].float() - frames[0, 2].float()).abs()
    assert float((difference[mask] < 3).float().mean()) > 0.9


def test_rotation_has_the_aspect_ratio_of_the_stored_frame():
    """A disc in the stored frame is an ellipse in the resized one, and a rotation keeps it."""
    y, x = np.mgrid[:64, :64] - 31.5
    disc = torch.from_numpy((x / 15) ** 2 + (y / 30) ** 2 <= 1)[None, None]
    frames = (disc * 255).to(torch.uint8).expand(1, 3, -1, -1)
    clip = VideoClip(frames, disc, torch.ones(1, 1, dtype=torch.bool), size=(100, 200))
    for seed in range(5):
        rotated = augment(clip, np.random.default_rng(seed), only(degrees=180))
        assert iou(rotated.masks, clip.masks) > 0.95
        assert not torch.equal(rotated.frames, clip.frames)


def test_colours_equal_those_of_torchvision():
    pixels = np.random.default_rng(0).integers(90, 160, (1, 3, 24, 32), dtype=np.uint8)
    frames = torch.from_numpy(pixels)
    clip = VideoClip(frames, torch.ones(1, 1, 24, 32, dtype=torch.bool), torch.ones(1, 1) > 0)
    for seed in range(4):
        factors = np.random.default_rng(seed)
        factors.random(2), factors.uniform(size=2), factors.random(2)  # skip the flips and the crop
        brightness, contrast, saturation = factors.uniform(0.8, 1.2, 3)
        expected = F.adjust_brightness(frames.float() / 255, brightness)
        expected = F.adjust_contrast(expected, contrast)
        expected = F.adjust_saturation(expected, saturation) * 255
        colours = only(brightness=0.2, contrast=0.2, saturation=0.2)
        changed = augment(clip, np.random.default_rng(seed), colours)
        assert (changed.frames.float() - expected).abs().max() < 1.5


def test_colours_change_per_frame():
    clip = bright_square_clip()
    clip = replace(clip, frames=clip.frames[:1].expand(4, -1, -1, -1).clone())
    for part in ("frame_brightness", "frame_contrast", "frame_saturation"):
        changed = augment(clip, np.random.default_rng(1), only(**{part: 0.5}))
        assert len({int(frame.long().sum()) for frame in changed.frames}) == 4, part
        assert torch.equal(changed.masks, clip.masks)


def test_grey_clips():
    clip = bright_square_clip()
    grey = [augment(clip, np.random.default_rng(k), only(grayscale=0.5)).frames for k in range(20)]
    is_grey = [torch.equal(f[:, 0], f[:, 1]) and torch.equal(f[:, 0], f[:, 2]) for f in grey]
    assert 3 < sum(is_grey) < 17
    expected = F.rgb_to_grayscale(clip.frames, 3).float()
    assert (grey[is_grey.index(True)].float() - expected).abs().max() <= 1
    assert torch.equal(grey[is_grey.index(False)], clip.frames)


def test_steps_that_would_remove_objects_from_the_first_frame_are_skipped():
    clip = bright_square_clip()
    corner = torch.zeros_like(clip.masks)
    corner[:, :, :6, :6] = True
    clip = replace(
        clip,
        masks=torch.cat([clip.masks, corner], 1),
        annotated=clip.annotated.expand(-1, 2).clone(),
        object_ids=[1, 2],
    )
    strengths = only(crop=0.8, degrees=90, translate=0.2)
    one = [augment(clip, np.random.default_rng(k), strengths) for k in range(30)]
    two = [augment(clip, np.random.default_rng(k), strengths, objects=2) for k in range(30)]
    assert {int(c.visible[0].sum()) for c in one} == {1, 2}
    assert {int(c.visible[0].sum()) for c in two} == {2}
    assert any(not torch.equal(c.masks, clip.masks) for c in two)
    # Three objects are required, but there are only two: two are enough.
    assert augment(clip, np.random.default_rng(0), strengths, objects=3).visible[0].all()


def test_clips_without_objects_are_augmented():
    clip = bright_square_clip().select_objects([])
    changed = augment(clip, np.random.default_rng(0), AugmentationConfig(degrees=20))
    assert changed.masks.shape == (4, 0, 64, 96)
