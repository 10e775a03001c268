"""Test that corrected masks replace the masks of a dataset, also in training."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from data_helpers import SIZE, make_davis, save_frame, square

from sam2kit.config.loading import load_config
from sam2kit.config.schema import DatasetConfig
from sam2kit.data.build import build_datasets, open_source
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.sources.corrected import CorrectedSource, append_correction, with_corrections
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.utils.errors import ConfigError, DataError


@pytest.fixture
def source(tmp_path):
    return VideoDataset(make_davis(tmp_path / "davis", {"a": 4, "b": 4}, annotated=lambda t: t < 3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "corrections.jsonl"


def test_corrections_replace_masks(source, path):
    append_correction(path, "a", 1, {1: square(0, 0), 7: square(4, 4)}, SIZE)
    append_correction(
        path, "a", 1, {1: square(8, 8), "7": square(9, 9), 3: np.zeros(SIZE, bool)}, SIZE
    )
    append_correction(path, "a", 3, {}, SIZE)
    append_correction(path, "elsewhere", 9, {}, SIZE)
    assert len(path.read_text().splitlines()) == 4  # appended; earlier lines stay
    corrected = pickle.loads(pickle.dumps(CorrectedSource(source, path)))
    assert corrected.names == source.names and corrected.corrected == 2
    masks = corrected.read_masks(0, 1)
    assert list(masks) == [1, "7"]  # an empty mask is an absent object; 7 and "7" are different ids
    assert (masks[1] == square(8, 8)).all() and masks[1].dtype == bool
    assert corrected.read_masks(0, 3) == {} and source.read_masks(0, 3) is None
    for i, t in ((0, 0), (1, 1)):
        masks, original = corrected.read_masks(i, t), source.read_masks(i, t)
        assert masks.keys() == original.keys()
        assert all((masks[o] == original[o]).all() for o in masks)
    assert (corrected.read_frame(0, 1) == source.read_frame(0, 1)).all()
    assert corrected.frame_path(1, 2) == source.frame_path(1, 2)
    assert corrected.frame_name(1, 2) == source.frame_name(1, 2)


def test_corrected_frames_have_no_void(source, path, monkeypatch):
    monkeypatch.setattr(VideoDataset, "read_void", lambda self, i, t: np.ones(SIZE, bool))
    append_correction(path, "a", 1, {1: square(0, 0)}, SIZE)
    corrected = CorrectedSource(source, path)
    assert corrected.read_void(0, 1) is None and corrected.read_void(0, 0).all()


def test_clips_have_the_corrected_masks(source, path):
    mask = np.zeros(SIZE, bool)
    mask[:, :16] = True
    append_correction(path, "b", 3, {1: mask}, SIZE)
    settings = DatasetConfig(image_size=32, video_clip_length=4, max_objects=None)
    clips = ClipDataset(with_corrections(source, path), settings, training=False, seed=0)
    before, after = clips[0], clips[1]
    assert before.annotated[3].tolist() == [False, False]
    # A line defines all objects of its frame: object 2, which it does not list, is absent there.
    assert after.annotated[3].tolist() == [True, True]
    first = after.masks[3, after.object_ids.index(1)]
    assert first[:, :16].all() and not first[:, 16:].any()
    assert not after.masks[3, after.object_ids.index(2)].any()


def test_corrections_from_the_configuration(source, path):
    append_correction(path, "a", 3, {1: square(3, 3)}, SIZE)
    append_correction(path, "b", 3, {1: square(3, 3)}, SIZE)
    keys = [f"dataset.data_path={source.root}", f"dataset.corrections={path}", "model=nano"]
    config = load_config(overrides=[*keys, "dataset.image_size=32"])
    for clips in build_datasets(config):  # one video for training, one held out
        assert (clips.source.read_masks(0, 3)[1] == square(3, 3)).all()
    assert open_source(config).read_masks(1, 3) is not None
    with pytest.raises(ConfigError, match=r"dataset\.corrections"):
        load_config(overrides=[*keys, "dataset.type=synthetic"])


def test_only_corrected_videos_remain_of_videos_without_masks(tmp_path, path):
    for name in ("x", "y"):
        for t in range(3):
            save_frame(tmp_path / "plain" / name / f"{t}.png", 10 * t)
    source = VideoDataset(tmp_path / "plain")
    path.parent.mkdir()
    path.touch()
    assert not with_corrections(source, path).has_masks
    append_correction(path, "y", 1, {1: square(2, 2)}, SIZE)
    corrected = with_corrections(source, path)
    assert corrected.has_masks and corrected.names == ["y"]
    assert corrected.read_masks(0, 0) is None and list(corrected.read_masks(0, 1)) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"frame_index": "1"}, "frame_index"),
        ({"size": [24]}, "size"),
        ({"frame_index": 4}, "frame_index=4 .*from 0 to 3"),
        ({"size": [32, 24]}, r"size=\[32, 24\]"),
        ({"objects": [{"id": 1, "counts": "zz"}]}, "'objects'"),
        ({"objects": [{"id": 1}]}, r"`counts` - at `\$.objects\[0\]`"),
    ],
)
def test_invalid_lines_are_rejected(source, path, change, message):
    append_correction(path, "a", 1, {1: square(0, 0)}, SIZE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(DataError, match=f"line 1.*{message}") as error:
        CorrectedSource(source, path).read_masks(0, 1)
    assert error.value.hint == "remove the line"


def test_files_that_cannot_be_read_or_written(source, path, tmp_path):
    with pytest.raises(DataError, match=r"corrections\.jsonl"):
        CorrectedSource(source, path)
    path.parent.mkdir()
    path.write_text("{\n")
    with pytest.raises(DataError, match="line 1"):
        CorrectedSource(source, path)
    with pytest.raises(DataError, match="cannot be written"):
        append_correction(tmp_path, "a", 0, {}, SIZE)
    with pytest.raises(ValueError, match="do not have the frame's size"):
        append_correction(path, "a", 0, {1: np.ones((3, 3), bool)}, SIZE)


def test_a_line_that_was_cut_off_swallows_nothing(source, path):
    """A writer that was killed leaves half a line: reading drops it, appending removes it."""
    append_correction(path, "a", 0, {1: square(0, 0)}, SIZE)
    first = path.read_text()
    append_correction(path, "a", 1, {1: square(1, 1)}, SIZE)
    for length in (1, 40, len(path.read_text()) - len(first) - 2):
        path.write_text(first + path.read_text()[len(first) :][:length])
        assert CorrectedSource(source, path).corrected == 1
        append_correction(path, "a", 2, {1: square(2, 2)}, SIZE)
        assert path.read_text().startswith(first)
        corrected = CorrectedSource(source, path)
        assert corrected.corrected == 2 and (corrected.read_masks(0, 2)[1] == square(2, 2)).all()
    # A complete line without a line break, as editors leave it, is used.
    path.write_text(first.rstrip())
    assert CorrectedSource(source, path).corrected == 1
    append_correction(path, "a", 2, {}, SIZE)
    assert path.read_text().startswith(first) and CorrectedSource(source, path).corrected == 2
