"""Test masks and identities of the Cell Tracking Challenge."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import SIZE, square
from stack_helpers import NUM_FRAMES, labels, make_ctc, save_tiff, stack

from sam2kit.data import open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.lineage import Track, read_tracks
from sam2kit.data.sources.ctc import CTCDataset, labels_of_tracks
from sam2kit.utils.errors import DataError


def marker(*centers: tuple[int, int, int]) -> np.ndarray:
    """Make small markers at (row, column) with a label each."""
    image = np.zeros(SIZE, np.uint16)
    for row, column, label in centers:
        image[row : row + 3, column : column + 3] = label
    return image


def test_masks_get_the_ids_of_their_markers(tmp_path):
    make_ctc(tmp_path, names=("01",))
    for t in range(NUM_FRAMES):
        small = marker((2, 2 * t % 24 + 2, 1), (14, 22, 2))
        save_tiff(tmp_path / "01_GT" / "TRA" / f"man_track{t:03d}.tif", small)
    source = open_source(tmp_path)
    assert isinstance(source, CTCDataset) and detect_layout(tmp_path).type == "ctc"
    for t in (0, 2, 4):
        masks = source.read_masks(0, t)
        assert np.array_equal(masks[1], square(0, 2 * t)) and np.array_equal(
            masks[2], square(12, 20)
        )
    assert source.read_masks(0, 1) is None and list(source.annotated_frames(0)) == [0, 2, 4]


def test_half_a_marker_is_no_match():
    masks, markers = np.zeros((4, 4), int), np.zeros((4, 4), int)
    markers[:2], masks[1:] = 7, 3
    assert labels_of_tracks(masks, markers)[1:] == ([3], [7])
    masks[0, 0] = 3
    shown, unknown, uncovered = labels_of_tracks(masks, markers)
    assert (unknown, uncovered) == ([], []) and set(shown[masks > 0].tolist()) == {7}


def test_a_mask_over_two_markers():
    masks = np.full((4, 8), 3)
    markers = np.zeros((4, 8), int)
    markers[0, :2], markers[3] = 1, 2
    shown, unknown, uncovered = labels_of_tracks(masks, markers)
    assert (shown == 2).all() and (unknown, uncovered) == ([], [1])


def test_a_frame_with_a_part_of_its_masks_is_unannotated(tmp_path):
    """A tracked cell without a mask is not absent."""
    make_ctc(tmp_path, names=("01",))
    image = labels()[2]
    image[image == 2] = 0
    save_tiff(tmp_path / "01_GT" / "SEG" / "man_seg002.tif", image)
    source = open_source(tmp_path)
    assert list(source.annotated_frames(0)) == [0, 4] and source.read_masks(0, 2) is None
    (entry,) = source.left_out_masks(0)
    assert (entry.kind, entry.count) == ("masks", 1) and "t002" in entry.where
    findings = run_doctor(open_source(tmp_path)).findings
    assert [f.where for f in findings] == [entry.where]


def test_a_mask_without_a_marker_is_left_out(tmp_path):
    make_ctc(tmp_path, names=("01",))
    image = np.where(labels()[0] > 0, labels()[0], 0).astype(np.uint16)
    image[square(0, 24, 4)] = 9
    save_tiff(tmp_path / "01_GT" / "SEG" / "man_seg000.tif", image)
    source = open_source(tmp_path)
    assert set(source.read_masks(0, 0)) == {1, 2}
    assert [entry.count for entry in source.left_out_masks(0)] == [1]


def test_silver_truth(tmp_path):
    make_ctc(tmp_path, names=("01",))
    for t in range(NUM_FRAMES):
        silver = labels()[t]
        silver[silver == 2] = 0
        save_tiff(tmp_path / "01_ST" / "SEG" / f"man_seg{t:03d}.tif", silver)
    source = open_source(tmp_path)
    assert [set(source.read_masks(0, t)) for t in range(2)] == [{1, 2}, {1}]
    assert source.left_out_masks(0) == []
    silver_only = CTCDataset(tmp_path, truth="silver")
    assert set(silver_only.read_masks(0, 0)) == {1}
    assert CTCDataset(tmp_path, truth="gold").read_masks(0, 1) is None
    markers = CTCDataset(tmp_path, truth="track")
    assert set(markers.read_masks(0, 1)) == {1, 2}


def test_markers_alone(tmp_path):
    make_ctc(tmp_path, names=("01",))
    for file in (tmp_path / "01_GT" / "SEG").iterdir():
        file.unlink()
    with pytest.raises(DataError) as error:
        CTCDataset(tmp_path)
    assert error.value.key == "dataset.ctc_truth"
    assert CTCDataset(tmp_path, truth="track").has_masks


def test_frames_alone(tmp_path):
    for t, frame in enumerate(stack()):
        save_tiff(tmp_path / "01" / f"t{t:03d}.tif", frame)
    source = CTCDataset(tmp_path)
    assert not source.has_masks and source.read_masks(0, 0) is None


def test_parents(tmp_path):
    make_ctc(tmp_path, names=("01",))
    tracks = tmp_path / "01_GT" / "TRA" / "man_track.txt"
    tracks.write_text("1 0 5 0\r\n2 3 5 1\r\n\r\n")
    source = open_source(tmp_path)
    assert source.parents(0) == {2: 1} and source.tracks(0)[2] == Track(3, 5, 1)


@pytest.mark.parametrize(
    "text", ["1 0 5", "1 0 5 0\n1 0 5 0", "1 5 0 0", "a b c d", "1 0 5 9", "0 0 5 0", "1 0 5 0 0"]
)
def test_wrong_tracks(text, tmp_path):
    (tmp_path / "man_track.txt").write_text(text)
    with pytest.raises(DataError) as error:
        read_tracks(tmp_path / "man_track.txt")
    assert error.value.hint


def test_a_marker_without_a_track(tmp_path):
    make_ctc(tmp_path, names=("01",))
    (tmp_path / "01_GT" / "TRA" / "man_track.txt").write_text("1 0 5 0")
    with pytest.raises(DataError) as error:
        open_source(tmp_path).read_masks(0, 0)
    assert error.value.hint


def test_three_dimensions_and_strange_files(tmp_path):
    make_ctc(tmp_path / "1", names=("01",))
    save_tiff(tmp_path / "1" / "01_GT" / "SEG" / "man_seg_000_003.tif", labels()[0])
    make_ctc(tmp_path / "2", names=("01",))
    save_tiff(tmp_path / "2" / "01_GT" / "SEG" / "man_seg099.tif", labels()[0])
    make_ctc(tmp_path / "3", names=("01",))
    save_tiff(tmp_path / "3" / "01" / "t000.tif", np.zeros((5, *SIZE), np.uint16), axes="ZYX")
    for name in "123":
        with pytest.raises(DataError) as error:
            open_source(tmp_path / name).read_frame(0, 0)
        assert error.value.hint


@pytest.mark.parametrize("kind", ["TRA/man_track002.tif", "SEG/man_seg002.tif"])
def test_one_label_image_of_another_size(tmp_path, kind):
    make_ctc(tmp_path, names=("01",))
    save_tiff(tmp_path / "01_GT" / kind, np.ones((SIZE[0], SIZE[1] - 1), np.uint16))
    source = CTCDataset(tmp_path)
    assert source.read_masks(0, 0)
    with pytest.raises(DataError) as error:
        source.read_masks(0, 2)
    assert error.value.hint
