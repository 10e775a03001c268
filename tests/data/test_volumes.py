"""Test NIfTI, DICOM and NPZ volumes: order, geometry, labels, windows, and rejected files."""

from __future__ import annotations

import gzip
import zipfile

import nibabel
import numpy as np
import pydicom
import pytest
from data_helpers import SIZE, square
from stack_helpers import (
    DICOM_AFFINE,
    NUM_FRAMES,
    labels,
    make_dicom,
    make_nifti,
    make_npz,
    save_dicom,
    save_nifti,
    stack,
)

from sam2kit.data import open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.intensity import IntensityRule
from sam2kit.data.sources import dicom, npz
from sam2kit.data.sources.dicom import DicomDataset
from sam2kit.data.sources.nifti import NiftiDataset
from sam2kit.data.sources.npz import NPZDataset
from sam2kit.utils.errors import DataError

H, W = SIZE


def rejects(read) -> DataError:
    with pytest.raises(DataError) as error:
        source = read()
        source.read_frame(0, 0)
        source.read_masks(0, 0)
    assert error.value.hint
    return error.value


# --- NIfTI --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("volume", "label"),
    [
        ("{}.nii.gz", "{}_seg.nii.gz"),
        ("{}.nii", "labels/{}.nii"),
        ("imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz"),
        ("images/{}.nii.gz", "labels/{}.nii.gz"),
        ("{}/image.nii.gz", "{}/label.nii.gz"),
        ("{}/{}.nii.gz", "{}/{}_gt.nii.gz"),
    ],
)
def test_layouts(volume, label, tmp_path):
    for case in ("c1", "c2"):
        save_nifti(tmp_path / volume.format(case, case), stack(dtype="int16"))
        save_nifti(tmp_path / label.format(case, case), labels())
    source = open_source(tmp_path)
    assert detect_layout(tmp_path).type == "nifti"
    assert source.names == ["c1", "c2"] and source.num_frames(1) == NUM_FRAMES
    assert np.array_equal(source.read_masks(1, 3)[1], square(0, 6))


def test_one_file(tmp_path):
    make_nifti(tmp_path)
    source = open_source(tmp_path / "b.nii.gz")
    assert source.names == ["b"] and set(source.read_masks(0, 0)) == {1, 2}


def test_axis_and_direction(tmp_path):
    save_nifti(tmp_path / "a.nii", stack(dtype="int16"))
    rule = IntensityRule(window=(0, 2550))
    reverse = NiftiDataset(tmp_path, rule=rule, reverse=True)
    assert [int(reverse.read_frame(0, t)[0, 0, 0]) for t in range(3)] == [50, 40, 30]
    other = NiftiDataset(tmp_path, rule=rule, axis=0)  # columns
    assert other.num_frames(0) == W and other.frame_size(0) == (NUM_FRAMES, H)
    assert other.read_frame(0, 0)[:, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert other.geometry(0).spacing == pytest.approx((0.5, 2.5, 0.8))


def test_the_scale_factor_of_the_header(tmp_path):
    save_nifti(tmp_path / "a.nii.gz", stack(dtype="int16"), slope_inter=(2, -100))
    assert float(open_source(tmp_path).raw_frame(0, 3)[0, 0]) in (500, 300)
    image = nibabel.Nifti1Image(np.linspace(0, 1, W * H * 4).reshape(W, H, 4), np.eye(4))
    image.header.set_data_dtype(np.uint8)
    nibabel.save(image, tmp_path / "a.nii.gz")
    values = open_source(tmp_path).raw_frame(0, 0)
    assert values.dtype == np.float32 and 0 <= values.min() < values.max() <= 1


def test_rejected_nifti(tmp_path):
    save_nifti(tmp_path / "1" / "a.nii.gz", stack(dtype="int16"))
    save_nifti(tmp_path / "1" / "a_seg.nii.gz", labels(5))
    rejects(lambda: open_source(tmp_path / "1"))
    save_nifti(tmp_path / "2" / "a.nii.gz", stack(dtype="int16"), np.diag([1.0, 1, 1, 1]))
    save_nifti(tmp_path / "2" / "a_seg.nii.gz", labels(), np.diag([-1.0, 1, 1, 1]))
    rejects(lambda: open_source(tmp_path / "2"))
    (tmp_path / "3").mkdir()
    series = nibabel.Nifti1Image(np.zeros((4, 5, 6, 7), np.int16), np.eye(4))
    nibabel.save(series, tmp_path / "3" / "a.nii.gz")
    rejects(lambda: open_source(tmp_path / "3"))
    (tmp_path / "3" / "a.nii.gz").write_bytes(b"no gzip")
    rejects(lambda: open_source(tmp_path / "3"))
    path = save_nifti(tmp_path / "4" / "a.nii.gz", stack(dtype="int16"))
    path.write_bytes(path.read_bytes()[:150])
    rejects(lambda: open_source(tmp_path / "4"))


def test_a_forged_nifti_size(tmp_path):
    """A few bytes that promise 32767 slices in each direction are rejected at once."""
    path = save_nifti(tmp_path / "a.nii", stack(dtype="int16"))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767] * 3, "<i2").tobytes()
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(bytes(content))
    path.unlink()
    rejects(lambda: open_source(tmp_path))


# --- DICOM --------------------------------------------------------------------------------------


def test_slices_are_sorted_by_position(tmp_path):
    source = open_source(make_dicom(tmp_path))
    assert isinstance(source, DicomDataset) and source.names == ["a", "b"]
    values = [source.raw_frame(0, t)[0, 0] for t in range(NUM_FRAMES)]
    assert values == [0, 100, 200, 300, 400, 500]  # rescaled
    assert np.allclose(source.geometry(0).affine, DICOM_AFFINE)
    assert source.geometry(0).spacing == pytest.approx((2.5, 0.8, 0.5))


def test_labels_are_turned_to_the_series(tmp_path):
    source = open_source(make_dicom(tmp_path))
    assert np.array_equal(source.read_masks(1, 2)[1], square(0, 4))


def test_without_extension_and_deep(tmp_path):
    for t, frame in enumerate(stack()):
        save_dicom(tmp_path / "patient" / "study" / "series" / f"I{t:04d}", frame, t, t)
    (tmp_path / "patient" / "DICOMDIR").write_bytes(b"")
    (tmp_path / "patient" / "notes.txt").write_text("not an image")
    source = open_source(tmp_path)
    assert source.names == ["patient/study/series"] and source.num_frames(0) == NUM_FRAMES


def test_windows(tmp_path):
    source = open_source(make_dicom(tmp_path, WindowCenter=[250, 40], WindowWidth=[500, 400]))
    assert [int(source.read_frame(0, t)[0, 0, 0]) for t in (0, 5)] == [0, 255]
    rule = IntensityRule(window=(0, 1000))
    assert int(DicomDataset(tmp_path, rule=rule).read_frame(0, 5)[0, 0, 0]) == 128


def test_inverted(tmp_path):
    elements = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 250, "WindowWidth": 500}
    source = open_source(make_dicom(tmp_path, **elements))
    assert [int(source.read_frame(0, t)[0, 0, 0]) for t in (0, 5)] == [255, 0]


def test_several_series_in_a_folder(tmp_path):
    for t, frame in enumerate(stack()):
        save_dicom(tmp_path / "x" / f"1{t}.dcm", frame, t, t)
        about = {"SeriesInstanceUID": "1.2.4", "SeriesNumber": 7}
        save_dicom(tmp_path / "x" / f"7{t}.dcm", frame, t, t, **about)
    assert open_source(tmp_path).names == ["x/1", "x/7"]


def test_a_file_of_several_frames(tmp_path):
    pixels = stack(4)
    path = save_dicom(tmp_path / "cine.dcm", pixels[0], 0, 1, NumberOfFrames=4)
    save_dicom(
        path,
        pixels[0],
        0,
        1,
        NumberOfFrames=4,
        PixelData=(pixels.astype(np.int32) + 1000).astype(np.uint16).tobytes(),
    )
    source = open_source(path)
    assert (source.names, source.num_frames(0)) == (["cine"], 4)
    assert [int(source.raw_frame(0, t)[0, 0]) for t in (3, 0)] == [300, 0]


def test_series_without_positions(tmp_path):
    none = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    source = open_source(make_dicom(tmp_path / "1", names=("a",), **none) / "a")
    assert int(source.raw_frame(0, 0)[0, 0]) == 500  # by instance number
    # Columns run to the patient's left and rows to the back, which are negative in NIfTI's axes.
    affine = source.geometry(0).affine
    assert affine[0, 0] < 0 and affine[1, 1] < 0 and affine[2, 2] > 0
    rejects(lambda: DicomDataset(make_dicom(tmp_path / "2", InstanceNumber=1, **none)))


def test_rejected_series(tmp_path):
    path = make_dicom(tmp_path / "1", names=("a",)) / "a"
    save_dicom(path / "twice.dcm", stack()[0], 10, 9)
    rejects(lambda: open_source(tmp_path / "1"))
    path = make_dicom(tmp_path / "2", names=("a",)) / "a"
    save_dicom(path / "size.dcm", stack()[0][1:], 99, 9)
    rejects(lambda: open_source(tmp_path / "2"))
    path = make_dicom(tmp_path / "3", names=("a",)) / "a"
    save_dicom(path / "turned.dcm", stack()[0], 99, 9, ImageOrientationPatient=[0, 1, 0, 0, 0, 1])
    rejects(lambda: open_source(tmp_path / "3"))
    path = make_dicom(tmp_path / "4", names=("a",)) / "a"
    (path / "damaged.dcm").write_bytes(b"no DICOM")
    rejects(lambda: open_source(tmp_path / "4"))
    path = make_dicom(tmp_path / "5", names=("a",)) / "a" / "IM006.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    rejects(lambda: open_source(tmp_path / "5"))


def test_a_deflated_file_is_small(tmp_path, monkeypatch):
    """It is decompressed at once, so a megabyte could need a gigabyte of memory."""
    path = make_dicom(tmp_path, names=("a",)) / "a"
    for file in path.iterdir():
        content = pydicom.dcmread(file)
        content.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        content.save_as(file)
    assert open_source(path).num_frames(0) == NUM_FRAMES
    monkeypatch.setattr(dicom, "MAX_DEFLATED_BYTES", 100)
    rejects(lambda: open_source(path))


# --- NPZ ----------------------------------------------------------------------------------------


def test_arrays_of_medsam(tmp_path):
    source = open_source(make_npz(tmp_path, boxes=np.array([[1, 2, 3, 4]])))
    assert source.names == ["a", "b"] and source.geometry(0).spacing == (2.5, 0.8, 0.5)
    assert np.array_equal(source.read_masks(0, 3)[1], square(0, 6))
    along_rows = NPZDataset(tmp_path, axis=1)
    assert (along_rows.num_frames(0), along_rows.frame_size(0)) == (H, (NUM_FRAMES, W))
    assert NPZDataset(tmp_path, reverse=True).raw_frame(0, 0)[0, 0] == 500


def test_colour_slices(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, H, W, 3)).astype(np.uint8)
    source = open_source(make_npz(tmp_path, imgs=colours))
    assert np.array_equal(source.read_frame(0, 4), colours[4])


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    objects = np.array([Evil()], dtype=object)
    root = make_npz(tmp_path / "1", names=("a",), boxes=objects)  # not needed
    (tmp_path / "written").unlink(missing_ok=True)
    assert open_source(root).read_frame(0, 0).shape == (H, W, 3)
    rejects(lambda: open_source(make_npz(tmp_path / "2", names=("a",), imgs=objects)))
    assert not (tmp_path / "written").exists()


def test_rejected_npz(tmp_path, monkeypatch):
    for n, arrays in enumerate(
        (
            {"gts": labels(5)},
            {"imgs": stack()[0]},
            {"spacing": np.array([1.0, -1, 1])},
            {"spacing": np.zeros(10_000)},
        )
    ):
        rejects(lambda n=n, a=arrays: open_source(make_npz(tmp_path / f"{n}", names=("a",), **a)))
    path = make_npz(tmp_path / "x", names=("a",)) / "a.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-200])
    rejects(lambda: open_source(tmp_path / "x"))
    path.write_bytes(content)
    monkeypatch.setattr(npz, "MAX_VOLUME_BYTES", 1000)
    rejects(lambda: open_source(tmp_path / "x"))


def test_a_forged_header(tmp_path):
    """The header promises more values than the archive contains."""
    make_npz(tmp_path, names=("a",))
    header = {"descr": "<u2", "fortran_order": False, "shape": (6, H, W * 1000)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("imgs.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(b"12345678")
    rejects(lambda: open_source(tmp_path))
