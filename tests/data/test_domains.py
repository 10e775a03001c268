"""Test the filters that imitate other domains."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from sam2kit.config.schema import AugmentationConfig
from sam2kit.data import FilteredVideos, SyntheticDataset, VideoDataset, convert
from sam2kit.data.clip import VideoClip
from sam2kit.data.domains import DOMAINS
from sam2kit.data.transforms import augment
from sam2kit.utils.errors import DataError

FRAME = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
NONE = AugmentationConfig(
    reverse=0, flip=0, crop=0, stretch=0, brightness=0, contrast=0, saturation=0
)


@pytest.fixture(scope="module")
def source():
    return SyntheticDataset(3, 4, 48, 2, 0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_filter_depends_on_its_generator_and_the_frame_number(domain):
    one, same, other = (DOMAINS[domain](np.random.default_rng(seed)) for seed in (1, 1, 2))
    result = one(FRAME, 3)
    assert result.shape == FRAME.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(result, same(FRAME, 3))  # also without earlier frames
    assert (result != other(FRAME, 3)).any() and (result != one(FRAME, 4)).any()


def test_the_look_of_the_domains():
    grey = np.full((64, 64, 3), 128, np.uint8)
    for seed in range(10):
        thermal, red = (DOMAINS[d](np.random.default_rng(seed))(grey, 0) for d in DOMAINS)
        assert (thermal == thermal[..., :1]).all()
        middle = red[16:48, 16:48].reshape(-1, 3).mean(0)
        assert middle[0] > 1.3 * middle[1] and middle[0] > 1.3 * middle[2]
        assert red[:3, :3].mean() < 0.5 * middle.mean()  # dark corners


def test_filtered_videos_keep_their_masks(source, tmp_path):
    filtered = FilteredVideos(source, "endoscopy", seed=5)
    assert filtered.names == source.names and len(filtered) == 3
    assert filtered.frame_path(0, 0) is None and filtered.num_frames(1) == 4
    for key, mask in source.read_masks(1, 2).items():
        np.testing.assert_array_equal(filtered.read_masks(1, 2)[key], mask)
    again = pickle.loads(pickle.dumps(filtered))
    np.testing.assert_array_equal(filtered.read_frame(1, 2), again.read_frame(1, 2))
    assert (filtered.read_frame(1, 2) != source.read_frame(1, 2)).any()
    written = VideoDataset(convert(filtered, tmp_path / "davis", "davis"))
    np.testing.assert_array_equal(written.read_frame(1, 2), filtered.read_frame(1, 2))


def test_an_unknown_domain_is_an_error(source):
    with pytest.raises(DataError) as error:
        FilteredVideos(source, "sonar")
    assert (error.value.key, error.value.value) == ("domain", "sonar") and error.value.hint


def test_domains_as_augmentation():
    frames = torch.from_numpy(FRAME).permute(2, 0, 1).repeat(3, 1, 1, 1)
    masks = torch.ones(3, 1, 48, 64, dtype=torch.bool)
    clip = VideoClip(frames, masks, masks.any((2, 3)), "clip", [0, 1, 2], [1], (48, 64))

    def augmented(seed, **strengths):
        return augment(clip, np.random.default_rng(seed), replace(NONE, **strengths)).frames

    assert torch.equal(augmented(0), frames)
    thermal = [augmented(seed, thermal=0.5) for seed in range(20)]
    grey = [bool((x == x[:, :1]).all()) for x in thermal]
    assert 4 < sum(grey) < 16
    assert all(is_grey or torch.equal(x, frames) for x, is_grey in zip(thermal, grey, strict=True))
    assert torch.equal(augmented(1, endoscopy=1.0), augmented(1, endoscopy=1.0))
    assert not torch.equal(augmented(1, endoscopy=1.0), augmented(2, endoscopy=1.0))
    assert torch.equal(augmented(3, thermal=1.0, endoscopy=1.0), augmented(3, thermal=1.0))
