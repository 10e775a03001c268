"""Test that stacks, Cell Tracking Challenge data and volumes are written as they are read."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from data_helpers import SIZE, square
from stack_helpers import (
    AFFINE,
    DICOM_AFFINE,
    NUM_FRAMES,
    make_ctc,
    make_dicom,
    make_frames,
    make_nifti,
    make_npz,
    make_stacks,
    save_nifti,
    save_tiff,
    stack,
)
from test_conversion import MemorySource, assert_same

from sam2kit.data import open_source
from sam2kit.data.conversion import convert
from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.label_writers import LabelRecorder, write_ctc_labels, write_image
from sam2kit.data.lineage import Track, read_tracks
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.nifti import NiftiDataset
from sam2kit.utils.errors import DataError

Masks = dict[ObjectId, np.ndarray]


def check_raw(one: VideoSource, other: VideoSource) -> None:
    for i in range(len(one)):
        for t in range(one.num_frames(i)):
            raw, again = one.raw_frame(i, t), other.raw_frame(i, t)
            assert raw.dtype == again.dtype and np.array_equal(raw, again)


@pytest.mark.parametrize("make", [make_stacks, make_frames, make_ctc, make_npz])
def test_tiff(make, tmp_path):
    source = open_source(make(tmp_path / "in"))
    again = open_source(convert(source, tmp_path / "out", "tiff"))
    assert_same(source, again, names=False)
    check_raw(source, again)


@pytest.mark.parametrize("make", [make_stacks, make_frames, make_ctc])
def test_ctc(make, tmp_path):
    source = open_source(make(tmp_path / "in"))
    again = open_source(convert(source, tmp_path / "out", "ctc"))
    assert again.names == ["01", "02"]
    again.names = source.names
    assert_same(source, again, names=False)
    check_raw(source, again)


@pytest.mark.parametrize("make", [make_nifti, make_dicom, make_npz])
def test_nifti(make, tmp_path):
    source = open_source(make(tmp_path / "in"))
    again = open_source(convert(source, tmp_path / "out", "nifti"))
    assert_same(source, again, pixels=make is not make_dicom)  # its window comes from the file
    check_raw(source, again)
    assert np.allclose(source.geometry(0).affine, again.geometry(0).affine)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_affine_and_the_voxels_of_any_axis(axis, reverse, tmp_path):
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 999, (4, 5, 6)).astype(np.int16)
    save_nifti(tmp_path / "in" / "a.nii.gz", frames)
    save_nifti(tmp_path / "in" / "a_seg.nii.gz", ((frames > 500) * 3).astype(np.uint8))
    source = NiftiDataset(tmp_path / "in", axis=axis, reverse=reverse)
    convert(source, tmp_path / "out", "nifti")
    for name, was in (("images/a", "a"), ("labels/a", "a_seg")):
        image = nibabel.load(tmp_path / "out" / f"{name}.nii.gz")
        before = nibabel.load(tmp_path / "in" / f"{was}.nii.gz")
        assert np.array_equal(np.asarray(image.dataobj), np.asarray(before.dataobj))
        assert np.array_equal(image.affine, before.affine)
        assert image.header.get_xyzt_units()[0] == "mm"


def test_spacing_is_that_of_the_frames():
    geometry = VolumeGeometry(AFFINE, 2)
    assert geometry.spacing == pytest.approx((2.5, 0.8, 0.5))
    assert VolumeGeometry(AFFINE, 0).spacing == pytest.approx((0.5, 2.5, 0.8))
    assert VolumeGeometry(DICOM_AFFINE).spacing == pytest.approx((2.5, 0.8, 0.5))


def lineage_source() -> MemorySource:
    """Make a video in which cell 5 divides into 7 and 9, and 9 is out of view on frame 4."""
    frames: list[Masks | None] = []
    for t in range(7):
        masks: Masks = {}
        if t < 3:
            masks[5] = square(0, 4, size=(12, 16))
        else:
            masks[7] = square(0, 0, 4, size=(12, 16))
            if t != 4:
                masks[9] = square(6, 8, 4, size=(12, 16))
        frames.append(masks)
    source = MemorySource({"01": frames})
    source.parents = lambda i: {7: 5, 9: 5}  # type: ignore[method-assign]
    return source


@pytest.mark.parametrize("form", ["tiff", "ctc"])
def test_parents_are_kept(form, tmp_path):
    source = lineage_source()
    again = open_source(convert(source, tmp_path / "out", form))
    assert_same(source, again, names=False)
    assert again.parents(0) == {7: 5, 9: 5}
    other = "ctc" if form == "tiff" else "tiff"
    third = open_source(convert(again, tmp_path / "other", other))
    assert_same(source, third, names=False)
    assert third.parents(0) == {7: 5, 9: 5}


def test_a_track_has_no_gaps(tmp_path):
    convert(lineage_source(), tmp_path / "out", "ctc")
    tracking = tmp_path / "out" / "01_GT" / "TRA"
    assert read_tracks(tracking / "man_track.txt") == {
        5: Track(0, 2, 0),
        7: Track(3, 6, 5),
        9: Track(3, 3, 5),
        10: Track(5, 6, 9),
    }
    assert json.loads((tracking / "objects.json").read_text()) == {"10": 9}
    for t in range(7):
        present = np.unique(tifffile.imread(tracking / f"man_track{t:03d}.tif")).tolist()
        tracks = read_tracks(tracking / "man_track.txt")
        assert present[1:] == [n for n, x in tracks.items() if x.begin <= t <= x.end]


@pytest.mark.parametrize("form", ["davis", "coco-video"])
def test_parents_that_are_lost_are_counted(form, tmp_path, messages):
    convert(lineage_source(), tmp_path / "out", form)
    assert any(line.startswith("WARNING") and line.strip().endswith("2") for line in messages)


@pytest.mark.parametrize("form", ["tiff", "ctc", "nifti"])
def test_names_that_are_no_labels(form, tmp_path):
    masks: Masks = {"cat": square(0, 0, 4, size=(12, 16)), 70_000: square(6, 8, 4, size=(12, 16))}
    source = MemorySource({"01": [masks] * 3})
    if form == "nifti":  # which has no colours
        source.raw_frame = lambda i, t: np.full((12, 16), t, np.uint8)  # type: ignore[method-assign]
    again = open_source(convert(source, tmp_path / "out", form))
    assert_same(source, again, names=False, pixels=False)


@pytest.mark.parametrize("form", ["tiff", "ctc", "nifti"])
def test_overlaps_are_rejected(form, tmp_path):
    masks: Masks = {1: square(0, 0, size=(12, 16)), 2: square(4, 4, size=(12, 16))}
    with pytest.raises(DataError) as error:
        convert(MemorySource({"a": [masks]}), tmp_path / "out", form)
    assert error.value.hint and not (tmp_path / "out").exists()


def test_unannotated_frames(tmp_path):
    source = open_source(make_frames(tmp_path / "in"))
    with pytest.raises(DataError) as error:
        convert(source, tmp_path / "out", "nifti")
    assert error.value.hint


def test_colours_and_floats(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, *SIZE, 3)).astype(np.uint8)
    save_tiff(tmp_path / "rgb" / "a.tif", colours, photometric="rgb", axes="TYXS")
    source = open_source(tmp_path / "rgb")
    check_raw(source, open_source(convert(source, tmp_path / "1", "tiff")))
    with pytest.raises(DataError):
        convert(source, tmp_path / "2", "nifti")
    save_tiff(tmp_path / "float" / "a.tif", stack().astype(np.float32), axes="TYX")
    source = open_source(tmp_path / "float")
    check_raw(source, open_source(convert(source, tmp_path / "3", "tiff")))
    with pytest.raises(DataError):
        convert(source, tmp_path / "4", "ctc")


def test_the_highest_logit_wins(tmp_path):
    recorder = LabelRecorder("a")
    low, high = np.full(SIZE, -1.0), np.full(SIZE, -1.0)
    low[:8, :8], high[4:12, 4:12] = 2, 3
    recorder.add({4: low, 6: high}, SIZE)
    recorder.add({}, SIZE)
    first, second = recorder.images()
    assert first[5, 5] == 6 and first[0, 0] == 4 and first[20, 20] == 0 and not second.any()
    write_ctc_labels(recorder, {}, lambda t: tmp_path / f"mask{t:03d}.tif", tmp_path / "res.txt")
    assert read_tracks(tmp_path / "res.txt") == {4: Track(0, 0, 0), 6: Track(0, 0, 0)}


def test_frame_count(tmp_path):
    root = make_stacks(tmp_path / "in", names=("a",))
    assert open_source(convert(root, tmp_path / "o", "nifti")).num_frames(0) == NUM_FRAMES
    assert isinstance(tmp_path, Path)


def test_a_frame_of_two_channels_is_rejected(tmp_path):
    with pytest.raises(DataError) as error:
        write_image(tmp_path / "a.tif", np.zeros((4, 4, 2), np.uint16))
    assert error.value.key == "dataset.stack_channels"
