"""Test that masks are found where people and tools put them, or that an error names the key."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SIZE, make_davis, save_frame, save_palette, save_video, square
from PIL import Image

from sam2kit.config.schema import DatasetConfig
from sam2kit.data import VideoDataset, open_source
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.sources.listing import frame_numbers, sort_files
from sam2kit.utils.errors import DataError

IDS = square(0, 0) * 1 + square(12, 12) * 2


def write(root: Path, frames: str, masks: str, videos: tuple[str, ...] = ("a", "b")) -> Path:
    """Write three frames and masks per video; ``frames`` and ``masks`` are patterns of paths."""
    for name in videos:
        for t in range(3):
            save_frame(root / frames.format(v=name, t=f"{t:05d}"), 50 + t)
            save_palette(root / masks.format(v=name, t=f"{t:05d}"), IDS)
    return root


@pytest.mark.parametrize(
    ("frames", "masks"),
    [
        ("frames/{v}/{t}.jpg", "masks/{v}/{t}.png"),
        ("imgs/{v}/{t}.png", "labels/{v}/{t}.png"),
        ("{v}/{t}.jpg", "GT/{v}/{t}.png"),
        ("{v}/{t}.jpg", "{v}/ground-truth/{t}.png"),
        ("{v}/{t}.png", "{v}/GroundTruth/{t}.png"),
        ("{v}/rgb/{t}.jpg", "{v}/segmentation/{t}.png"),
        ("JPEGImages/{v}/{t}.jpg", "JPEGImages/{v}/gt/{t}.png"),
        ("{v}/{t}.jpg", "{v}_masks/{t}.png"),
        ("{v}_frames/{t}.jpg", "{v}_mask/{t}.png"),
        ("{v}/{t}.png", "{v}/{t}_mask.png"),
        ("{v}/{t}.jpg", "{v}/{t}-label.png"),
        ("{v}/{t}_img.png", "{v}/{t}_seg.png"),
    ],
)
def test_masks_of_videos_are_found(tmp_path, frames, masks):
    source = open_source(write(tmp_path, frames, masks))
    assert len(source) == 2 and [source.num_frames(i) for i in range(2)] == [3, 3]
    assert all(source.read_masks(i, t) for i in range(2) for t in range(3))
    np.testing.assert_array_equal(source.read_masks(1, 2)[1] & square(0, 0), square(0, 0))
    if "GT" not in masks and "JPEG" not in frames:
        assert any("masks are read from" in r.message for r in source.remarks)


@pytest.mark.parametrize(
    ("frames", "masks"),
    [
        ("frames/{t}.jpg", "masks/{t}.png"),
        ("{t}.jpg", "annotations/{t}.png"),
        ("{t}.jpg", "{t}_mask.png"),
    ],
)
def test_masks_of_one_video_are_found(tmp_path, frames, masks):
    source = open_source(write(tmp_path / "clip", frames, masks, ("a",)))
    assert source.names == ["clip"] and source.num_frames(0) == 3
    assert all(set(source.read_masks(0, t)) == {1, 2} for t in range(3))


def test_masks_of_video_files_are_found(tmp_path):
    save_video(tmp_path / "a.mp4", [0, 10])
    save_palette(tmp_path / "masks/a/00001.png", IDS)
    assert set(open_source(tmp_path).read_masks(0, 1)) == {1, 2}


def test_several_mask_folders_are_an_error_that_names_the_key(tmp_path):
    root = write(tmp_path, "{v}/{t}.jpg", "masks/{v}/{t}.png")
    shutil.copytree(root / "masks", root / "labels")
    with pytest.raises(DataError) as error:
        VideoDataset(root)
    assert error.value.key == "dataset.masks_path"
    assert VideoDataset(root, masks_path=root / "labels").has_masks


@pytest.mark.parametrize("masks", ["objects/{t}.png", "{v}/object{t}.png"])
def test_pictures_that_look_like_masks_are_not_frames(tmp_path, masks):
    root = write(tmp_path, "{v}/{t}.jpg", masks, ("a",))
    path = root if masks.startswith("objects") else root / "a"
    with pytest.raises(DataError) as error:
        open_source(path)
    assert error.value.key == "dataset.masks_path"
    report = run_doctor(path, DatasetConfig(image_size=32))
    assert report.broken and "dataset.masks_path" in report.findings[0].message


def test_doctor_honours_masks_path(tmp_path):
    root = write(tmp_path, "pictures here/{v}/{t}.jpg", "elsewhere/{v}/{t}.png")
    settings = DatasetConfig(image_size=32, masks_path=str(root / "elsewhere"))
    report = run_doctor(root / "pictures here", settings)
    assert [video.annotated for video in report.videos] == [3, 3]


def test_masks_beside_a_folder_of_frames_are_a_finding(tmp_path):
    root = write(tmp_path, "frames/{t}.jpg", "masks/{t}.png", ("a",))
    source = open_source(root / "frames")
    assert not source.has_masks
    assert [(r.kind, Path(r.where).name) for r in source.remarks] == [("ignored", "masks")]


# --- order and names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["-4", "-3", "-1", "0", "2", "10"],
        ["\u22122", "\u22121", "0", "1"],
        ["t-10", "t-2", "t0", "t+1", "t+10"],
        ["0.5", "1.0", "1.25", "1.5", "10.0"],
        ["-0.5", "0", "0.5"],
        ["1,5 s", "2,25 s", "10,0 s"],
        ["clip-1", "clip-2", "clip-10"],
        ["v1.1", "v1.2", "v1.10"],  # 1.1 and 1.10 would be equal decimals
        ["img2", "img10"],
        ["2024-01-02", "2024-01-10", "2024-02-01"],
    ],
)
def test_order_of_frame_names(names):
    shuffled = [f"{name}.png" for name in reversed(names)]
    assert sort_files(shuffled, "x") == [f"{name}.png" for name in names]


def test_numbers_of_frames():
    assert frame_numbers(["a", "b"]) is None and frame_numbers(["1", "2"]) is None
    assert [float(n) for n in frame_numbers(["-1.5", "2"]) or ()] == [-1.5, 2]


def test_ambiguous_order_is_a_finding(tmp_path):
    for name in ("1.5", "1.25", "2.5"):
        save_frame(tmp_path / f"v/{name}.png", 50)
    source = VideoDataset(tmp_path)
    assert [source.frame_name(0, t) for t in range(3)] == ["1.25", "1.5", "2.5"]
    assert [r.kind for r in source.remarks] == ["order"]


def test_unicode_forms_of_one_name_are_one_name(tmp_path):
    composed = unicodedata.normalize("NFC", "caf\u00e9")
    decomposed = unicodedata.normalize("NFD", composed)
    root = make_davis(tmp_path, {composed: 2})
    (root / "Annotations" / composed).rename(root / "Annotations" / decomposed)
    for t in range(2):
        for folder, form in (
            (f"JPEGImages/{composed}", "NFD"),
            (f"Annotations/{decomposed}", "NFC"),
        ):
            path = next((root / folder).glob(f"{t:05d}.*"))
            path.rename(path.with_stem(unicodedata.normalize(form, f"\u00fc{t}")))
    (root / "list.txt").write_text(decomposed, encoding="utf-8")
    for source in (VideoDataset(root), VideoDataset(root, str(root / "list.txt"))):
        assert source.names == [composed] and set(source.read_masks(0, 1)) == {1, 2}
        assert not [r for r in source.remarks if r.kind != "note"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_names_that_are_not_utf8_are_rejected(tmp_path, kind):
    root = make_davis(tmp_path, {"a": 2})
    old = os.fsencode(root / "JPEGImages/a")
    old = old if kind == "folder" else old + b"/00000.jpg"
    try:
        os.rename(old, os.path.dirname(old) + b"/caf\xe9" + (b".jpg" if kind == "file" else b""))
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(DataError) as error:
        VideoDataset(root)
    str(error.value).encode()  # can be written anywhere
    assert "convmv" in (error.value.hint or "")
    report = run_doctor(root, DatasetConfig(image_size=32))
    assert report.broken and report.page().encode()


# --- dropped data ------------------------------------------------------------------------------


def plant_everything(root: Path) -> Path:
    """Add each kind of thing that is not read, or whose order is not clear, to a dataset."""
    make_davis(root, {"a": 4, "b": 4})
    noise = np.random.default_rng(0)
    for path in sorted(root.glob("JPEGImages/*/*.jpg")):
        Image.fromarray(noise.integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
    Image.new("L", SIZE[::-1]).save(root / "Annotations/a/00000.jpg")
    save_palette(root / "Annotations/gone/00000.png", IDS)
    for name in ("@eaDir/a", "__MACOSX"):
        save_frame(root / "JPEGImages" / name / "00000.jpg", 0)
    save_frame(root / "JPEGImages/a/more/00000.jpg", 0)
    (root / "JPEGImages/a/00009.heic").write_bytes(b"x")
    (root / "JPEGImages/b/film.wmv").write_bytes(b"x")
    (root / "JPEGImages/rest.zip").write_bytes(b"PK")
    save_frame(root / "JPEGImages/loose.jpg", 1)
    for t, name in enumerate(("1.5", "1.25", "2.5", "10.5")):
        Image.fromarray(noise.integers(0, 255, (*SIZE, 3), np.uint8)).save(
            root / f"JPEGImages/a/{t:05d}.jpg"
        )
        path = root / f"JPEGImages/c/{name}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (*SIZE, 3), np.uint8)).save(path)
        save_palette(root / f"Annotations/c/{name}.png", IDS)
    content = (root / "JPEGImages/b/00001.jpg").read_bytes()
    (root / "JPEGImages/b/00001.jpg").write_bytes(content[: len(content) * 3 // 4] + b"\xff\xd9")
    return root


EVERYTHING = {
    ("ignored", "00000.jpg"),  # a JPEG among the masks
    ("ignored", "gone"),
    ("ignored", "@eaDir"),
    ("ignored", "more"),
    ("ignored", "00009.heic"),
    ("ignored", "film.wmv"),
    ("ignored", "rest.zip"),
    ("ignored", "loose.jpg"),
    ("order", "c"),
    ("damaged", "00001.jpg"),
}


def test_doctor_finds_everything_that_is_dropped(tmp_path):
    settings = DatasetConfig(image_size=32, video_clip_length=4)
    report = run_doctor(plant_everything(tmp_path), settings)
    planted = {(f.kind, Path(f.where).name) for f in report.findings if f.kind != "identity"}
    assert EVERYTHING <= planted
    assert {kind for kind, _ in planted} == {"ignored", "order", "damaged"}
    assert all(text in report.page() for text in ("gone", "film.wmv", "rest.zip"))


def test_doctor_reads_frames_of_video_files_at_random(tmp_path, monkeypatch):
    from sam2kit.data.sources.video_decoder import VideoFile

    save_video(tmp_path / "a.mp4", [40 + 10 * t for t in range(12)])
    last = [-1]

    def noise(t):
        return np.random.default_rng(t).integers(0, 255, (*SIZE, 3), np.uint8)

    monkeypatch.setattr(VideoFile, "read_frame", lambda self, i, t: noise(t))
    findings = run_doctor(tmp_path, DatasetConfig()).findings
    assert not any("read at random" in f.where for f in findings)

    def broken_random_access(self, i, t):
        expected, last[0] = last[0] + 1, t
        return noise(t if t == expected else 100)

    monkeypatch.setattr(VideoFile, "read_frame", broken_random_access)
    findings = run_doctor(tmp_path, DatasetConfig()).findings
    assert any(f.severity == "error" and "read at random" in f.where for f in findings)


def test_a_video_may_have_the_name_of_a_mask_folder(tmp_path):
    make_davis(tmp_path, {"labels": 2, "gt": 2})
    assert sorted(open_source(tmp_path).names) == ["gt", "labels"]


def test_folders_beside_the_frames_of_a_video_are_reported(tmp_path):
    for name in "ab":
        for t in range(3):
            save_frame(tmp_path / name / "frames" / f"{t:05d}.jpg", 10 * t)
            save_frame(tmp_path / name / "instance" / f"{t:05d}.png", 10 * t)
    messages = [remark.where for remark in open_source(tmp_path).remarks]
    assert any("instance" in where for where in messages)
