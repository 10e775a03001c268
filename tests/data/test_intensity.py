"""Test that one range of values per video decides how its frames become uint8."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sam2kit.config.loading import load_config
from sam2kit.config.schema import DatasetConfig
from sam2kit.config.validation import check_dataset
from sam2kit.data.intensity import IntensityRule, VideoScaler, sampled_range, to_uint8
from sam2kit.utils.errors import ConfigError, DataError


def ramp(kind: str = "uint16") -> np.ndarray:
    """Make 10 frames; frame t has values from 1000 t to 1000 t + 999."""
    return np.arange(10_000).reshape(10, 25, 40).astype(kind)


@pytest.mark.parametrize("kind", ["uint16", "int16", "int32", "float32", "float64", ">u2"])
def test_the_range_is_that_of_the_video_not_of_the_frame(kind, messages):
    frames = ramp(kind)
    scaler = VideoScaler(IntensityRule(percentiles=(0, 100)))
    scaled = [scaler.scale(0, f, frames.__getitem__, 10, "a") for f in frames]
    assert all(f.dtype == np.uint8 for f in scaled)
    assert scaled[0].min() == 0 and scaled[0].max() == 25 and scaled[9].max() == 255
    assert scaled[9].min() == 230
    assert sum("scaled to 8 bits" in line for line in messages) == 1


def test_it_does_not_depend_on_the_order_of_reading():
    frames = ramp()
    one, other = VideoScaler(IntensityRule()), VideoScaler(IntensityRule())
    last = one.scale(0, frames[9], frames.__getitem__, 10, "a")
    other.scale(0, frames[0], frames.__getitem__, 10, "a")
    assert np.array_equal(last, other.scale(0, frames[9], frames.__getitem__, 10, "a"))


def test_percentiles_of_all_frames():
    low, high = sampled_range(ramp("float64").__getitem__, 10, (10, 90))
    assert (low, high) == pytest.approx((999.9, 8999.1))


def test_a_window_is_used_as_it_is():
    scaler = VideoScaler(IntensityRule(window=(-160, 240)))
    frame = np.array([[-1000, -160, 40, 240, 3000]], np.int16)
    assert scaler.scale(0, frame, None, 1, "ct").tolist() == [[0, 0, 128, 255, 255]]
    eight = np.array([[0, 240]], np.uint8)
    assert scaler.scale(1, eight, None, 1, "ct").tolist() == [[102, 255]]


def test_the_window_of_a_file_is_used_unless_the_rule_has_one():
    frame = np.array([[0, 100]], np.int16)
    assert VideoScaler(IntensityRule()).scale(0, frame, None, 1, "a", (0, 200)).max() == 128
    rule = IntensityRule(window=(0, 400))
    assert VideoScaler(rule).scale(0, frame, None, 1, "a", (0, 200)).max() == 64


def test_eight_bits_and_booleans():
    scaler = VideoScaler(IntensityRule())
    frame = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert scaler.scale(0, frame, None, 1, "a") is frame
    assert scaler.scale(0, frame > 2, None, 1, "a").tolist() == [[0, 0, 0], [255, 255, 255]]


def test_frames_of_8_bits_among_deeper_ones():
    frames = [*ramp()]
    frames[4] = frames[4].astype(np.uint8)
    with pytest.raises(DataError, match="frames of 8 bits"):
        VideoScaler(IntensityRule()).scale(0, frames[0], frames.__getitem__, 10, "a")
    rule = IntensityRule(window=(0, 255))
    assert VideoScaler(rule).scale(0, frames[4], frames.__getitem__, 10, "a").max() == 255


def test_values_that_are_not_finite():
    frame = np.array([[np.nan, np.inf, -np.inf, 1, 3]], np.float32)
    assert sampled_range(lambda t: frame, 1, (0, 100)) == (1, 3)
    assert to_uint8(frame, 1, 3).tolist() == [[0, 255, 0, 0, 255]]
    with pytest.raises(DataError) as error:
        sampled_range(lambda t: frame[:, :3], 1, (0, 100), "a")
    assert error.value.hint


def test_few_bright_pixels_and_a_constant_video():
    frame = np.zeros((100, 100), np.uint16)
    frame[0, 0] = 9000
    assert sampled_range(lambda t: frame, 1, (0.1, 99.9)) == (0, 9000)
    assert not to_uint8(np.full((2, 2), 7, np.uint16), 7, 7).any()


def test_values_without_a_scale_are_rejected():
    with pytest.raises(DataError) as error:
        VideoScaler(IntensityRule()).scale(0, np.zeros((2, 2), complex), None, 1, "a")
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intensity_window", [3.0, 3.0]),
        ("intensity_window", [1.0]),
        ("intensity_window", [0.0, float("inf")]),
        ("intensity_percentiles", [99.0, 1.0]),
        ("intensity_percentiles", [1.0, 101.0]),
    ],
)
def test_wrong_values_of_the_keys(name, value):
    with pytest.raises(ConfigError) as error:
        check_dataset(replace(DatasetConfig(), **{name: value}))
    assert all(p.key.startswith(f"dataset.{name}") and p.hint for p in error.value.problems)


def test_the_keys_of_a_mixture_have_their_types():
    entry = "dataset.mixture=[{data_path: a, intensity_window: %s}]"
    config = load_config(None, ["dataset=mixture", entry % "[0, 10]"])
    assert IntensityRule.from_config(config.dataset.parts()[0]).window == (0, 10)
    with pytest.raises(ConfigError) as error:
        load_config(None, ["dataset=mixture", entry % "bright"])
    assert error.value.problems[0].key == "dataset.mixture[0].intensity_window"
