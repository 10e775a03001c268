"""Test one contract on every source, and the invalid data that each source rejects."""

from __future__ import annotations

import gc
import pickle
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.pixels
import pytest
import torch
from data_helpers import (
    SIZE,
    compressed,
    everything,
    make_coco,
    make_davis,
    make_sav,
    make_ytvis,
    save_frame,
    save_json,
    save_palette,
    save_video,
    square,
    training_videos,
)
from PIL import Image
from stack_helpers import (
    WINDOW,
    make_ctc,
    make_dicom,
    make_frames,
    make_nifti,
    make_npz,
    make_stacks,
)
from tifffile import TiffPage
from tool_helpers import make_cvat, make_label_studio, make_labelme, make_yolo

from sam2kit.config.loading import load_config
from sam2kit.config.schema import DATASET_TYPES, Config, DatasetConfig
from sam2kit.config.validation import check, check_paths
from sam2kit.data import (
    ClipDataset,
    SAVDataset,
    VideoDataset,
    VideoFileDataset,
    build_datasets,
    open_source,
)
from sam2kit.data.clip import collate
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.sources import nifti
from sam2kit.data.sources.base import FrameRange, ObjectId, SelectedVideos, VideoSource
from sam2kit.data.sources.corrected import append_correction
from sam2kit.data.sources.label_guard import find_label_video
from sam2kit.data.sources.mask_files import MaskFiles
from sam2kit.data.sources.mixture import MixtureDataset, shares
from sam2kit.data.sources.video_decoder import VideoFile, open_video
from sam2kit.data.training_set import AcceptedFrame, add_to_training_set
from sam2kit.training.module import SAM2LightningModule
from sam2kit.utils.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"


# --- the contract -------------------------------------------------------------------------------
# All formats store the same content: videos in which frame t has the grey value 10 t, one object
# moves to the right and one does not move. Each entry of FORMATS writes it in one format.


@dataclass
class Sample:
    """The configuration keys of a dataset on disk, and what its source must return."""

    keys: dict[str, Any]
    names: tuple[str, ...] = ("a", "b")
    num_frames: int = 6
    objects: tuple[ObjectId, ...] | None = (1, 2)  # the moving one, the static one
    annotated: Callable[[int], bool] = lambda t: True
    frame_names: Callable[[int], str] = "{:05d}".format
    known_pixels: bool = True  # False: pixels are generated
    any_frame_name: bool = False  # True: frame names are not compared

    def masks(self, t: int) -> dict[ObjectId, np.ndarray] | None:
        if self.objects is None or not self.annotated(t):
            return None
        both = (square(0, 2 * t % 24), square(12, 20))
        return dict(zip(self.objects, both, strict=False))


def folders(root: Path, **changes: Any) -> Sample:
    return Sample({"data_path": str(make_davis(root, **changes))})


def one_object(root: Path) -> Sample:
    """Write DAVIS 2016: grey masks of 0 and 255, in a resolution directory."""
    for name in "ab":
        for t in range(6):
            save_frame(root / "JPEGImages" / "480p" / name / f"{t:05d}.jpg", 10 * t)
            mask = root / "Annotations" / "480p" / name / f"{t:05d}.png"
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * square(0, 2 * t)).astype(np.uint8)).save(mask)
    return Sample({"data_path": str(root)}, objects=(1,))


def folder_per_object(root: Path) -> Sample:
    """Write SA-V's validation layout: masks on every fourth frame, one directory per object."""
    for name in "ab":
        for t in range(6):
            save_frame(root / "JPEGImages_24fps" / name / f"{t:05d}.jpg", 10 * t)
            for n, mask in enumerate((square(0, 2 * t % 24), square(12, 20))):
                file = root / "Annotations_6fps" / name / f"{n:03d}" / f"{t:05d}.png"
                if t % 4 == 0:
                    save_palette(file, mask * 1)
    return Sample({"data_path": str(root)}, objects=(0, 1), annotated=lambda t: t % 4 == 0)


def sparse(root: Path) -> Sample:
    """Write YouTube-VOS: frame names with gaps, masks on some frames."""
    make_davis(root, annotated=lambda t: t % 2 == 0)
    for file in sorted(root.glob("*/*/*"), reverse=True):
        file.rename(file.with_stem(f"{5 * int(file.stem):05d}"))
    keys = {"data_path": str(root)}
    return Sample(keys, annotated=lambda t: t % 2 == 0, frame_names=lambda t: f"{5 * t:05d}")


def masks_elsewhere(root: Path) -> Sample:
    make_davis(root)
    (root / "JPEGImages").rename(root / "videos")
    (root / "Annotations").rename(root / "labels")
    for file in sorted(root.glob("*/*/*"), reverse=True):
        file.rename(file.with_stem(f"shot {int(file.stem) + 8}"))
    keys = {"data_path": str(root / "videos"), "masks_path": str(root / "labels")}
    return Sample(keys, frame_names=lambda t: f"shot {t + 8}")


def coco(root: Path, **keys: Any) -> Sample:
    file = save_json(root / "labels.json", make_coco(root, 6, ("a", "b")))
    keys = {"type": "coco", "annotation_file": str(file), **keys}
    return Sample(keys, objects=(3, "cat"), frame_names=str)


def ytvis(root: Path) -> Sample:
    content = make_ytvis(root, 6)
    for row in content["annotations"][::2]:
        row["segmentations"][1] = compressed(square(0, 2))
    keys = {"type": "coco", "annotation_file": str(save_json(root / "tracks.json", content))}
    return Sample(keys, names=("2", "10"), objects=None, frame_names=lambda t: f"{5 * t}")


def components(root: Path) -> Sample:
    sample = coco(root, identity="components")
    return replace(sample, objects=("0-1", "0-2"))


def corrected(root: Path) -> Sample:
    """Write one frame without masks whose ground truth is in the corrections file."""
    make_davis(root, annotated=lambda t: t != 3)
    masks: dict[ObjectId, np.ndarray] = {1: square(0, 6), 2: square(12, 20)}
    for name in "ab":
        append_correction(root / "corrections.jsonl", name, 3, masks, SIZE)
    return Sample({"data_path": str(root), "corrections": str(root / "corrections.jsonl")})


def files(root: Path, ending: str = ".mp4", codec: str = "libx264") -> Sample:
    """Write video files with masks in the DAVIS layout, on even frames."""
    make_davis(root, annotated=lambda t: t % 2 == 0)
    shutil.rmtree(root / "JPEGImages")
    for name in "ab":
        save_video(root / f"{name}{ending}", [10 * t for t in range(6)], codec, gop_size=3)
    return Sample({"type": "files", "data_path": str(root)}, annotated=lambda t: t % 2 == 0)


def files_with_coco(root: Path) -> Sample:
    content = make_coco(root / "unused", 6, ("a", "b"))
    shutil.rmtree(root / "unused")
    for image in content["images"]:
        image["order_in_video"] //= 2
        image["height"], image["width"] = SIZE
    for name in "ab":
        save_video(root / "videos" / f"{name}.mp4", [10 * t for t in range(6)])
    path = save_json(root / "labels.json", content)
    keys = {"type": "files", "data_path": str(root / "videos"), "masks_path": str(path)}
    return Sample(keys, objects=(3, "cat"))


def sav(root: Path) -> Sample:
    keys = {"type": "sav", "data_path": str(make_sav(root))}
    return Sample(keys, objects=(0, 3), annotated=lambda t: t % 4 == 0)


def images(root: Path) -> Sample:
    """Write the first frame of each video as an image."""
    for name in "ab":
        save_frame(root / "images" / f"{name}.webp", 0)
        ids = square(0, 0) * 1 + square(12, 20) * 2
        save_palette(root / "masks" / f"{name}.png", ids)
    keys = {"type": "images", "data_path": str(root)}
    return Sample(keys, num_frames=1, frame_names="ab".__getitem__)


def training_set(root: Path, format: str = "davis", kind: str = "files") -> Sample:
    """Write a training set that refers to video files or to folders of frames."""
    even = [t for t in range(6) if t % 2 == 0]
    if kind == "files":
        for name in "ab":
            save_video(root / "videos" / f"{name}.mp4", [10 * t for t in range(6)])
    else:
        make_davis(root / "davis")
        (root / "davis" / "JPEGImages").rename(root / "videos")
    source = open_source(root / "videos")
    for i in range(2):
        masks = [(t, {"moving": square(0, 2 * t % 24), 7: square(12, 20)}) for t in even]
        accepted = [AcceptedFrame(*frame) for frame in masks]
        add_to_training_set(root / "set", source, i, accepted, format=format)
    keys = {"type": "training_set", "data_path": str(root / "set")}
    return Sample(keys, objects=("moving", 7), annotated=lambda t: t % 2 == 0)


def mixture(root: Path) -> Sample:
    """Write two sources that both have a video "a"."""
    one, two = make_davis(root / "1", {"a": 6}), make_davis(root / "2", {"a": 6, "b": 6})
    parts = [{"data_path": str(one), "weight": 2}, {"type": "video", "data_path": str(two)}]
    return Sample({"type": "mixture", "mixture": parts}, names=("1_a", "2_a", "2_b"))


def composited(root: Path) -> Sample:
    make_davis(root)
    shutil.rmtree(root / "Annotations")
    return Sample({"data_path": str(root), "synthetic_objects": 3}, known_pixels=False)


def synthetic(root: Path) -> Sample:
    keys = {"type": "synthetic", "synthetic_videos": 2, "image_size": 32, "video_clip_length": 6}
    return Sample(keys, names=("synthetic_0_00000", "synthetic_0_00001"), known_pixels=False)


def stacks(root: Path, **keys: Any) -> Sample:
    return Sample({"type": "tiff", "data_path": str(root), "intensity_window": WINDOW, **keys})


def frame_files(root: Path) -> Sample:
    sample = stacks(make_frames(root))
    return replace(sample, annotated=lambda t: t % 2 == 0, frame_names="img_{}".format)


def cell_tracking(root: Path) -> Sample:
    sample = stacks(make_ctc(root), type="ctc")
    return replace(
        sample,
        names=("01", "02"),
        annotated=lambda t: t % 2 == 0,
        frame_names="t{:03d}".format,
    )


def not_third(t: int) -> bool:
    return t != 3


def cvat(root: Path) -> Sample:
    """Write frame 3 as interpolated."""
    keys = {"type": "cvat", "data_path": str(make_cvat(root))}
    return Sample(keys, annotated=not_third, frame_names="frame_{:06d}".format)


def label_studio(root: Path) -> Sample:
    keys = {"type": "label_studio", "data_path": str(make_label_studio(root))}
    return Sample(keys, names=("media-a", "media-b"), objects=("one", "two"))


def labelme(root: Path) -> Sample:
    keys = {"type": "labelme", "data_path": str(make_labelme(root))}
    return Sample(keys, annotated=not_third)


def yolo(root: Path) -> Sample:
    keys = {"type": "yolo", "data_path": str(make_yolo(root))}
    # The names of the frames are those of one of the two videos.
    return Sample(keys, objects=("one", "two"), annotated=not_third, any_frame_name=True)


FORMATS: dict[str, Callable[[Path], Sample]] = {
    "folders": folders,
    "resolution and tiff": lambda root: folders(root, below="480p", ending=".tif"),
    "one object": one_object,
    "folder per object": folder_per_object,
    "sparse": sparse,
    "masks elsewhere": masks_elsewhere,
    "coco": coco,
    "ytvis": ytvis,
    "components": components,
    "corrected": corrected,
    "files": files,
    "files, avi": lambda root: files(root, ".AVI", "mpeg4"),
    "files, mov": lambda root: files(root, ".mov"),
    "files with coco": files_with_coco,
    "sav": sav,
    "images": images,
    "training set": training_set,
    "training set, coco": lambda root: training_set(root, "coco", "folders"),
    "stacks": lambda root: stacks(make_stacks(root)),
    "compressed stacks": lambda root: stacks(make_stacks(root, compression="zlib")),
    "stack frames": frame_files,
    "cell tracking": cell_tracking,
    "nifti": lambda root: stacks(make_nifti(root), type="nifti"),
    "nifti, not compressed": lambda root: stacks(make_nifti(root, ending=".nii"), type="nifti"),
    "dicom": lambda root: stacks(make_dicom(root), type="dicom"),
    "npz": lambda root: stacks(make_npz(root), type="npz"),
    "mixture": mixture,
    "composited": composited,
    "synthetic": synthetic,
    "cvat": cvat,
    "label studio": label_studio,
    "labelme": labelme,
    "yolo": yolo,
}


def config_of(sample: Sample) -> DatasetConfig:
    return replace(DatasetConfig(image_size=32, num_workers=0), **sample.keys)


@pytest.fixture(scope="module")
def sample_of(tmp_path_factory) -> Callable[[str], Sample]:
    samples: dict[str, Sample] = {}

    def sample_of(name: str) -> Sample:
        if name not in samples:
            samples[name] = FORMATS[name](tmp_path_factory.mktemp("data"))
        return samples[name]

    return sample_of


@pytest.fixture(scope="module")
def other_process():
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", FORMATS)
def test_the_contract(name, sample_of, other_process):
    sample = sample_of(name)
    source = training_videos(config_of(sample), seed=0)
    assert source.names == list(sample.names) and len(source) == len(sample.names)
    assert [source.name(i) for i in range(len(source))] == source.names
    assert source.has_masks
    for i in range(len(source)):
        frames = range(source.num_frames(i))
        annotated = [t for t in frames if source.read_masks(i, t) is not None]
        assert list(source.annotated_frames(i)) == annotated
    for i in range(len(source)):
        assert source.num_frames(i) == sample.num_frames
        for t in range(sample.num_frames):
            check_frame(source, sample, i, t)
    whole = everything(source)
    assert everything(source) == whole  # independent of the order of reading
    assert everything(pickle.loads(pickle.dumps(source))) == whole
    assert other_process.submit(everything, source).result(timeout=120) == whole
    assert everything(training_videos(config_of(sample), seed=0)) == whole
    read_backwards(source, whole)
    if sample.known_pixels:
        check_index_errors(source)


def check_frame(source: VideoSource, sample: Sample, i: int, t: int) -> None:
    frame, masks = source.read_frame(i, t), source.read_masks(i, t)
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3
    for mask in (masks or {}).values():
        assert mask.dtype == bool and mask.shape == frame.shape[:2]
    frame[:] = 255  # the caller may modify the array
    assert (source.read_frame(i, t) != 255).any()
    path = source.frame_path(i, t)
    if path is not None:
        with Image.open(path) as image:
            assert np.array_equal(np.array(image.convert("RGB")), source.read_frame(i, t))
    for path in source.mask_paths(i, t):
        assert path.suffix == ".png" and path.is_file() and masks is not None
    if not sample.known_pixels:
        return
    assert abs(float(source.read_frame(i, t).mean()) - 10 * t) < 3
    if not sample.any_frame_name:
        assert source.frame_name(i, t) == sample.frame_names(i if sample.num_frames == 1 else t)
    expected = sample.masks(t)
    if sample.objects is None:  # ids that differ from video to video
        expected = dict(
            zip(masks or {}, replace(sample, objects=(0, 1)).masks(t).values(), strict=True)
        )
    assert (masks is None) == (expected is None)
    assert set(masks or {}) == set(expected or {})
    for object_id, mask in (expected or {}).items():
        assert np.array_equal(masks[object_id], mask), (object_id, t)


def read_backwards(source: VideoSource, whole: list[Any]) -> None:
    indices = [(i, t) for i in range(len(source)) for t in range(source.num_frames(i))]
    frames = whole[1::2]
    for k in reversed(range(len(indices))):
        assert source.read_frame(*indices[k]).tobytes() == frames[k][1]


def check_index_errors(source: VideoSource) -> None:
    for i, t in ((0, source.num_frames(0)), (len(source), 0)):
        for read in (source.read_frame, source.read_masks):
            with pytest.raises(IndexError):
                read(i, t)


@pytest.mark.parametrize("name", FORMATS)
def test_opening_decodes_no_pixels(name, sample_of, monkeypatch):
    sample = sample_of(name)

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image, "open", decode)
    monkeypatch.setattr(VideoFile, "read_frame", decode)
    monkeypatch.setattr(TiffPage, "asarray", decode)
    monkeypatch.setattr(nifti, "load_nifti", decode)
    monkeypatch.setattr(pydicom.pixels, "pixel_array", decode)
    assert len(training_videos(config_of(sample), seed=0)) == len(sample.names)


@pytest.mark.parametrize("name", FORMATS)
def test_clips_of_every_source(name, sample_of):
    sample = sample_of(name)
    config = replace(config_of(sample), video_clip_length=2, clips_per_video=2)
    clips = ClipDataset(training_videos(config, seed=0), config, training=True, seed=3)
    clip = clips[1]
    assert clip.frames.shape == (2, 3, 32, 32) and clip.masks.shape[1] >= 1
    again = ClipDataset(training_videos(config, seed=0), config, training=True, seed=3)[1]
    assert torch.equal(clip.frames, again.frames) and torch.equal(clip.masks, again.masks)
    if sample.known_pixels and sample.num_frames > 1:
        annotated = [sample.annotated(t) for t in clip.frame_indices]
        assert clip.annotated.tolist() == [[flag] * clip.masks.shape[1] for flag in annotated]


@pytest.mark.parametrize("name", FORMATS)
def test_doctor_has_no_findings(name, sample_of):
    findings = run_doctor(training_videos(config_of(sample_of(name)), seed=0)).findings
    assert {finding.kind for finding in findings} <= ({"short"} if name == "images" else set())


def test_mask_paths(sample_of):
    """One per frame, one per object, or none for an unannotated frame."""
    for name, number in (("folders", 1), ("folder per object", 2), ("images", 1), ("coco", 0)):
        assert len(training_videos(config_of(sample_of(name)), 0).mask_paths(1, 0)) == number
    assert training_videos(config_of(sample_of("files")), 0).mask_paths(0, 1) == []


@pytest.mark.parametrize("name", ["folders", "composited", "files", "sav", "training set"])
def test_frame_rates(name, sample_of):
    """Video files define their rate (12 here), folders of frames do not."""
    source = training_videos(config_of(sample_of(name)), seed=0)
    rates = [s.frame_rate(1) for s in (source, FrameRange(source, 2, 5))]
    rates.append(SelectedVideos(source, [1]).frame_rate(0))
    assert rates == [10 if name in ("folders", "composited") else 12] * 3


def test_all_types_are_tested(sample_of):
    types = {sample_of(name).keys.get("type", "video") for name in FORMATS}
    assert types == set(DATASET_TYPES) - {"auto"}  # tests/data/test_detection.py


# --- folders of frames --------------------------------------------------------------------------


def test_unrelated_files_are_ignored_and_logged(tmp_path, messages):
    root = make_davis(tmp_path, {"a": 3}, ending=".JPG")
    for folder in ("JPEGImages", "Annotations"):
        for name in (".DS_Store", "._00000.jpg", "._00000.png", "notes.txt"):
            (root / folder / "a" / name).write_text("not an image")
    (root / "JPEGImages" / ".hidden").mkdir()
    source = VideoDataset(root)
    assert source.names == ["a"] and source.num_frames(0) == 3
    assert [m for m in messages if "ignored 8 files" in m and ".DS_Store" in m]


def test_links_are_followed(tmp_path):
    make_davis(tmp_path / "real", {"a": 2, "b": 2})
    (tmp_path / "data").mkdir()
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "real" / name)
    assert VideoDataset(tmp_path / "data").names == ["a", "b"]
    (tmp_path / "real" / "JPEGImages" / "a" / "00002.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match=r"a/00002.jpg is a broken link"):
        VideoDataset(tmp_path / "data")


def test_parent_folder_of_data_sets(tmp_path):
    for name in ("train", "valid"):
        make_davis(tmp_path / name, {"a": 2})
    with pytest.raises(DataError) as error:
        VideoDataset(tmp_path)
    assert "train, valid" in error.value.hint


def test_folder_beside_videos_is_not_a_resolution(tmp_path):
    make_davis(tmp_path, {"a": 2})
    (tmp_path / "JPEGImages" / "@eaDir" / "a").mkdir(parents=True)
    source = VideoDataset(tmp_path)
    assert source.names == ["a"] and source.has_masks
    assert [(r.kind, Path(r.where).name) for r in source.remarks] == [("ignored", "@eaDir")]


def test_ambiguous_mask_folders_are_an_error(tmp_path):
    make_davis(tmp_path, {"a": 2})
    (tmp_path / "Annotations").rename(tmp_path / "Annotations_6fps")
    assert VideoDataset(tmp_path).has_masks
    (tmp_path / "Annotations_all").mkdir()
    with pytest.raises(DataError, match="candidates for Annotations: .*_6fps, .*_all"):
        VideoDataset(tmp_path)
    (tmp_path / "Annotations").mkdir()
    other = VideoDataset(tmp_path, masks_path=tmp_path / "Annotations_6fps")
    assert set(other.read_masks(0, 1) or {}) == {1, 2}


def mask_files(folder: Path, num_frames: int = 2) -> MaskFiles:
    indices = {f"{t:05d}": t for t in range(num_frames)}
    return MaskFiles(folder, num_frames, indices.get, "how to name them")


def test_folder_per_object(tmp_path):
    save_palette(tmp_path / "000" / "00000.png", square(0, 0) * 7)
    save_palette(tmp_path / "cat" / "00001.png", square(0, 0) * 1)
    save_palette(tmp_path / "cat" / "00000.png", square(2, 2) * 255)
    files = mask_files(tmp_path)
    first = files.read(0, "frame", SIZE)
    assert set(first) == {0, "cat"}
    assert np.array_equal(first["cat"], square(2, 2)) and (first[0] & first["cat"]).any()
    assert set(files.read(1, "frame", SIZE)) == {"cat"}  # object 0 is absent there
    assert files.read_void(0) is None
    assert (
        files.read(0, "frame", SIZE) is not None
        and mask_files(tmp_path, 3).read(2, "frame", SIZE) is None
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("0/00000.png", "object 0"),
        ("dog/00007.png", "1 masks without a frame .* 00007.png; how to name them"),
        ("dog/00000.txt", "dog contains no PNG masks"),
    ],
)
def test_invalid_object_folders(tmp_path, file, message):
    save_palette(tmp_path / "000" / "00000.png", square(0, 0) * 1)
    if file.endswith("png"):
        save_palette(tmp_path / file, square(0, 0) * 1)
    else:
        (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=message):
        mask_files(tmp_path)


def test_invalid_masks_and_frames(tmp_path):
    save_palette(tmp_path / "1" / "00000.png", square(0, 0) * 1 + square(12, 12) * 2)
    with pytest.raises(DataError, match=r"00000.png .*values \[1, 2\]"):
        mask_files(tmp_path).read(0, "frame", SIZE)
    root = make_davis(tmp_path / "d", {"a": 2}, ending=".tif")
    deep = (300 * square(0, 0) + 255 * square(12, 12)).astype(np.uint16)
    Image.fromarray(deep).save(root / "Annotations" / "a" / "00000.png")
    assert set(VideoDataset(root).read_masks(0, 0)) == {255, 300}
    assert VideoDataset(root).read_void(0, 0) is None
    pages = [Image.new("RGB", SIZE[::-1])] * 2
    pages[0].save(root / "JPEGImages" / "a" / "00001.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="00001.tif contains 2 images"):
        VideoDataset(root).read_frame(0, 1)


# --- video files --------------------------------------------------------------------------------

OPEN = {"options": {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3"}}
UNEVEN = {"times": [170 * (t // 3) + (0, 20, 70)[t % 3] for t in range(24)]}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("short.mp4", "libx264", {"gop_size": 4, "max_b_frames": 3}),
        ("open.mp4", "libx264", OPEN),
        ("open.mkv", "libx264", OPEN),
        ("uneven.mp4", "libx264", {"gop_size": 6, "max_b_frames": 2, **UNEVEN}),
        ("uneven.mkv", "libx264", {"gop_size": 6, "max_b_frames": 2, **UNEVEN}),
        ("b_frames.mov", "mpeg4", {"gop_size": 6, "max_b_frames": 2}),
        ("b_frames.avi", "mpeg4", {"gop_size": 6, "max_b_frames": 2}),
        ("b_frames2.avi", "libx264", {"gop_size": 6, "max_b_frames": 2}),
        ("plain.avi", "mpeg4", {"gop_size": 6, "max_b_frames": 0}),
        ("camera.MTS", "libx264", {"gop_size": 6, "max_b_frames": 2}),
        ("open.ts", "libx264", OPEN),
        ("disc.mpg", "mpeg2video", {"gop_size": 6, "max_b_frames": 2}),
        ("old.wmv", "wmv2", {"gop_size": 6, "max_b_frames": 0}),
        ("raw.h264", "libx264", {"gop_size": 6}),
    ],
)
def test_index_means_the_same_frame_in_any_order(tmp_path, name, codec, options):
    file = VideoFile(save_video(tmp_path / name, [10 * t for t in range(24)], codec, **options))
    assert file.num_frames(0) == 24 and file.size == SIZE

    def frame_number(t: int) -> int:
        return round(float(file.read_frame(0, t).mean()) / 10)

    for order in (range(24), range(23, -1, -1), range(0, 24, 3), [20, 2, 7, 7, 6, 21, 0, 23]):
        assert [frame_number(t) for t in order] == [*order]


def test_recordings_that_begin_between_key_frames(tmp_path):
    whole = save_video(tmp_path / "a.ts", [10 * t for t in range(24)], gop_size=6, max_b_frames=2)
    content = whole.read_bytes()
    packets = len(content) // 188
    whole.write_bytes(content[packets // 3 * 188 :])
    file = VideoFile(whole)
    values = [round(file.read_frame(0, t).mean() / 10) for t in range(file.num_frames(0))]
    assert values and values == list(range(24 - len(values), 24))
    assert [round(file.read_frame(0, t).mean() / 10) for t in (5, 0)] == [values[5], values[0]]


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_playlists_cannot_open_other_files(tmp_path, kind):
    """FFmpeg knows a file by its content, and a playlist names other files or addresses."""
    masks = 255 * square(2, 2)[..., None]
    secret = save_video(tmp_path / "private" / "secret.ts", [masks, masks], "mpeg2video")
    playlist = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile 'private/secret.ts'\n",
    }[kind]
    (tmp_path / "a.mp4").write_text(playlist)
    with pytest.raises(DataError) as error:
        open_video(tmp_path / "a.mp4")
    assert error.value.hint
    assert find_label_video("files", tmp_path) is None  # it would be masks if it were opened


def test_a_file_whose_name_looks_like_an_address(tmp_path, monkeypatch):
    save_video(tmp_path / "a.mp4", [10, 20]).rename(tmp_path / "concat:a|b.mp4")
    monkeypatch.chdir(tmp_path)
    assert open_video(Path("concat:a|b.mp4")).num_frames(0) == 2


def test_a_video_file_whose_name_is_not_utf8(tmp_path):
    """JSON files of its results could not contain the name."""
    try:
        path = save_video(tmp_path / "a.mp4", [10, 20]).rename(tmp_path / "caf\udce9.mp4")
    except OSError:
        pytest.skip("the file system has no such names")
    with pytest.raises(DataError, match="not UTF-8") as error:
        open_video(path)
    assert "convmv" in error.value.hint


def test_metadata_that_are_not_utf8(tmp_path):
    import av

    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "KXhler"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 24, "yuv420p")))
        container.mux(stream.encode())
    path.write_bytes(path.read_bytes().replace(b"KXhler", b"K\xf6hler"))
    assert VideoFile(path).num_frames(0) == 1


def test_a_video_without_a_decoder_is_one_error(tmp_path):
    path = save_video(tmp_path / "a.mp4", [10, 20])
    content = path.read_bytes()
    for name in (b"avc1", b"mp4v"):
        content = content.replace(name, b"zzzz")
    path.write_bytes(content.replace(b"avcC", b"zzzC"))
    with pytest.raises(DataError, match="unknown codec") as error:
        VideoFile(path)
    assert "H.264" in error.value.hint


@pytest.mark.parametrize(("turn", "corner"), [(180, (1, 1)), (270, (1, 0)), (90, (0, 1))])
def test_rotation_metadata_is_applied(tmp_path, turn, corner):
    path = save_video(tmp_path / "a.mp4", [0])
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[:24, :32] = 220  # bright at the top left
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # the rotation matrix in the header of the track
    one = 1 << 16
    a, b = {90: (0, one), 180: (-one, 0), 270: (0, -one)}[turn]  # clockwise
    content[matrix : matrix + 20] = struct.pack(">5i", a, b, 0, -b, a)
    path.write_bytes(content)
    file = VideoFile(path)
    upright = file.read_frame(0, 0)
    assert upright.shape[:2] == file.size == ((48, 64) if turn == 180 else (64, 48))
    rows, columns = (
        np.array_split(np.arange(n), 2)[c] for n, c in zip(file.size, corner, strict=True)
    )
    assert upright[np.ix_(rows, columns)].mean() > 200


def test_forked_process_reads_an_open_file(tmp_path):
    save_video(tmp_path / "a.mp4", [10 * t for t in range(12)], gop_size=4)
    source = VideoFileDataset(tmp_path)
    source.read_frame(0, 5)
    garbage = VideoFileDataset(tmp_path)
    garbage.read_frame(0, 5)
    del garbage  # its decoder is freed by the garbage collector, also in the forked process
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        pool.submit(gc.collect).result(timeout=60)
        frames = [pool.submit(source.read_frame, 0, t) for t in (6, 7, 2)]
        numbers = [round(f.result(timeout=60).mean() / 10) for f in frames]
    assert numbers == [6, 7, 2] and round(source.read_frame(0, 6).mean() / 10) == 6


def test_names_of_video_files(tmp_path):
    for name in ("b2.mp4", "b10.MP4", "cam 1/a.mkv", "cam 1/.a.mkv"):
        save_video(tmp_path / "data" / name.replace("/.", "/"), [0, 10])
    (tmp_path / "data" / "._b2.mp4").write_text("not a video")
    source = VideoFileDataset(tmp_path / "data")
    assert source.names == ["b2", "b10", "cam 1/a"] and not source.has_masks
    assert source.read_masks(0, 1) is None
    save_video(tmp_path / "data" / "b2.avi", [0], "mpeg4")
    with pytest.raises(DataError, match="'b2'"):
        VideoFileDataset(tmp_path / "data")
    with pytest.raises(DataError, match="contains no video files") as error:
        VideoFileDataset(make_davis(tmp_path / "other"))
    assert "dataset.type=video" in error.value.hint
    with pytest.raises(DataError) as error:
        VideoDataset(tmp_path / "data")
    assert "b10.MP4" in error.value.hint and "dataset.type=files" in error.value.hint
    (tmp_path / "data" / "Annotations").mkdir()
    with pytest.raises(DataError) as error:
        VideoDataset(tmp_path / "data")
    assert "b10.MP4" in error.value.hint and "dataset.type=files" in error.value.hint


def test_masks_that_do_not_match_their_video_file(tmp_path):
    for name in "ab":
        save_video(tmp_path / f"{name}.mp4", [0, 10])
        save_palette(tmp_path / "Annotations" / name / "1.png", square(0, 0) * 1)
    assert set(VideoFileDataset(tmp_path).read_masks(0, 1)) == {1}
    save_palette(tmp_path / "Annotations" / "a" / "3.png", square(0, 0) * 1)
    with pytest.raises(DataError, match="3.png") as error:
        VideoFileDataset(tmp_path)
    assert "from 0 to 1" in error.value.hint
    (tmp_path / "Annotations" / "a" / "3.png").rename(tmp_path / "Annotations" / "a" / "01.png")
    with pytest.raises(DataError, match="are masks of the same frame"):
        VideoFileDataset(tmp_path)
    shutil.rmtree(tmp_path / "Annotations" / "a")
    partly = VideoFileDataset(tmp_path)  # a is unannotated
    assert partly.read_masks(0, 1) is None and partly.read_masks(1, 1) is not None
    assert [list(partly.annotated_frames(i)) for i in range(2)] == [[], [1]]
    shutil.rmtree(tmp_path / "Annotations" / "b")
    with pytest.raises(DataError, match="Annotations has no masks for any of the 2 videos"):
        VideoFileDataset(tmp_path)
    save_palette(tmp_path / "Annotations" / "a" / "0.png", np.zeros((5, 6)))
    with pytest.raises(DataError, match="0.png has 5 rows and 6 columns, .*0 of .*a.mp4"):
        VideoFileDataset(tmp_path).read_masks(0, 0)


def test_coco_json_that_does_not_match_its_video_files(tmp_path):
    sample = files_with_coco(tmp_path)
    save_video(tmp_path / "videos" / "c.mp4", [0])
    config = config_of(sample)
    source = open_source(Config(dataset=config))  # c is unannotated
    assert source.names == ["a", "b", "c"] and not list(source.annotated_frames(2))
    assert training_videos(config, seed=0).names == ["a", "b"]
    (tmp_path / "videos" / "c.mp4").unlink()
    save_video(tmp_path / "videos" / "a.mp4", [0, 10, 20])
    with pytest.raises(DataError, match="labels.json: video 'a'") as error:
        training_videos(config_of(sample), seed=0)
    assert (error.value.key, error.value.value) == ("order_in_video", 3)


# --- SA-V ---------------------------------------------------------------------------------------


def test_both_kinds_of_masklets(tmp_path):
    make_sav(tmp_path / "sav_000")
    make_sav(tmp_path / "sav_000", names=("b",), kind="auto")
    with pytest.raises(DataError, match="a.mp4 has no a_auto.json") as error:
        SAVDataset(tmp_path, masklets="auto")
    assert "dataset.sav_masklets" in error.value.hint
    source = SAVDataset(tmp_path, masklets="both")
    assert source.names == ["a", "b"]
    assert set(source.read_masks(0, 4)) == {"manual_0", "manual_3"}
    assert set(source.read_masks(1, 4)) == {"manual_0", "manual_3", "auto_0", "auto_3"}
    assert open_source(tmp_path).names == ["a", "b"]


def test_annotations_beside_videos_are_not_logged(tmp_path, messages):
    SAVDataset(make_sav(tmp_path))
    assert not messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_frame_count": 9.0}, "a.mp4 has 6 frames, .*a_manual.json is 9"),
        ({"masklet_id": [0]}, "one mask per 'masklet_id'"),
        ({"masklet": None}, "a_manual.json is not an SA-V annotation"),
        ({"masklet": [[], [], []], "masklet_id": []}, "masklets for 3 frames, .* of the 6 frames"),
        ({"masklet": [[compressed(np.ones((4, 4), bool))]], "masklet_id": [5]}, "masklet 5 on fra"),
        ({"video_frame_count": "many"}, "'video_frame_count' cannot be read"),
        ({"video_frame_count": 6e12}, "video_frame_count=6000000000000 must be"),
    ],
)
def test_invalid_masklets(tmp_path, change, message):
    import json

    make_sav(tmp_path, names=("a",))
    file = tmp_path / "a_manual.json"
    save_json(file, json.loads(file.read_text()) | change)
    with pytest.raises(DataError, match=message):
        source = SAVDataset(tmp_path)
        source.read_masks(0, 0)


# --- mixtures -----------------------------------------------------------------------------------


def epoch_names(source: MixtureDataset, epoch: int) -> list[str]:
    return [source.name(source.index_in_epoch(i, epoch)) for i in range(len(source))]


def test_weights_are_shares_of_an_epoch(tmp_path):
    parts = [
        {"data_path": str(make_davis(tmp_path / "1", {n: 2 for n in "abcdef"})), "weight": 1},
        {"data_path": str(make_davis(tmp_path / "2", {"g": 2, "h": 2})), "weight": 2},
        {"type": "synthetic", "synthetic_videos": 1, "weight": 3.0},
    ]
    keys = {"type": "mixture", "mixture": parts, "video_clip_length": 2}
    source = training_videos(config_of(Sample(keys)), seed=5)
    assert len(source) == 9 and isinstance(source, MixtureDataset)
    epochs = [epoch_names(source, e) for e in range(4)]
    for names in epochs:  # shares of 9 positions: 1.5, 3 and 4.5
        counts = [len([n for n in names if n in part]) for part in ("abcdef", "gh")]
        assert counts == [2, 3] and len({n for n in names if "synthetic" in n}) == 4
    assert sorted(n for names in epochs[:3] for n in names if n in "abcdef") == [*"abcdef"]
    generated = [n for names in epochs for n in names if "synthetic" in n]
    assert len(set(generated)) == len(generated)  # new ones in every epoch
    for seed in (5, 6):
        other = training_videos(config_of(Sample(keys)), seed=seed)
        assert (epochs == [epoch_names(other, e) for e in range(4)]) == (seed == 5)
    beyond = source.index_in_epoch(8, 3)
    assert beyond >= len(source) and source.read_frame(beyond, 1).shape == (32, 32, 3)
    assert source.read_masks(beyond, 0) is not None


def test_shares_add_up():
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert shares([0.5, 2], 5) == [1, 4]
    with pytest.raises(DataError, match="1e-06"):
        MixtureDataset([training_videos(config_of(synthetic(Path())), 0)] * 2, [1, 1e-6])


def test_a_mixture_holds_out_of_each_source(tmp_path):
    one, two = make_davis(tmp_path / "1", {"a": 2, "b": 2}), make_davis(tmp_path / "2")
    parts = [{"data_path": str(one)}, {"data_path": str(two)}]
    parts += [{"type": "synthetic", "synthetic_videos": 3}]
    config = Config(dataset=config_of(Sample({"type": "mixture", "mixture": parts})))
    config.valdataset.synthetic_videos = 2
    train, val = build_datasets(config)
    names = train.source.names + val.source.names
    stored = sorted(n for n in names if "synthetic" not in n)
    assert stored == ["1_a", "1_b", "2_a", "2_b"]
    assert sorted(n[0] for n in val.source.names) == ["1", "2", "3", "3"]
    assert not set(train.source.names) & set(val.source.names)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"data_pat": "x"}, "data_pat"),
        ({"weight": 0}, "weight"),
        ({"weight": "2"}, "weight"),
        ({"type": "mixture"}, "type"),
        ({"type": "film"}, "type"),
        ({"type": "coco"}, "annotation_file"),
        ({"data_path": 5}, "data_path"),
        ({"synthetic_motion": -1}, "synthetic_motion"),
    ],
)
def test_invalid_mixtures(entry, key):
    config = Config()
    config.dataset.type, config.dataset.mixture = "mixture", [{"data_path": "here"}, entry]
    with pytest.raises(ConfigError) as error:
        check(config)
    (problem,) = error.value.problems
    assert (problem.key, problem.value) == (f"dataset.mixture[1].{key}", entry.get(key))


def test_invalid_keys_of_sources(tmp_path):
    for overrides, key, value in (
        (["dataset.type=mixture"], "dataset.mixture", []),
        (["dataset.type=sav", "dataset.sav_masklets=all"], "dataset.sav_masklets", "all"),
        (["dataset.type=sav", "dataset.masks_path=x"], "dataset.masks_path", "x"),
        (
            ["dataset.type=mixture", "dataset.mixture=[{type: files}]", "dataset.data_path=x"],
            "dataset.data_path",
            "x",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(overrides=overrides)
        (problem,) = error.value.problems
        assert (problem.key, problem.value) == (key, value)
    config = load_config(
        overrides=["dataset.type=mixture", "dataset.mixture=[{type: files, data_path: nowhere}]"]
    )
    with pytest.raises(ConfigError, match=r"dataset.mixture\[0\].data_path: nowhere"):
        check_paths(config)


def test_masks_path_is_for_the_training_videos():
    config = Config()
    config.dataset.masks_path = "labels"
    assert config.validation_dataset().masks_path == "labels"
    config.valdataset.data_path = "other"
    assert config.validation_dataset().masks_path is None


# --- open_source --------------------------------------------------------------------------------


def test_open_source_detects_the_format(tmp_path, sample_of):
    def kind(path: Any) -> str:
        return type(open_source(path)).__name__

    paths = {name: Path(sample_of(name).keys.get("data_path", ".")) for name in FORMATS}
    label = sample_of("coco").keys["annotation_file"]
    assert kind(paths["folders"]) == "VideoDataset"
    assert kind(str(paths["masks elsewhere"])) == "VideoDataset"
    assert kind(paths["folders"] / "JPEGImages" / "a") == "VideoDataset"
    assert kind(paths["files"]) == kind(paths["files, avi"]) == "VideoFileDataset"
    assert kind(paths["files"] / "a.mp4") == "VideoFile"
    assert kind(paths["sav"]) == kind(paths["sav"] / "a.mp4") == "SAVDataset"
    assert kind(paths["images"]) == "ImageDataset"
    assert kind(label) == "COCODataset"
    source = open_source(label)
    assert open_source(source) is source
    config = Config(dataset=config_of(sample_of("composited")))
    assert kind(config) == "VideoDataset"  # shown as it is, without generated objects
    with pytest.raises(DataError, match=r"nothing does not exist; .* is empty"):
        open_source(tmp_path / "nothing")
    with pytest.raises(DataError, match="no videos found; .*ROOT/JPEGImages"):
        open_source(tmp_path)
    (tmp_path / "notes.txt").write_text("not a video")
    with pytest.raises(DataError, match="notes.txt cannot be read as a video"):
        open_source(tmp_path / "notes.txt")


# --- the real data ------------------------------------------------------------------------------


def real(name: str) -> Path:
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/{name} is missing")
    return SHARED / name


def one_step(config: Config) -> None:
    """Check that the data yields a clip and that a training step has a gradient."""
    train, _ = build_datasets(config)
    module = SAM2LightningModule(config)
    _, terms = module.track_and_score(collate([train[0]]), step=0)
    terms["loss"].backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert torch.isfinite(terms["loss"]) and any(bool(g.any()) for g in gradients)


def test_davis_trains(tiny_config):
    tiny_config.dataset.data_path = str(real("davis"))
    one_step(tiny_config)


def test_video_file_without_masks_trains(tiny_config):
    tiny_config.dataset.type = "files"
    tiny_config.dataset.data_path = str(real("video"))
    tiny_config.dataset.synthetic_objects = 3
    tiny_config.valdataset.type = "synthetic"
    one_step(tiny_config)


def test_sav_trains(tiny_config, tmp_path):
    """Train on real masklets over generated frames."""
    file = next(real("sav").glob("*_manual.json"))
    shutil.copy(file, tmp_path)
    name = file.stem.removesuffix("_manual")
    save_video(tmp_path / f"{name}.mp4", [t % 250 for t in range(483)], size=(848, 480))
    tiny_config.dataset.type = "sav"
    tiny_config.dataset.data_path = str(tmp_path)
    tiny_config.dataset.frame_stride = 4
    tiny_config.valdataset.type = "synthetic"
    source = training_videos(tiny_config.dataset, 0)
    annotated = [source.read_masks(0, t) is not None for t in range(0, 483, 2)]
    assert annotated == [t % 4 == 0 for t in range(0, 483, 2)]
    assert source.read_masks(0, 0)[1].shape == source.read_frame(0, 0).shape[:2] == (848, 480)
    one_step(tiny_config)


def test_masklets_without_their_videos(tmp_path):
    make_sav(tmp_path)
    for film in tmp_path.glob("*.mp4"):
        film.unlink()
    with pytest.raises(DataError, match=r"a_manual.json .*a.mp4 is missing"):
        open_source(tmp_path)


def test_ranges_end_with_shorter_videos(tmp_path):
    source = VideoDataset(make_davis(tmp_path / "data", {"a": 6, "b": 3}))
    part = FrameRange(source, 1, 4)
    assert [part.num_frames(i) for i in (0, 1)] == [3, 2]
    assert (part.read_frame(1, 1) == source.read_frame(1, 2)).all()
    assert list(part.annotated_frames(1)) == [0, 1] and part.frame_number(1, 1) == 2
    with pytest.raises(IndexError):
        part.read_frame(1, 2)
    assert FrameRange(source, 0, 3).video_path(0) is None  # a part of its folder
    assert FrameRange(source, 0, 3).video_path(1) == source.video_path(1)
    for start, stop in ((3, 9), (2, 2), (-1, 2)):
        with pytest.raises(DataError) as error:
            FrameRange(source, start, stop)
        assert error.value.key == "frames" and error.value.hint
