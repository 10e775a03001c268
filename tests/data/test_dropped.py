"""Test that every source reports what it does not read, and that one bad file hides no other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import (
    make_coco,
    make_davis,
    save_frame,
    save_json,
    save_palette,
    save_video,
    training_videos,
)
from stack_helpers import (
    AFFINE,
    DICOM_AFFINE,
    labels,
    make_ctc,
    make_dicom,
    make_nifti,
    make_npz,
    make_stacks,
    save_dicom,
    save_nifti,
    save_tiff,
    stack,
)
from tool_helpers import make_cvat, make_label_studio, make_labelme, make_yolo

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data import open_source
from sam2kit.data.build import build_datasets
from sam2kit.data.conversion import convert
from sam2kit.data.detection import detect_layout
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.doctor.video_checks import order_problem
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.label_guard import frames_look_like_masks, images_look_like_labels
from sam2kit.utils.errors import DataError

Found = set[tuple[str, str]]
IDS = labels()[0]


def remarks(source: VideoSource) -> Found:
    """Return the kinds and the names of what is not read, without notes."""
    return {(r.kind, Path(r.where).name) for r in source.remarks if r.kind != "note"}


def left_out(source: VideoSource) -> list[str]:
    return [entry.where for entry in source.left_out()]


# --- everything that may be beside the data ------------------------------------------------------


def beside(root: Path) -> Found:
    """Add what no source of stacks or volumes reads."""
    (root / "film.mp4").write_bytes(b"x")
    (root / "rest.zip").write_bytes(b"PK")
    (root / "scan.heic").write_bytes(b"x")
    save_frame(root / "picture.png", 3)
    save_json(root / "boxes.json", {"images": [{"file_name": "a.png"}], "annotations": []})
    save_json(root / "dataset.json", {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"})
    save_frame(root / "@eaDir" / "a.jpg", 3)
    (root / "README.md").write_text("notes")
    return {
        ("ignored", name) for name in ("film.mp4", "rest.zip", "scan.heic", "picture.png", "@eaDir")
    }


def tiff(root: Path) -> Found:
    make_stacks(root)
    save_tiff(root / "z_labels.tif", labels(), axes="TYX")
    (root / "c.tif").write_bytes(b"damaged")
    (root / "scan.czi").write_bytes(b"x")
    return beside(root) | {("ignored", "z_labels.tif"), ("ignored", "scan.czi")}


def ctc(root: Path) -> Found:
    make_ctc(root, names=("01", "02", "03"))
    shutil.rmtree(root / "02")
    shutil.rmtree(root / "03_GT" / "TRA")
    (root / "04").mkdir()
    (root / "04" / "t000.tif").write_bytes(b"damaged")
    return beside(root) | {("ignored", "02_GT"), ("ignored", "SEG")}


def nifti(root: Path) -> Found:
    make_nifti(root)
    save_nifti(root / "labels" / "z.nii.gz", labels())
    far = AFFINE.copy()
    far[0, 3] += 100
    save_nifti(root / "f.nii.gz", stack(dtype="int16"))
    save_nifti(root / "f_seg.nii.gz", labels(), far)
    (root / "c.nii.gz").write_bytes(b"damaged")
    (root / "a.mha").write_bytes(b"x")
    return beside(root) | {
        ("ignored", "z.nii.gz"),
        ("ignored", "a.mha"),
        ("geometry", "f_seg.nii.gz"),
    }


def dicom(root: Path) -> Found:
    make_dicom(root)
    far = save_nifti(root / "far.nii.gz", labels(), np.diag([1.0, 1, 1, 1]))
    shutil.move(far, root / "labels" / "b.nii.gz")
    save_nifti(root / "labels" / "z.nii.gz", labels())
    for name, modality in (("1.dcm", "SEG"), ("2.dcm", "RTSTRUCT"), ("3.dcm", "SR")):
        keys = {"Rows": None, "Columns": None, "PixelData": None} if name == "3.dcm" else {}
        uid = {"SeriesInstanceUID": f"1.9.{name[0]}", "Modality": modality}
        save_dicom(root / "other" / name, stack()[0], 0, 1, **uid, **keys)
    for t in range(2):
        save_dicom(root / "c" / f"{t}.dcm", stack()[t], t, t)
    (root / "c" / "9.dcm").write_bytes(b"damaged")
    return beside(root) | {
        ("ignored", "1.dcm"),
        ("ignored", "z.nii.gz"),
        ("geometry", "b.nii.gz"),
    }


def npz(root: Path) -> Found:
    make_npz(root)
    (root / "c.npz").write_bytes(b"damaged")
    return beside(root)


def files(root: Path) -> Found:
    for name in "ab":
        save_video(root / f"{name}.mp4", [10 * t for t in range(6)])
        for t in range(6):
            save_palette(root / "masks" / name / f"{t:05d}.png", labels()[t])
    save_video(root / "a_mask.mp4", [0, 0])
    (root / "c.mp4").write_bytes(b"damaged")
    (root / "rest.zip").write_bytes(b"PK")
    save_json(root / "boxes.json", {"annotations": []})
    return {("ignored", name) for name in ("a_mask.mp4", "rest.zip")}


def video(root: Path) -> Found:
    make_davis(root)
    save_json(root / "boxes.json", {"images": [{"file_name": "a.png"}], "annotations": []})
    save_json(root / "meta.json", {"videos": {"a": {"objects": {"1": {"category": "cat"}}}}})
    (root / "rest.zip").write_bytes(b"PK")
    return {("ignored", "rest.zip")}


def exports(root: Path, folder: str = "labels") -> Found:
    """Add what no export of an annotation tool lists."""
    save_palette(root / folder / "a_1.png", IDS)
    (root / "rest.zip").write_bytes(b"PK")
    return {("ignored", "a_1.png"), ("ignored", "rest.zip")}


def cvat(root: Path) -> Found:
    return exports(make_cvat(root))


def label_studio(root: Path) -> Found:
    return exports(make_label_studio(root))


def labelme(root: Path) -> Found:
    make_labelme(root)
    save_json(root / "a" / "export.json", {"annotations": [{"segmentation": []}]})
    return exports(root)


def yolo(root: Path) -> Found:
    make_yolo(root)
    folder = next(root.rglob("labels/**/*.txt")).parent
    (folder / "gone_7.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    return exports(root, folder.relative_to(root).as_posix())


def coco(root: Path) -> Found:
    save_json(root / "labels.json", make_coco(root))
    return exports(root, "masks")


KINDS: dict[str, Callable[[Path], Found]] = {
    kind.__name__: kind
    for kind in (
        *(tiff, ctc, nifti, dicom, npz, files, video),
        *(cvat, label_studio, labelme, yolo, coco),
    )
}
DAMAGED = {"tiff": "c", "ctc": "04", "nifti": "c", "dicom": "c", "npz": "c", "files": "c"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_reports_what_it_does_not_read(kind, tmp_path):
    expected = KINDS[kind](tmp_path)
    source = open_source(
        tmp_path, DatasetConfig(type=kind, annotation_file=coco_file(kind, tmp_path))
    )
    assert remarks(source) == expected
    if kind == "yolo":
        assert [Path(entry.where).name for entry in source.left_out()] == ["gone_7.txt"]
    if kind in DAMAGED:
        assert DAMAGED[kind] not in source.names
        assert left_out(source) == [f"video {DAMAGED[kind]}"]
    assert source.has_masks and len(source) >= 2
    if kind in ("tiff", "ctc", "nifti", "dicom", "npz", "files", "video"):
        notes = {Path(r.where).name for r in source.remarks if r.kind == "note"}
        assert "boxes.json" in notes and not {"dataset.json", "meta.json"} & notes


def coco_file(kind: str, root: Path) -> str | None:
    return str(root / "labels.json") if kind == "coco" else None


def test_the_page_of_a_mixture_lists_everything(tmp_path):
    entries: list[dict[str, Any]] = []
    expected: Found = set()
    for kind, plant in KINDS.items():
        expected |= plant(tmp_path / kind)
        entry = {"type": kind, "data_path": str(tmp_path / kind)}
        file = coco_file(kind, tmp_path / kind)
        entries.append(entry | ({"annotation_file": file} if file else {}))
    config = Config(dataset=DatasetConfig(type="mixture", mixture=entries, image_size=32))
    report = run_doctor(training_videos(config.dataset, 0), config.dataset)
    findings = {(f.kind, Path(f.where).name) for f in report.findings}
    assert expected <= findings
    assert {("left out", f"video {name}") for name in DAMAGED.values()} <= findings
    page = report.page()
    assert all(name in page for _, name in expected)


@pytest.mark.parametrize("kind", DAMAGED)
def test_strict_makes_a_damaged_video_an_error(kind, tmp_path):
    KINDS[kind](tmp_path)
    with pytest.raises(DataError) as error:
        training_videos(DatasetConfig(type=kind, data_path=str(tmp_path), strict=True), 0)
    assert error.value.hint


@pytest.mark.parametrize("kind", ["tiff", "nifti", "dicom", "npz", "files"])
def test_damaged_videos_alone_are_an_error(kind, tmp_path):
    endings = {"tiff": "tif", "nifti": "nii", "dicom": "dcm", "npz": "npz", "files": "mp4"}
    name = f"c.{endings[kind]}"
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(DataError) as error:
        training_videos(DatasetConfig(type=kind, data_path=str(tmp_path)), 0)
    assert name in str(error.value)


def test_pictures_that_an_annotation_file_leaves_out_are_a_note(tmp_path):
    save_json(tmp_path / "labels.json", make_coco(tmp_path))
    save_frame(tmp_path / "images" / "more" / "1.png", 5)
    source = open_source(tmp_path)
    assert not remarks(source)
    assert [Path(r.where).name for r in source.remarks] == ["1.png"]


def test_annotation_files_beside_data_without_masks(tmp_path):
    """They are a finding: they may be the masks."""
    for name in ("tiff", "video", "files"):
        content = {"images": [{"file_name": "a.png"}], "annotations": []}
        save_json(tmp_path / name / "boxes.json", content)
    save_tiff(tmp_path / "tiff" / "a.tif", stack(), axes="TYX")
    save_frame(tmp_path / "video" / "a" / "0.png", 5)
    save_video(tmp_path / "files" / "a.mp4", [0, 10])
    for name in ("tiff", "video", "files"):
        settings = DatasetConfig(type=name)
        assert remarks(open_source(tmp_path / name, settings)) == {("ignored", "boxes.json")}


# --- masks that are not found --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda root: np.save(root / "a_seg.npy", IDS), "a_seg.npy"),
        (lambda root: save_tiff(root / "z_labels.tif", labels(), axes="TYX"), "z_labels.tif"),
        (lambda root: save_palette(root / "outlines" / "a_label.png", IDS), "a_label.png"),
    ],
)
def test_the_error_without_masks_names_the_first_file_that_is_not_read(write, name, tmp_path):
    for video_name in "ab":
        save_tiff(tmp_path / f"{video_name}.tif", stack(), axes="TYX")
    (tmp_path / "outlines").mkdir()
    write(tmp_path)
    config = Config(dataset=DatasetConfig(data_path=str(tmp_path)))
    with pytest.raises(DataError) as error:
        build_datasets(config)
    assert error.value.key == "dataset.synthetic_objects" and name in str(error.value)
    report = run_doctor(tmp_path, DatasetConfig(image_size=32))
    assert any(f.kind == "unannotated" and name in f.message for f in report.findings)


def test_a_folder_of_pictures_beside_the_frames_may_hold_the_masks(tmp_path):
    make_davis(tmp_path)
    (tmp_path / "Annotations").rename(tmp_path / "final")
    source = open_source(tmp_path)
    assert not source.has_masks and remarks(source) == {("ignored", "final")}
    assert f"dataset.masks_path={tmp_path / 'final'}" in source.remarks[-1].message
    settings = DatasetConfig(masks_path=str(tmp_path / "final"))
    assert open_source(tmp_path, settings).has_masks


def make_nnunet(root: Path) -> None:
    save_nifti(root / "imagesTr" / "a_0000.nii.gz", stack(dtype="int16"))
    save_nifti(root / "labelsTr" / "a.nii.gz", labels())


@pytest.mark.parametrize(
    ("make", "inner", "masks"),
    [
        (lambda root: make_davis(root), "JPEGImages", "Annotations"),
        (lambda root: make_davis(root), "JPEGImages/a", "Annotations"),
        (lambda root: make_davis(root, below="480p"), "JPEGImages/480p/a", "Annotations"),
        (lambda root: make_ctc(root), "01", "01_GT"),
        (lambda root: make_nnunet(root), "imagesTr", "labelsTr"),
        (lambda root: save_json(root / "set.json", make_coco(root)), "images", "set.json"),
    ],
)
def test_a_part_of_a_data_set_names_the_whole(make, inner, masks, tmp_path):
    make(tmp_path)
    source = open_source(tmp_path / inner)
    assert not source.has_masks and remarks(source) == {("ignored", masks)}
    assert f"open {tmp_path} instead" in source.remarks[-1].message


def test_the_folder_of_the_masks_names_the_whole(tmp_path):
    make_davis(tmp_path, below="480p")
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "Annotations")
    assert error.value.hint == f"give {tmp_path}"


@pytest.mark.parametrize(
    "make", [make_davis, make_stacks, make_nifti, make_ctc, make_cvat, make_labelme]
)
def test_one_or_two_levels_above_a_data_set(make, tmp_path):
    make(tmp_path / "outer" / "inner")
    for path in (tmp_path, tmp_path / "outer"):
        try:
            source = open_source(path)
        except DataError as error:
            folder = (error.hint or "").split()[1]
            assert open_source(folder).has_masks
        else:
            assert source.has_masks


def test_another_data_set_beside_the_one_that_is_read(tmp_path):
    make_stacks(tmp_path / "cells")
    make_davis(tmp_path / "davis", below="480p")
    source = open_source(tmp_path)
    assert all(name.startswith("cells/") for name in source.names)
    assert any("davis/" in remark.where for remark in source.remarks)


def test_volumes_three_levels_below(tmp_path):
    make_nifti(tmp_path / "p" / "q" / "s")
    source = open_source(tmp_path)
    assert source.names == ["p/q/s/a", "p/q/s/b"] and source.has_masks


@pytest.mark.parametrize("name", ["a.nd2", "a.mha", "a.h5"])
def test_stacks_of_a_format_that_is_not_read_are_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert name in str(error.value) and "TIFF" in (error.value.hint or "")


# --- labels under unusual names ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "masks"),
    [
        ("a.ome.tif", "a_labels.ome.tif"),
        ("a.tif", "mask_a.tif"),
        ("a.tif", "seg.tif"),
        ("a.tif", "a_manual.tif"),
        ("img_a.tif", "mask_a.tif"),
        ("c.nii.gz", "c_manual.nii.gz"),
        ("volume-0.nii", "segmentation-0.nii"),
        ("c_image.nii.gz", "c_label.nii.gz"),
    ],
)
def test_labels_are_found_by_unusual_names(frames, masks, tmp_path):
    for name, pixels in ((frames, stack(dtype="uint16")), (masks, labels())):
        if ".nii" in name:
            save_nifti(tmp_path / name, pixels)
        else:
            save_tiff(tmp_path / name, pixels, axes="TYX")
    source = open_source(tmp_path)
    assert len(source) == 1 and set(source.read_masks(0, 1)) == {1, 2}
    assert not remarks(source)


def test_modalities_with_the_same_labels_are_one_video(tmp_path):
    for case in ("X1", "X2"):
        for modality in ("t1", "t1ce", "t2", "flair"):
            save_nifti(tmp_path / case / f"{case}_{modality}.nii.gz", stack(dtype="int16"))
        save_nifti(tmp_path / case / f"{case}_seg.nii.gz", labels())
    source = open_source(tmp_path)
    assert source.names == ["X1/X1_flair", "X2/X2_flair"] and source.has_masks
    assert not remarks(source)
    assert any("6 volumes" in r.message for r in source.remarks)


def cells(dtype: str = "uint16") -> np.ndarray:
    """Make ``[T,64,64]`` labels of 100 cells of 5 x 5 pixels."""
    image = np.zeros((64, 64), dtype)
    for k in range(100):
        row, column = divmod(k, 10)
        image[6 * row + 1 : 6 * row + 6, 6 * column + 1 : 6 * column + 6] = k + 1
    return np.stack([image] * 4)


@pytest.mark.parametrize("pixels", [labels(), cells(), (labels() > 0).astype("uint8") * 255])
def test_values_of_labels_are_never_a_video(pixels, tmp_path):
    noise = np.random.default_rng(0).integers(100, 5000, pixels.shape).astype("uint16")
    save_tiff(tmp_path / "tiff" / "a.tif", noise, axes="TYX")
    save_tiff(tmp_path / "tiff" / "final.tif", pixels, axes="TYX")
    save_nifti(tmp_path / "nifti" / "a.nii.gz", noise)
    save_nifti(tmp_path / "nifti" / "final.nii.gz", pixels)
    for t, image in enumerate(pixels):
        save_tiff(tmp_path / "frames" / "final" / f"{t}.tif", image.astype("uint16"))
    for kind in ("tiff", "nifti", "frames"):
        with pytest.raises(DataError) as error:
            open_source(tmp_path / kind)
        assert error.value.key == "dataset.masks_path"
        if kind != "frames":  # what the hint offers
            assert len(open_source(tmp_path / kind, DatasetConfig(type=kind))) == 2


def test_results_of_a_cell_tracker_are_no_video(tmp_path):
    make_ctc(tmp_path)
    for name in ("01", "02"):
        shutil.rmtree(tmp_path / f"{name}_GT" / "SEG")
        (tmp_path / f"{name}_GT" / "TRA").rename(tmp_path / f"{name}_RES")
        (tmp_path / f"{name}_GT").rmdir()
    source = open_source(tmp_path)
    assert source.names == ["01", "02"] and not source.has_masks
    assert remarks(source) == {("ignored", "01_RES"), ("ignored", "02_RES")}


def film(frames: list[np.ndarray], path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_film_of_masks_is_no_video(tmp_path):
    noise = np.random.default_rng(0).integers(40, 255, (4, 64, 64, 3)).astype(np.uint8)
    film(list(noise), tmp_path / "a.mp4")
    white = (cells("uint8") > 0).astype(np.uint8)[..., None].repeat(3, axis=3) * 255
    film(list(white), tmp_path / "final.mp4")
    with pytest.raises(DataError) as error:
        open_source(tmp_path)
    assert "final.mp4" in str(error.value)
    (tmp_path / "final.mp4").rename(tmp_path / "a_mask.mp4")
    source = open_source(tmp_path)
    assert source.names == ["a"] and remarks(source) == {("ignored", "a_mask.mp4")}


def test_images_that_only_look_like_labels():
    generator = np.random.default_rng(0)
    dark = generator.poisson(1.5, (64, 64)).astype(np.uint16)  # few photons
    brain = np.zeros((64, 64), np.int16)
    brain[16:48, 16:48] = generator.normal(500, 100, (32, 32))
    for image in (dark, brain, np.zeros((64, 64), np.uint16), dark.astype(np.float32) / 2):
        assert not images_look_like_labels(iter([image]))
    assert images_look_like_labels(iter(cells()))
    ultrasound = np.zeros((64, 64, 3), np.uint8)
    ultrasound[16:48, 16:48] = generator.integers(0, 120, (32, 32, 1))
    title = np.full((64, 64, 3), 7, np.uint8)
    assert not frames_look_like_masks(iter([ultrasound])) and not frames_look_like_masks(
        iter([title])
    )


# --- order, channels and numbers -----------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["t{t:03d}_c{c}", "c{c}_t{t:03d}", "t{t}_z{c:03d}", "t{t}-ch0{c}"]
)
def test_channels_are_not_frames(pattern, tmp_path):
    names = [pattern.format(t=t, c=c) for t in range(3) for c in range(2)]
    for name in names:
        save_tiff(tmp_path / "bad" / f"{name}.tif", stack()[0])
    with pytest.raises(DataError) as error:
        open_source(tmp_path / "bad")
    assert error.value.hint
    assert order_problem(names)
    make_stacks(tmp_path / "good")
    shutil.move(tmp_path / "bad", tmp_path / "good" / "bad")
    source = open_source(tmp_path / "good")
    assert source.names == ["a", "b"] and left_out(source) == ["video bad"]


def test_slices_of_one_time_point_are_frames(tmp_path):
    for t in range(4):
        save_tiff(tmp_path / f"cell_z{t:03d}.tif", stack()[t])
    assert open_source(tmp_path).num_frames(0) == 4
    assert order_problem([f"cell_z{t:03d}" for t in range(4)]) is None


@pytest.mark.parametrize(
    ("numbers", "annotated", "is_note"),
    [((0, 3), [0, 3], False), ((1, 6), [0, 5], True), ((1, 3), [1, 3], True)],
)
def test_numbers_of_sparse_labels(numbers, annotated, is_note, tmp_path):
    save_tiff(tmp_path / "tiff" / "v.tif", stack(), axes="TYX")
    save_video(tmp_path / "files" / "v.mp4", [10 * t for t in range(6)])
    for n in numbers:
        save_tiff(tmp_path / "tiff" / "v_labels" / f"{n:03d}.tif", IDS)
        save_palette(tmp_path / "files" / "masks" / "v" / f"{n:05d}.png", IDS)
    for kind in ("tiff", "files"):
        source = open_source(tmp_path / kind)
        assert list(source.annotated_frames(0)) == annotated
        assert not remarks(source)
        assert any("count frames from" in r.message for r in source.remarks) == is_note


# --- names of videos -----------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["davis", "coco-video", "tiff", "ctc", "nifti", "cvat"])
def test_names_with_slashes_are_converted(to, tmp_path):
    for name in ("p1/st1/se1", "p1/st2/se1"):
        for t, frame in enumerate(stack(3)):
            save_dicom(tmp_path / "in" / name / f"{t}.dcm", frame, t, t, RescaleIntercept=0)
        file = f"{name.replace('/', '-')}.nii.gz"
        save_nifti(tmp_path / "in" / "labels" / file, labels(3), DICOM_AFFINE)
    settings = Config(dataset=DatasetConfig(data_path=str(tmp_path / "in")))
    written = convert(settings, tmp_path / "out", to)
    names = open_source(written).names
    assert names == (["01", "02"] if to == "ctc" else ["p1-st1-se1", "p1-st2-se1"])


def test_a_member_of_a_folder_that_is_detected_by_its_first_file(tmp_path):
    """A damaged first file does not change what the folder is taken for."""
    make_stacks(tmp_path, names=("b", "c"))
    (tmp_path / "a.tif").write_bytes(b"damaged")
    assert detect_layout(tmp_path).type == "tiff"
    assert open_source(tmp_path).names == ["b", "c"]
