"""Test sources on disk, the clip sampler, the loader, and building them from a configuration."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from data_helpers import (
    SIZE,
    compressed,
    make_coco,
    make_davis,
    save_frame,
    save_json,
    save_palette,
    save_video,
    square,
    training_videos,
    uncompressed,
)
from matplotlib.text import Text
from PIL import Image

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.config.validation import check
from sam2kit.data import (
    ClipDataset,
    COCODataset,
    CompositedDataset,
    SyntheticDataset,
    VideoDataset,
    VideoSource,
    build_datasets,
    build_validation_source,
    clip_sheet,
    collate,
    create_dataloader,
    open_source,
    sets_to_inspect,
)
from sam2kit.data.build import resolve_datasets
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.pictures import read_picture
from sam2kit.utils.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
DAVIS = ROOT.parent / "shared" / "davis"


class ListSource(VideoSource):
    """Videos given as lists of masks per frame (None: unannotated)."""

    def __init__(self, *videos):
        self.videos = videos
        self.names = [f"video{i}" for i in range(len(videos))]

    def num_frames(self, i):
        return len(self.videos[i])

    def read_frame(self, i, t):
        return np.full((*SIZE, 3), 10 * t % 250, np.uint8)

    def read_masks(self, i, t):
        return self.videos[i][t]


def dataset_config(**changes) -> DatasetConfig:
    defaults = {"video_clip_length": 4, "image_size": 32, "num_workers": 0, "max_objects": None}
    return DatasetConfig(**(defaults | changes))


def clips(source, training=False, seed=0, **changes) -> ClipDataset:
    return ClipDataset(source, dataset_config(**changes), training, seed)


# --- frame folders -----------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "480p"])
def test_davis_layout(tmp_path, below):
    source = VideoDataset(make_davis(tmp_path, {"b": 3, "a": 4}, below))
    assert source.names == ["a", "b"] and source.has_masks
    assert source.num_frames(0) == 4 and source.frame_name(0, 2) == "00002"
    frame, masks = source.read_frame(0, 2), source.read_masks(0, 2)
    assert frame.shape == (*SIZE, 3) and frame.dtype == np.uint8 and abs(frame.mean() - 20) < 2
    assert list(masks) == [1, 2]
    assert np.array_equal(masks[1], square(0, 4)) and np.array_equal(masks[2], square(12, 20))


def test_plain_folders_sort_naturally_in_any_ending(tmp_path):
    for n, name in enumerate(["1.JPG", "2.png", "10.WebP", "11.tif"]):
        save_frame(tmp_path / "clip" / name.lower(), 10 * n)
        (tmp_path / "clip" / name.lower()).rename(tmp_path / "clip" / name)
    (tmp_path / "clip" / "notes.txt").write_text("not a frame")
    (tmp_path / "clip" / "._1.jpg").write_bytes(b"not a frame either")
    source = VideoDataset(tmp_path)
    assert source.names == ["clip"] and not source.has_masks
    assert [source.frame_name(0, t) for t in range(4)] == ["1", "2", "10", "11"]
    assert [round(source.read_frame(0, t).mean() / 10) for t in range(4)] == [0, 1, 2, 3]
    assert source.read_masks(0, 0) is None


def test_frames_without_a_mask_file_are_unannotated(tmp_path):
    source = VideoDataset(make_davis(tmp_path, {"a": 4}, annotated=lambda t: t % 2 == 0))
    assert source.read_masks(0, 1) is None and set(source.read_masks(0, 2)) == {1, 2}
    clip = clips(source)[0]
    assert clip.annotated.tolist() == [[True] * 2, [False] * 2, [True] * 2, [False] * 2]
    assert not clip.masks[1].any()


def mask_file(tmp_path, pixels, mode=None) -> VideoDataset:
    make_davis(tmp_path, {"a": 1})
    path = tmp_path / "Annotations" / "a" / "00000.png"
    if mode == "P":
        save_palette(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return VideoDataset(tmp_path)


def test_meaning_of_mask_values(tmp_path):
    one, void = square(0, 0), square(12, 20)
    grey = mask_file(tmp_path / "1", np.where(one, 255, 0).astype(np.uint8)).read_masks(0, 0)
    assert list(grey) == [1] and np.array_equal(grey[1], one)
    bits = mask_file(tmp_path / "2", one).read_masks(0, 0)
    assert list(bits) == [1] and np.array_equal(bits[1], one)
    ids = np.where(one, 2, np.where(void, 255, 0)).astype(np.uint8)
    for mode in (None, "P"):
        masks = mask_file(tmp_path / f"3{mode}", ids, mode).read_masks(0, 0)
        assert list(masks) == [2] and np.array_equal(masks[2], one)
    assert mask_file(tmp_path / "4", np.zeros(SIZE, np.uint8)).read_masks(0, 0) == {}


def test_invalid_masks(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    colour = mask_file(tmp_path / "1", noise)
    with pytest.raises(DataError, match=r"00000.png .*colour.*palette") as error:
        colour.read_masks(0, 0)
    assert error.value.key == "dataset.mask_values"
    soft = np.zeros(SIZE, np.uint8)
    soft[0, :3] = 80, 130, 255
    with pytest.raises(DataError, match="shades"):
        mask_file(tmp_path / "2", soft).read_masks(0, 0)
    small = mask_file(tmp_path / "3", np.zeros((5, 6), np.uint8), "P")
    with pytest.raises(DataError, match=r"5 rows and 6 columns, .* 24 and 32"):
        small.read_masks(0, 0)


def test_jpeg_pixels_equal_pillow(tmp_path):
    """JPEG files are decoded by torchvision, which is faster."""
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    picture, path = Image.fromarray(noise), tmp_path / "a.jpg"
    kinds = [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 20}]
    for kind in kinds:
        picture.save(path, **kind)
        with Image.open(path) as opened:
            assert np.array_equal(read_picture(path), np.array(opened)), kind
    for other in (picture.convert("L"), picture.convert("CMYK")):
        other.save(path)
        with Image.open(path) as opened:
            assert np.array_equal(read_picture(path), np.array(opened.convert("RGB")))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="a.jpg cannot be read .*truncated"):
        read_picture(path)


def test_damaged_files_are_named(tmp_path):
    source = VideoDataset(make_davis(tmp_path, {"a": 2}))
    frame = tmp_path / "JPEGImages" / "a" / "00000.jpg"
    frame.write_bytes(frame.read_bytes()[:200])
    (tmp_path / "Annotations" / "a" / "00001.png").write_text("not an image")
    with pytest.raises(DataError, match="a/00000.jpg cannot be read"):
        source.read_frame(0, 0)
    with pytest.raises(DataError, match="a/00001.png cannot be read"):
        source.read_masks(0, 1)


@pytest.mark.parametrize("folder", ["", "frames", "JPEGImages/a"])
def test_frames_of_a_format_that_is_not_read(tmp_path, folder):
    for t in range(3):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.new("P", (8, 8)).save(tmp_path / folder / f"{t}.gif")
        save_frame(tmp_path / "masks" / f"{t}.png", 0) if folder == "frames" else None
    with pytest.raises(DataError) as error:
        VideoDataset(tmp_path)
    assert "3 files such as" in str(error.value) and "0.gif" in str(error.value)
    assert "magick" in error.value.hint and "JPEGImages but" not in str(error.value)


def test_frames_of_8_and_of_16_bits_in_one_video(tmp_path):
    """No common range of values is known, whichever frame is read first."""
    for t in range(4):
        deep = np.full((24, 32), 1000 * t + 1, np.uint16)
        save_frame(tmp_path / "a" / f"{t}.png", 10 * t)
        if t == 2:
            Image.fromarray(deep).save(tmp_path / "a" / f"{t}.png")
    source = VideoDataset(tmp_path)
    with pytest.raises(DataError, match="8 bits") as error:
        [source.read_frame(0, t) for t in range(4)]
    assert "dataset.intensity_window" in error.value.hint
    config = DatasetConfig(type="video", data_path=str(tmp_path), intensity_window=[0.0, 2550.0])
    assert round(open_source(tmp_path, config).read_frame(0, 2).mean()) == 200


def test_invalid_folders(tmp_path):
    with pytest.raises(DataError, match="nowhere is not a folder; .*ROOT/JPEGImages"):
        VideoDataset(tmp_path / "nowhere")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(DataError, match="no videos found.*readme.txt"):
        VideoDataset(tmp_path)
    make_davis(tmp_path / "1", {"a": 2})
    (tmp_path / "1" / "JPEGImages" / "empty").mkdir()
    with pytest.raises(DataError, match="empty contains no frames"):
        VideoDataset(tmp_path / "1")
    make_davis(tmp_path / "2", {"a": 2, "b": 2})
    shutil.rmtree(tmp_path / "2" / "Annotations" / "b")
    assert list(VideoDataset(tmp_path / "2").annotated_frames(1)) == []  # unannotated
    shutil.rmtree(tmp_path / "2" / "Annotations" / "a")
    with pytest.raises(DataError, match="no folder for any of the 2 videos"):
        VideoDataset(tmp_path / "2")
    make_davis(tmp_path / "3", {"a": 2})
    (tmp_path / "3" / "JPEGImages" / "a" / "00001.jpg").unlink()
    with pytest.raises(DataError, match="1 masks without a frame .* 00001.png"):
        VideoDataset(tmp_path / "3")
    make_davis(tmp_path / "4", {"a": 2})
    save_frame(tmp_path / "4" / "JPEGImages" / "a" / "00001.png", 0)
    with pytest.raises(DataError, match="'00001'"):
        VideoDataset(tmp_path / "4")
    shutil.rmtree(tmp_path / "4" / "JPEGImages")
    with pytest.raises(DataError, match="Annotations but no JPEGImages"):
        VideoDataset(tmp_path / "4")


def test_several_resolutions(tmp_path, messages):
    make_davis(tmp_path, {"a": 2}, "480p")
    make_davis(tmp_path, {"a": 3}, "Full-Resolution")
    assert VideoDataset(tmp_path).num_frames(0) == 2
    assert any("using 480p" in m for m in messages)
    assert VideoDataset(tmp_path, resolution="Full-Resolution").num_frames(0) == 3
    with pytest.raises(DataError, match="480p, Full-Resolution") as error:
        VideoDataset(tmp_path, resolution="720p")
    assert (error.value.key, error.value.value) == ("resolution", "720p")
    shutil.rmtree(tmp_path / "Annotations" / "480p")
    with pytest.raises(DataError, match="no counterpart"):
        VideoDataset(tmp_path)


def test_splits(tmp_path):
    root = make_davis(tmp_path / "set", {"bear": 2, "dog": 2, "two words": 2}, "480p")
    (root / "ImageSets" / "2016").mkdir(parents=True)
    lists = root / "ImageSets" / "2016"
    (lists / "train.txt").write_text("dog\n\nbear\ndog\n")
    assert VideoDataset(root, "2016/train").names == ["dog", "bear"]
    assert VideoDataset(root, str(lists / "train.txt")).names == ["dog", "bear"]
    (lists / "old.txt").write_text(
        "/JPEGImages/480p/dog/00000.jpg /Annotations/480p/dog/00000.png\n"
        "/JPEGImages/480p/dog/00001.jpg /Annotations/480p/dog/00001.png\ntwo words\n"
    )
    assert VideoDataset(root, "2016/old").names == ["dog", "two words"]
    (lists / "wrong.txt").write_text("dog\nbaer\n")
    with pytest.raises(DataError, match="'baer'; did you mean bear"):
        VideoDataset(root, "2016/wrong")
    (lists / "marked.txt").write_bytes("\ufeffdog\r\nbear\r\n".encode())
    assert VideoDataset(root, "2016/marked").names == ["dog", "bear"]
    (lists / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="binary.txt is not a UTF-8 text file"):
        VideoDataset(root, "2016/binary")
    (lists / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="lists no videos"):
        VideoDataset(root, "2016/empty")
    with pytest.raises(DataError) as error:
        VideoDataset(root, "2016/tran")
    assert (error.value.key, error.value.value) == ("split", "2016/tran")
    assert "2016/train" in error.value.hint


# --- COCO JSON ---------------------------------------------------------------------------------


def coco(tmp_path, change=lambda content: None, **arguments) -> COCODataset:
    content = make_coco(tmp_path)
    change(content)
    return COCODataset(save_json(tmp_path / "labels.json", content), **arguments)


def test_coco_order_and_identity(tmp_path):
    source = coco(tmp_path)
    assert source.names == ["7", "a"] and source.num_frames(0) == 4
    assert [round(source.read_frame(1, t).mean()) for t in range(4)] == [0, 10, 20, 30]
    assert source.frame_name(1, 2) == "2"
    masks = source.read_masks(1, 2)
    assert set(masks) == {3, "cat"}
    assert np.array_equal(masks[3], square(0, 4)) and masks[3].dtype == bool
    clip = clips(source)[1]
    assert clip.object_ids == [3, "cat"] and clip.name == "a" and clip.annotated.all()


def test_coco_mask_formats(tmp_path):
    mask = square(2, 3)

    def change(content):
        forms = [uncompressed(mask), compressed(mask), [[3, 2, 11, 2, 11, 10, 3, 10]]]
        for row, form in zip(content["annotations"], forms, strict=False):
            row["segmentation"] = form

    source = coco(tmp_path, change)
    for t in (3, 2):  # the first annotations are those of the last frames
        for decoded in list(source.read_masks(1, t).values())[: 2 if t == 3 else 1]:
            assert np.array_equal(decoded, mask)


def test_coco_merges_by_category_without_tracks(tmp_path):
    def change(content):
        for row in content["annotations"]:
            del row["track_id"]

    masks = coco(tmp_path, change).read_masks(0, 1)
    assert list(masks) == [0] and np.array_equal(masks[0], square(0, 2) | square(12, 20))


def test_instances_of_a_category_that_become_one_object_are_reported(tmp_path, messages):
    """Roboflow's exports have no tracks; the rule is stated where it merges objects."""

    def change(content):
        for n, row in enumerate(content["annotations"]):
            del row["track_id"]
            row["category_id"] = n % 2 if row["image_id"] in ("a-0", "a-1") else 0

    source = coco(tmp_path, change)
    (remark,) = source.remarks
    assert remark.kind == "identity" and "6 frames" in remark.message
    assert "dataset.identity=components" in remark.message
    assert sum("one object" in line for line in messages) == 1
    findings = run_doctor(source, DatasetConfig(image_size=32)).findings
    assert remark.message in [f.message for f in findings if f.kind == "identity"]
    # The configured rule is not a finding.
    assert coco(tmp_path, change, identity="category").remarks == []
    assert coco(tmp_path).remarks == []


def test_coco_images_without_annotations(tmp_path):
    def change(content):
        gone = {"a-1", "a-2"}
        content["annotations"] = [r for r in content["annotations"] if r["image_id"] not in gone]
        next(im for im in content["images"] if im["id"] == "a-2")["annotated"] = False

    source = coco(tmp_path, change)
    assert source.read_masks(1, 1) == {} and source.read_masks(1, 2) is None


def test_coco_paths_of_another_computer(tmp_path):
    def change(content):
        for im in content["images"]:
            name = im.pop("file_name")
            im["path"] = rf"C:\old\machine\{name}".replace("/", "\\")

    source = coco(tmp_path / "set", change, root=tmp_path / "set")
    assert round(source.read_frame(1, 3).mean()) == 30
    shutil.rmtree(tmp_path / "set" / "images" / "a")
    with pytest.raises(
        DataError, match="'a-0' has no file; tried .*old.*images/a/0.png.*data_path"
    ):
        COCODataset(tmp_path / "set" / "labels.json", tmp_path / "set", strict=True)


def test_coco_shortened_paths_never_match_another_video(tmp_path):
    def change(content):
        for im in content["images"]:
            im["file_name"] = f"/gone/{im['file_name']}"
        for t in range(4):  # only the bare names exist, which are the same in both videos
            save_frame(tmp_path / f"{t}.png", t)
        shutil.rmtree(tmp_path / "images")

    with pytest.raises(DataError, match="same file"):
        coco(tmp_path, change)


def set_image(key, value):
    return lambda content: content["images"][0].update({key: value})


def set_annotation(key, value):
    return lambda content: content["annotations"][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "no list 'images'"),
        (lambda c: c.update(annotations={}), "no list 'annotations'"),
        (lambda c: c.update(images=[]), "'images' is empty"),
        (set_image("video_id", None), "image 'a-3' has no 'video_id'"),
        (set_image("order_in_video", None), "image 'a-3' has no 'order_in_video'"),
        (set_image("order_in_video", "x"), "order_in_video='x' must be a number"),
        (set_image("order_in_video", float("nan")), "order_in_video=nan must be a number"),
        (
            set_image("order_in_video", 0),
            "order_in_video=0 must be unique, but image 'a-[0-3]' of video 'a'",
        ),
        (set_image("file_name", None), "neither 'file_name' nor 'path'"),
        (set_image("id", "a-0"), "another image has the same 'id'"),
        (set_image("annotated", False), "'annotated': false"),
        (set_annotation("image_id", 99), "annotation 0: 'image_id' '99' is not the id"),
        (set_annotation("track_id", None), "annotation 0 has no 'track_id'"),
        (set_annotation("track_id", 1.5), "annotation 0: track_id=1.5"),
        (set_annotation("segmentation", None), "annotation 0 has no 'segmentation'"),
    ],
)
def test_invalid_coco_files(tmp_path, change, message):
    with pytest.raises(DataError, match=message) as caught:
        coco(tmp_path, change, strict=True)
    assert "labels.json" in str(caught.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "neither a polygon of three points"),
        ([[1, 2, 3, 4]], "neither a polygon of three points"),
        ([[2, 2, 9, 2, 9, 9, 2, 9], [1, 2, 3, 4]], "polygons need three points"),
        ({"counts": "00"}, "has no 'size'"),
        ({"size": [24, 32]}, "has no 'counts'"),
        ({"size": [5, 5], "counts": [25]}, r"size \[5, 5\] is not the frame's \[24, 32\]"),
        ({"size": [24, 32], "counts": [5, 5]}, "add up to 768 pixels, not 10"),
        ({"size": [24, 32], "counts": [-1, 769]}, "0 or more"),
        ({"size": [24, 32], "counts": ""}, "add up to 768 pixels, not 0"),
        ({"size": [24, 32], "counts": "00000"}, "add up to"),
        ({"size": [24, 32], "counts": "abc"}, "counts 'abc' are truncated or"),
        ({"size": [24, 32], "counts": "zz"}, "counts 'zz' are truncated.*characters"),
        ({"size": [24, 32], "counts": 3}, "neither a list nor a string"),
    ],
)
def test_coco_damaged_segmentations(tmp_path, segmentation, message):
    change = set_annotation("segmentation", segmentation)
    with pytest.raises(DataError, match=message) as caught:
        coco(tmp_path, change, strict=True).read_masks(1, 3)
    assert "annotation 0" in str(caught.value)


def test_coco_files_that_are_not_json(tmp_path):
    with pytest.raises(DataError, match=r"gone.json cannot be read.*dataset.annotation_file"):
        COCODataset(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match="bad.json is not a JSON"):
        COCODataset(tmp_path / "bad.json")
    with pytest.raises(DataError, match="root of"):
        COCODataset(tmp_path / "bad.json", tmp_path / "nowhere")


# --- the clip sampler --------------------------------------------------------------------------

A, B, C = square(0, 0), square(12, 20, 6), square(12, 4, 4)


def test_training_clips_start_with_an_object():
    video = [{}, None, {1: A}, {1: A}, {}, {1: A}, {1: A}, {1: A}, {1: A}, {1: A}]
    dataset = clips(ListSource(video), training=True, clips_per_video=40)
    assert len(dataset) == 40
    starts = set()
    for k in range(40):
        clip = dataset[k]
        assert clip.visible[0].any() and clip.frames.shape == (4, 3, 32, 32)
        assert clip.frame_indices == list(range(clip.frame_indices[0], clip.frame_indices[0] + 4))
        assert clip.frames.float().mean((1, 2, 3)).tolist() == [10 * t for t in clip.frame_indices]
        starts.add(clip.frame_indices[0])
    assert starts == {2, 3, 5, 6}  # a whole clip fits from each of these


def test_training_clips_of_late_objects_are_reversed():
    video = [{}] * 8 + [{1: A}, {1: A}]
    clip = clips(ListSource(video), training=True)[0]
    assert clip.frame_indices in ([8, 9, 8, 7], [9, 8, 7, 6]) and clip.visible[0].any()


@pytest.mark.parametrize(
    ("frames", "length", "stride", "expected"),
    [
        (3, 5, 1, [0, 1, 2, 1, 0]),
        (3, 7, 1, [0, 1, 2, 1, 0, 1, 2]),
        (1, 3, 1, [0, 0, 0]),
        (9, 4, 2, [0, 2, 4, 6]),
        (6, 4, 2, [0, 2, 4, 2]),
        (2, 3, 4, [0, 0, 0]),
    ],
)
def test_short_videos_are_played_back_and_forth(messages, frames, length, stride, expected):
    source = ListSource([{1: A}] * frames)
    dataset = clips(source, video_clip_length=length, frame_stride=stride)
    assert dataset[0].frame_indices == expected
    dataset[0]
    lines = [m for m in messages if "'video0'" in m]
    assert len(lines) == (frames < (length - 1) * stride + 1)  # logged once
    assert all(m.startswith("INFO") for m in lines)


def test_objects_of_a_clip():
    video = [{1: A}, {1: A, "x": B}, {}, {1: A, 5: C}, {9: B}]
    clip = clips(ListSource(video))[0]
    # 5 appears on the clip's last frame, 9 after it.
    assert clip.object_ids == [1, "x"]
    assert clip.visible.tolist() == [[True, False], [True, True], [False] * 2, [True, False]]
    assert clip.annotated.all()
    single = clips(ListSource(video), video_clip_length=1)[0]
    assert single.object_ids == [1] and single.masks.shape == (1, 1, 32, 32)


def test_max_objects():
    source = ListSource([{1: C, 2: A, 3: B}] * 4)
    assert clips(source, max_objects=2)[0].object_ids == [2, 3]  # the largest
    drawn = clips(source, training=True, max_objects=2, clips_per_video=30)
    assert {tuple(drawn[k].object_ids) for k in range(30)} == {(1, 2), (1, 3), (2, 3)}


def test_videos_without_objects_are_errors():
    speck = np.zeros(SIZE, bool)
    speck[0, 0] = True
    for video in ([{}] * 5, [None] * 5):
        for training in (True, False):
            with pytest.raises(DataError, match="'video0': none of its 5 frames shows an object"):
                clips(ListSource(video), training)[0]

    class Large(ListSource):
        def read_frame(self, i, t):
            return np.zeros((128, 128, 3), np.uint8)

    small = np.zeros((128, 128), bool)
    small[0, 0] = True  # vanishes at 32 pixels, where it could not be a prompt
    with pytest.raises(DataError, match="at 32 pixels"):
        clips(Large([{1: small}] * 4))[0]
    with pytest.raises(DataError, match="video source is empty"):
        clips(ListSource())


def test_frames_of_different_size_are_an_error():
    class Growing(ListSource):
        def read_frame(self, i, t):
            return np.zeros((24 + t, 32, 3), np.uint8)

    with pytest.raises(DataError, match="'video0': its frames differ in size"):
        clips(Growing([{1: A}] * 4))[0]


def test_validation_is_fixed_and_training_follows_the_epoch():
    source = ListSource([{1: A}] * 50, [{1: A}] * 50)
    val = clips(source)
    val.set_epoch(3)
    assert len(val) == 2 and val[0].frame_indices == [0, 1, 2, 3]
    train = clips(source, training=True, clips_per_video=4)
    first = [train[k].frame_indices for k in range(8)]
    assert [train[k].name for k in range(4)] == ["video0", "video1"] * 2
    train.set_epoch(1)
    second = [train[k].frame_indices for k in range(8)]
    train.set_epoch(0)
    assert first != second and [train[k].frame_indices for k in range(8)] == first
    other = clips(source, training=True, clips_per_video=4, seed=1)
    assert [other[k].frame_indices for k in range(8)] != first


def test_index_out_of_range():
    with pytest.raises(IndexError):
        clips(ListSource([{1: A}] * 4))[1]


# --- the loader --------------------------------------------------------------------------------


def batches(source, num_workers, epochs=(0, 1), **changes):
    config = dataset_config(num_workers=num_workers, batch_size=3, augment=True, **changes)
    dataset = ClipDataset(source, config, training=True, seed=5)
    loader = create_dataloader(dataset, config, training=True, seed=5)
    result = []
    for epoch in epochs:
        loader.sampler.set_epoch(epoch)  # reaches the dataset, and workers that already run
        result += list(loader)
    return result


def test_batches_do_not_depend_on_workers():
    source = SyntheticDataset(7, 4, 32, seed=2)
    alone, spread = batches(source, 0), batches(source, 2)
    assert [b.num_clips for b in alone] == [3, 3, 1] * 2
    for a, b in zip(alone, spread, strict=True):
        assert torch.equal(a.frames, b.frames) and torch.equal(a.masks, b.masks)
        assert a.names == b.names and a.object_ids == b.object_ids
    names = [n for b in alone for n in b.names]
    assert len(set(names)) == 14  # new videos in the second epoch
    assert names[:7] != sorted(names[:7])  # shuffled
    resumed = batches(source, 0, epochs=(1,))
    assert torch.equal(resumed[0].frames, alone[3].frames)


def test_ragged_batches(tmp_path):
    source = ListSource([{1: A}] * 4, [{1: A, 2: B, 3: C}] * 4)
    config = dataset_config(batch_size=2)
    dataset = ClipDataset(source, config, training=False, seed=0)
    (batch,) = create_dataloader(dataset, config, training=False, seed=0)
    assert batch.frames.shape == (2, 4, 3, 32, 32) and batch.masks.shape == (4, 4, 32, 32)
    assert batch.clip_of_object.tolist() == [0, 1, 1, 1] and batch.names == ["video0", "video1"]
    assert batch.sizes == [SIZE, SIZE]


def test_workers_can_be_spawned():
    config = dataset_config(num_workers=1)
    dataset = ClipDataset(SyntheticDataset(2, 4, 32), config, training=True, seed=0)
    loader = create_dataloader(dataset, config, training=True, seed=0)
    loader.multiprocessing_context = "spawn"
    dataset.set_epoch(2)
    first = [b.names[0] for b in loader]
    dataset.set_epoch(4)  # in shared memory: the running worker sees it
    second = [b.names[0] for b in loader]
    assert sorted(first) == ["synthetic_0_00004", "synthetic_0_00005"]
    assert sorted(second) == ["synthetic_0_00008", "synthetic_0_00009"]


def test_workers_start_after_opencv_started_threads():
    """Changing OpenCV's number of threads in a forked worker would block it forever."""
    large = np.zeros((1500, 1500, 3), np.uint8)
    cv2.warpAffine(large, np.eye(3)[:2], (1500, 1500))
    config = dataset_config(num_workers=1)
    dataset = ClipDataset(SyntheticDataset(1, 4, 32), config, training=False, seed=0)
    (batch,) = create_dataloader(dataset, config, training=False, seed=0)
    assert batch.num_clips == 1


def test_errors_of_workers_keep_type_and_message():
    config = dataset_config(num_workers=1)
    dataset = ClipDataset(ListSource([{}] * 4), config, training=False, seed=0)
    with pytest.raises(DataError) as caught:
        list(create_dataloader(dataset, config, training=False, seed=0))
    message = str(caught.value)
    assert message.startswith("video 'video0': none of its 4 frames") and "Traceback" not in message


# --- from the configuration --------------------------------------------------------------------


def config_for(path, **dataset) -> Config:
    config = Config()
    config.dataset = dataset_config(data_path=path and str(path), **dataset)
    return config


def test_held_out_validation_videos(tmp_path):
    make_davis(tmp_path, {name: 5 for name in "abcdefghij"})
    config = config_for(tmp_path)
    train, val = build_datasets(config)
    assert 1 <= len(val) <= 4 and train.training and not val.training
    assert sorted(train.source.names + val.source.names) == list("abcdefghij")
    assert build_datasets(config)[1].source.names == val.source.names
    config.valdataset.fraction = 0.001
    assert len(build_datasets(config)[1]) == 1
    assert train[0].frames.shape == (4, 3, 32, 32) and val[0].name in val.source.names


def test_one_video_with_few_masks_cannot_be_split(tmp_path):
    root = make_davis(tmp_path, {"only": 9}, annotated=lambda t: t % 4 == 0)
    with pytest.raises(ConfigError, match="3 annotated frames.*valdataset.data_path"):
        build_datasets(config_for(root))


def test_one_video_is_split_by_time(tmp_path):
    config = config_for(make_davis(tmp_path, {"only": 25}))
    resolved, train, val = resolve_datasets(config)
    assert resolved.dataset.time_split == [18, 20, 25]  # a gap of a tenth
    assert (train.source.num_frames(0), val.source.num_frames(0)) == (18, 5)
    assert val.source.frame_name(0, 0) == "00020"
    assert int(val.source.read_frame(0, 0)[0, 0, 0]) == pytest.approx(200, abs=3)
    # A later command splits in the same way, whatever its fraction is.
    resolved.valdataset.fraction = 0.5
    assert build_validation_source(resolved).num_frames(0) == 5
    resolved.dataset.time_split = [18, 20, 26]
    with pytest.raises(DataError) as error:
        build_datasets(resolved)
    assert error.value.key == "dataset.time_split"


def test_split_by_time_leaves_masks_in_both_parts(tmp_path):
    root = make_davis(tmp_path, {"only": 25}, annotated=lambda t: t in (0, 4, 8, 12, 16))
    resolved, train, val = resolve_datasets(config_for(root))
    assert resolved.dataset.time_split == [10, 12, 25]
    assert list(train.source.annotated_frames(0)) == [0, 4, 8]
    assert list(val.source.annotated_frames(0)) == [0, 4]


def test_only_annotated_videos_are_used(tmp_path, messages):
    root = make_davis(tmp_path, {"a": 5, "b": 5, "c": 5})
    shutil.rmtree(root / "Annotations/b")
    train, val = build_datasets(config_for(root))
    assert sorted(train.source.names + val.source.names) == ["a", "c"]
    assert any("WARNING" in m and "1 of 3 videos" in m for m in messages)
    shown = sets_to_inspect(config_for(root))
    assert sum(len(clips.source) for clips in shown.values()) == 3
    counts = [clips[i].masks.shape[1] for clips in shown.values() for i in range(len(clips))]
    assert sorted(counts) == [0, 2, 2]


def test_the_detected_type_is_logged_and_recorded(tmp_path, messages):
    config = config_for(make_davis(tmp_path / "one", {"a": 5, "b": 5}))
    assert config.dataset.type == "auto"
    resolved, _, _ = resolve_datasets(config)
    assert (resolved.dataset.type, resolved.valdataset.type) == ("video", "auto")
    assert resolved.validation_dataset().type == "video"
    assert any("dataset.type=video" in m and "set dataset.type" in m for m in messages)
    # Validation videos that a later command gives are detected by themselves.
    save_video(tmp_path / "films/a.mp4", [0, 10])
    save_palette(tmp_path / "films/Annotations/a/00000.png", square(0, 0) * 1)
    resolved.valdataset.data_path = str(tmp_path / "films")
    assert type(build_validation_source(resolved)).__name__ == "VideoFileDataset"


def test_a_mixture_of_detected_sources(tmp_path):
    make_davis(tmp_path / "one", {"a": 5, "b": 5})
    save_video(tmp_path / "films/c.mp4", [0, 10, 20, 30] * 5)
    for t in range(20):
        save_palette(tmp_path / f"films/Annotations/c/{t}.png", square(0, t) * 1)
    entries = [{"data_path": str(tmp_path / name)} for name in ("one", "films")]
    config = config_for(None, type="mixture", mixture=entries)
    resolved, train, val = resolve_datasets(config)
    assert [entry["type"] for entry in resolved.dataset.mixture] == ["video", "files"]
    assert resolved.dataset.mixture[1]["time_split"] == [14, 16, 20]
    check(resolved)
    assert build_validation_source(resolved).names == val.source.names
    assert "2_c" in train.source.names and "2_c" in val.source.names


def test_separate_validation_data(tmp_path, messages):
    make_davis(tmp_path / "one", {"a": 5, "b": 5})
    make_davis(tmp_path / "two", {"a": 5})
    config = config_for(tmp_path / "one")
    config.valdataset.data_path = str(tmp_path / "two")
    train, val = build_datasets(config)
    assert train.source.names == ["a", "b"] and val.source.names == ["a"]
    assert not any("WARNING" in m for m in messages)
    config.valdataset.data_path = str(tmp_path / "one" / ".." / "one")
    build_datasets(config)
    assert any("WARNING" in m and "2 videos" in m for m in messages)


def test_videos_without_masks_get_composited_objects(tmp_path, messages):
    make_davis(tmp_path, {"a": 5, "b": 5, "c": 5})
    shutil.rmtree(tmp_path / "Annotations")
    config = config_for(tmp_path)
    with pytest.raises(DataError, match="has no masks") as error:
        build_datasets(config)
    assert (error.value.key, error.value.value) == ("dataset.synthetic_objects", 0)
    for clips in sets_to_inspect(config).values():
        assert clips[0].masks.shape[1] == 0
    config.dataset.synthetic_objects = 3
    assert not open_source(config).has_masks  # shown as it is
    train, val = build_datasets(config)
    assert train.source.generated
    labels = [text.get_text() for text in clip_sheet(collate([train[0]])).findobj(Text)]
    assert any("generated object" in label for label in labels)
    assert isinstance(train.source, CompositedDataset) and isinstance(val.source, CompositedDataset)
    assert any("INFO" in m and "has no masks" in m for m in messages)
    assert not set(train.source.names) & set(val.source.names)
    clip = train[0]
    train.set_epoch(1)
    assert clip.visible[0].any() and train[0].name == clip.name


def test_generated_validation_videos_differ():
    config = Config()
    config.dataset = dataset_config(type="synthetic", synthetic_videos=3)
    config.valdataset.synthetic_videos = 2
    train, val = build_datasets(config)
    assert len(train) == 3 and len(val) == 2 and train.source.num_frames(0) == 4
    assert not set(train.source.names) & set(val.source.names)
    assert not torch.equal(train[0].frames, val[0].frames)


def test_coco_from_the_configuration(tmp_path):
    path = save_json(tmp_path / "labels.json", make_coco(tmp_path, videos=("a", "b", "c")))
    config = config_for(tmp_path, type="coco", annotation_file=str(path))
    train, val = build_datasets(config)
    assert len(train) == 2 and len(val) == 1 and train[0].object_ids == [3, "cat"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, ConfigError, "dataset.data_path: not set"),
        ({"data_path": "/no/such/place"}, DataError, "dataset.data_path: /no/such/place does not"),
        ({"data_path": __file__}, DataError, "cannot be read as a video"),
        ({"type": "coco"}, ConfigError, "dataset.annotation_file: not set"),
        ({"type": "other"}, ConfigError, "dataset.type='other' must be one of auto, video"),
    ],
)
def test_missing_data_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        training_videos(dataset_config(**changes), seed=0)


# --- real videos --------------------------------------------------------------------------------


@pytest.mark.skipif(not DAVIS.is_dir(), reason="../shared/davis is missing")
def test_real_davis_videos():
    config = config_for(DAVIS, split="2016/train", image_size=64, frame_stride=3)
    config.valdataset.split = "2016/val"
    train, val = build_datasets(config)
    assert len(train) == 6 and val.source.names == ["libby", "horsejump-high", "soapbox"]
    clip = train[1]
    assert clip.size == (480, 854) and clip.object_ids == [1] and clip.visible.all()
    assert np.diff(clip.frame_indices).tolist() == [3, 3, 3]
    assert val[0].frame_indices == [0, 3, 6, 9]


def test_import_is_light():
    code = (
        "import sys, sam2kit.data; assert 'torch' not in sys.modules and 'cv2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
