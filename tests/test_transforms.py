"""Transforms change frames and masks alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sam2kit.clip import VideoClip
from sam2kit.transforms import augment, normalize, resize, resize_masks


def bright_square_clip(num_frames: int = 4, size: tuple[int, int] = (64, 96)) -> VideoClip:
    """Object 1 is exactly where the frame is bright; it moves to the right."""
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


def test_normalize_refuses_what_is_normalised_already():
    with pytest.raises(TypeError, match="uint8"):
        normalize(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="3,H,W"):
        normalize(torch.zeros(4, 4, 3, dtype=torch.uint8))


def test_resize_squashes_and_remembers_the_stored_size():
    clip = bright_square_clip()
    small = resize(clip, 32)
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


@pytest.mark.parametrize("seed", range(25))
def test_masks_stay_on_the_object(seed):
    clip = bright_square_clip()
    changed = augment(clip, np.random.default_rng(seed))
    assert changed.frames.dtype == torch.uint8 and changed.frames.shape == clip.frames.shape
    # The object was the bright part: it still is, but for pixels on the resampled edge.
    blue = changed.frames[:, 2].float()
    middle = (blue.flatten(1).max(1).values + blue.flatten(1).min(1).values) / 2
    bright = blue > middle[:, None, None]
    mask = changed.masks[:, 0]
    iou = (bright & mask).sum((1, 2)) / (bright | mask).sum((1, 2))
    assert iou.min() > 0.93
    assert changed.visible[0].any()
    # Frames and their numbers move together: the object moved right over time.
    mirrored_or_reversed = [float(m.nonzero()[:, 1].float().mean()) for m in mask]
    steps = np.sign(np.diff(mirrored_or_reversed))
    assert abs(steps.sum()) == 3 and changed.frame_indices in ([0, 1, 2, 3], [3, 2, 1, 0])


def test_augmentations_all_occur_and_repeat():
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


def test_the_clip_is_not_changed_in_place():
    clip = bright_square_clip()
    frames, masks = clip.frames.clone(), clip.masks.clone()
    augment(clip, np.random.default_rng(0))
    assert torch.equal(clip.frames, frames) and torch.equal(clip.masks, masks)


def test_an_augmented_clip_begins_with_an_object():
    clip = bright_square_clip()
    masks = clip.masks.clone()
    masks[3] = False  # gone on the last frame: not to be reversed
    masks[:, :, :, 4:] = False
    masks[:3, :, :2, :2] = True  # in the corner: many crops would lose it
    clip = replace(clip, masks=masks)
    for seed in range(40):
        changed = augment(clip, np.random.default_rng(seed))
        assert changed.visible[0].any() and changed.frame_indices == [0, 1, 2, 3]


def test_colours_change_alike_on_all_frames():
    clip = bright_square_clip()
    clip = replace(clip, frames=clip.frames[:1].expand(4, -1, -1, -1).clone())
    changed = augment(clip, np.random.default_rng(3))
    assert (changed.frames == changed.frames[:1]).all()
    assert not torch.equal(changed.frames, clip.frames)
