"""Test COCO JSON (tracks, identity, key frames, several files, errors) and components."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import (
    SIZE,
    compressed,
    everything,
    make_coco,
    make_davis,
    make_ytvis,
    save_frame,
    save_json,
    square,
    training_videos,
    uncompressed,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger
from pycocotools import mask as mask_utils

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data import COCODataset, ConnectedObjects
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.rle import decode, decode_mask, encode_mask
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.components import components
from sam2kit.utils.errors import DataError


def by_image(tmp_path, change=lambda content: None, **arguments) -> COCODataset:
    content = make_coco(tmp_path)
    change(content)
    return COCODataset(save_json(tmp_path / "labels.json", content), **arguments)


def by_track(tmp_path, change=lambda content: None, **arguments) -> COCODataset:
    content = make_ytvis(tmp_path)
    change(content)
    return COCODataset(save_json(tmp_path / "tracks.json", content), **arguments)


def for_all(rows: str, **values):
    return lambda content: [row.update(values) for row in content[rows]]


def without_tracks(content):
    for row in content["annotations"]:
        del row["track_id"]


# --- per track ----------------------------------------------------------------------------------


def test_tracks(tmp_path):
    source = by_track(tmp_path)
    assert source.names == ["2", "10"] and [source.num_frames(i) for i in (0, 1)] == [4, 4]
    assert [round(source.read_frame(1, t).mean()) for t in range(4)] == [0, 10, 20, 30]
    assert [source.frame_name(0, t) for t in (0, 3)] == ["0", "15"]
    assert [source.order(0, t) for t in range(4)] == [0, 1, 2, 3]
    for t in range(4):
        masks = source.read_masks(1, t)
        assert list(masks) == ([2, 3] if t != 1 else [3])  # each annotation is an object
        assert np.array_equal(masks[3], square(12, 20))
        assert t == 1 or np.array_equal(masks[2], square(0, 2 * t))


def test_mask_formats_of_tracks(tmp_path):
    mask = square(2, 3)
    corners = [3, 2, 11, 2, 11, 10, 3, 10]

    def change(content):
        forms = [uncompressed(mask), compressed(mask), [corners], None]
        content["annotations"][2]["segmentations"] = forms

    source = by_track(tmp_path, change)
    assert all(np.array_equal(source.read_masks(1, t)[2], mask) for t in range(3))
    assert 2 not in source.read_masks(1, 3)


def test_tracks_by_category_and_by_id(tmp_path):
    masks = by_track(tmp_path, identity="category").read_masks(0, 2)
    assert list(masks) == [0] and np.array_equal(masks[0], square(0, 4) | square(12, 20))
    named = by_track(tmp_path, for_all("annotations", instance_id="whole"))
    assert list(named.read_masks(0, 2)) == ["whole"]
    empty = by_track(tmp_path, lambda content: content.update(annotations=[]))
    assert empty.read_masks(0, 0) == {}


def set_row(rows, **values):
    return lambda content: content[rows][0].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0]["segmentations"].pop(), "3 'segmentations', .*'10'"),
        (set_row("annotations", video_id=7), "annotation 2: 'video_id' '7' is not the id of any"),
        (set_row("annotations", video_id=None), "annotation 2 has no 'video_id'"),
        (set_row("annotations", segmentations=None), "annotation 2 has no 'segmentations'"),
        (set_row("annotations", segmentations={}), r"no list 'annotations'.*annotations\[0\]"),
        (set_row("annotations", id=None), "annotation number 0 has no 'id'"),
        (set_row("videos", id=None), "video number 0 has no 'id'"),
        (set_row("videos", id=2), "video 2: another video has the same 'id'"),
        (set_row("videos", file_names=[], length=None), "video 10 has no 'file_names'"),
        (set_row("videos", length=5), "4 'file_names' .*'length' of 5"),
        (set_row("videos", file_names=["a.png"] * 4), "frame 0 of video '10' has no file"),
        (lambda c: c["videos"][0]["file_names"].__setitem__(0, ""), "neither 'file_name' nor"),
        (lambda c: c.pop("videos"), "no list 'images'"),
    ],
)
def test_invalid_tracks(tmp_path, change, message):
    def renumber(content):  # so that ids differ from list indices
        content["videos"].reverse()
        content["annotations"] = content["annotations"][2:] + content["annotations"][:2]
        change(content)

    with pytest.raises(DataError, match=message) as caught:
        by_track(tmp_path, renumber, strict=True)
    assert "tracks.json" in str(caught.value)


def test_damaged_track(tmp_path):
    def change(content):
        content["annotations"][0]["segmentations"][2] = {"size": [1, 1], "counts": [1]}

    with pytest.raises(DataError, match=r"annotation 0 \(frame 2 of video '2'\).*size \[1, 1\]"):
        by_track(tmp_path, change, strict=True).read_masks(0, 2)
    assert list(by_track(tmp_path, change).read_masks(0, 2)) == [1]


# --- identity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["track_id", "instance_id", "object_id", "attributes"])
def test_keys_of_identity(tmp_path, key):
    def change(content):
        for row in content["annotations"]:
            track = row.pop("track_id")
            row[key] = {"occluded": False, "track_id": track} if key == "attributes" else track

    assert list(by_image(tmp_path, change).read_masks(0, 0)) == [3, "cat"]
    assert list(by_image(tmp_path, change, identity="track").read_masks(0, 0)) == [3, "cat"]
    assert list(by_image(tmp_path, change, identity="category").read_masks(0, 0)) == [0]


@pytest.mark.parametrize("identity", ["components", "tracks"])
def test_an_unknown_identity(tmp_path, identity):
    with pytest.raises(DataError) as error:
        by_image(tmp_path, identity=identity)
    assert (error.value.key, error.value.value) == ("identity", identity)
    assert "ConnectedObjects" in error.value.hint


def test_order_that_float64_cannot_represent(tmp_path):
    with pytest.raises(DataError, match="image 'a-3'") as error:
        by_image(tmp_path, set_row("images", order_in_video=10**400))
    assert (error.value.key, error.value.value) == ("order_in_video", 10**400)


def test_identity_without_its_keys(tmp_path):
    with pytest.raises(DataError, match=r"labels.json: .*track_id") as error:
        by_image(tmp_path, without_tracks, identity="track")
    assert "dataset.identity=category" in error.value.hint
    with pytest.raises(DataError, match="annotation 0 has no 'category_id'"):
        by_image(
            tmp_path, set_row("annotations", category_id=None), identity="category", strict=True
        )


# --- rows that cannot be used -------------------------------------------------------------------


def first_row(change):
    return lambda content: change(content["annotations"][0])


POLYGON = [3, 2, 11, 2, 11, 10, 3, 10]
BAD_ROWS = {
    "empty": first_row(lambda row: row.update(segmentation=[])),
    "two points": first_row(lambda row: row.update(segmentation=[[3, 3, 9, 9]])),
    "odd": first_row(lambda row: row.update(segmentation=[[*POLYGON, 1]])),
    "text": first_row(lambda row: row.update(segmentation=["x"])),
    "no mask": first_row(lambda row: row.pop("segmentation")),
    "another size": first_row(
        lambda row: row.update(segmentation=compressed(square(0, 0, 8, (4, 4))))
    ),
    "damaged": first_row(
        lambda row: row.update(segmentation={"size": [24, 32], "counts": "0" * 99})
    ),
    "no track": first_row(lambda row: row.pop("track_id")),
    "no image": first_row(lambda row: row.update(image_id=99)),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_left_out_and_counted(tmp_path, name):
    """The other fifteen annotations are read; the doctor reports one warning."""
    source = by_image(tmp_path, BAD_ROWS[name])
    masks = [source.read_masks(i, t) for i in range(2) for t in range(4)]
    assert sum(map(len, masks)) == 15 and list(source.read_masks(1, 3)) == ["cat"]
    entries = source.left_out() + source.left_out_masks(1)
    assert [(entry.kind, entry.count) for entry in entries] == [("masks", 1)]
    assert "annotation 0" in entries[0].message
    report = run_doctor(by_image(tmp_path, BAD_ROWS[name]), DatasetConfig(image_size=32))
    left_out = [f for f in report.findings if f.kind == "left out"]
    assert [f.severity for f in left_out] == ["warning"] and not report.broken
    with pytest.raises(DataError, match="annotation 0"):
        everything(by_image(tmp_path, BAD_ROWS[name], strict=True))


def test_usable_parts_of_a_mask_are_read(tmp_path):
    for segmentation in (POLYGON, [POLYGON, [3, 3, 9, 9]], [POLYGON, []]):
        change = first_row(lambda row, s=segmentation: row.update(segmentation=s))
        source = by_image(tmp_path, change)
        assert np.array_equal(source.read_masks(1, 3)[3], square(2, 3))


def test_files_without_a_usable_row(tmp_path):
    with pytest.raises(DataError, match="none of its 16 annotations"):
        by_image(tmp_path, for_all("annotations", segmentation=[]))


def test_whole_floats_are_ids(tmp_path):
    def change(content):
        for n, image in enumerate(content["images"]):
            for row in content["annotations"]:
                if row["image_id"] == image["id"]:
                    row.update(image_id=float(n), track_id=2.0)
            image.update(id=n, video_id=1.0 if image["video_id"] == "a" else 2.0)

    source = by_image(tmp_path, change)
    assert source.names == ["1", "2"] and list(source.read_masks(0, 2)) == [2]


def test_missing_frames_are_one_finding(tmp_path):
    content = make_coco(tmp_path)
    file = save_json(tmp_path / "labels.json", content)
    for name in ("images/a/1.png", "images/a/2.png"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "images" / "7")
    source = COCODataset(file)
    assert source.names == ["a"] and source.num_frames(0) == 2
    assert [round(source.read_frame(0, t).mean()) for t in (0, 1)] == [0, 30]
    assert np.array_equal(source.read_masks(0, 1)[3], square(0, 6))
    assert [source.order(0, t) for t in (0, 1)] == [0, 6]
    assert list(source.annotated_frames(0)) == [0, 1]
    with pytest.raises(IndexError):
        source.read_masks(0, 2)
    assert [(entry.kind, entry.count) for entry in source.left_out()] == [("frames", 6)]
    report = run_doctor(file, DatasetConfig(image_size=32, video_clip_length=2))
    assert [f.kind for f in report.findings if f.kind == "left out"] == ["left out"]
    assert "6 frames" in report.findings[0].message and not report.broken
    with pytest.raises(DataError, match="has no file"):
        COCODataset(file, strict=True)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataError, match="none of 8 frames has a file"):
        COCODataset(file)


# --- images without video ids -------------------------------------------------------------------


def without_videos(content, name):
    """Remove the video ids, and rename the files: ``name`` maps a video and a frame to a path."""
    for image in content["images"]:
        video, t = image.pop("video_id"), image.pop("order_in_video") // 2
        image["file_name"] = name(video, t)
    return content


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("{0}/frame_{1:06d}.png", ["a", "b"]),
        ("frames/{0}_{1}.png", ["frames-a", "frames-b"]),
        ("{0}-{1}_png.rf.0123456789abcdef01234567.png", ["a", "b"]),
    ],
)
def test_videos_by_file_names(tmp_path, name, names):
    """CVAT's and Roboflow's exports: folders and the names before the number define the videos."""
    content = make_coco(tmp_path / "old", 12, ("a", "b"))
    content = without_videos(content, name.format)
    for video in "ab":
        for t in range(12):
            save_frame(tmp_path / name.format(video, t), 10 * t)
    source = COCODataset(save_json(tmp_path / "_annotations.coco.json", content))
    assert source.names == names
    assert [round(source.read_frame(1, t).mean()) for t in range(12)] == [*range(0, 120, 10)]
    assert np.array_equal(source.read_masks(1, 10)[3], square(0, 20))


def test_one_video_without_a_folder(tmp_path):
    content = without_videos(make_coco(tmp_path, 3, ("a",)), lambda video, t: f"frame_{t:06d}.png")
    for t in range(3):
        save_frame(tmp_path / f"frame_{t:06d}.png", 10 * t)
    assert COCODataset(save_json(tmp_path / "instances_default.json", content)).names == ["default"]


def test_augmented_copies_have_no_order(tmp_path):
    content = without_videos(
        make_coco(tmp_path, 2, ("a", "b")), lambda video, t: f"f_{t}_jpg.rf.{video}{t}.jpg"
    )
    with pytest.raises(DataError, match="2 images are frame 0") as error:
        COCODataset(save_json(tmp_path / "labels.json", content))
    assert "augmented" in error.value.hint


# --- key frames ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["keyframe", "is_keyframe", "is_det_keyframe"])
def test_key_frames_of_images(tmp_path, key):
    messages = []
    sink = logger.add(messages.append, format="{message}")

    def change(content):
        for image in content["images"]:
            image[key] = image["order_in_video"] in (0, 4)

    source = by_image(tmp_path, change)
    logger.remove(sink)
    assert [source.read_masks(0, t) is None for t in range(4)] == [False, True, False, True]
    assert any("4 of 8 frames" in m for m in messages)
    every = by_image(tmp_path, change, keyframes_only=False)
    assert all(len(every.read_masks(0, t)) == 2 for t in range(4))


@pytest.mark.parametrize("flag", [{"keyframe": False}, {"attributes": {"keyframe": False}}])
def test_frame_with_one_interpolated_mask_is_unannotated(tmp_path, flag):
    source = by_image(tmp_path, set_row("annotations", **flag))  # on the last frame
    assert source.read_masks(1, 3) is None and len(source.read_masks(1, 2)) == 2


# --- several files ------------------------------------------------------------------------------


def test_several_files(tmp_path):
    one, two = make_coco(tmp_path, videos=("a", "b")), make_coco(tmp_path, videos=("c",))
    first = save_json(tmp_path / "one.json", one)
    second = save_json(tmp_path / "two.json", two)  # with the annotation ids of the first file
    for files in ([first, second], tmp_path / "*.json", str(tmp_path / "[ot]*.json")):
        source = COCODataset(files)
        assert source.names == ["a", "b", "c"]
        for i in range(3):
            masks = source.read_masks(i, 2)
            assert list(masks) == [3, "cat"] and np.array_equal(masks[3], square(0, 4))
            assert source.frame_path(i, 1) == tmp_path / f"images/{'abc'[i]}/1.png"
    with pytest.raises(DataError, match="dataset.annotation_file"):
        COCODataset(tmp_path / "*.jsonl")


def test_videos_of_one_name_in_several_files(tmp_path):
    for name in ("x", "y"):
        content = make_coco(tmp_path / name, videos=(1,))
        save_json(tmp_path / name / "labels.json", content)
    source = COCODataset(tmp_path / "*" / "labels.json")
    assert source.names == ["x-labels-1", "y-labels-1"]
    assert source.frame_path(1, 0) == tmp_path / "y/images/1/0.png"
    shutil.copy(tmp_path / "x" / "labels.json", tmp_path / "x" / "copy.json")
    with pytest.raises(DataError, match=r"labels.json: image '1-0'.*same file.*x/images/1/0"):
        COCODataset(tmp_path / "x" / "*.json")


# --- the file -----------------------------------------------------------------------------------


def test_json_that_only_python_accepts(tmp_path):
    expected = by_image(tmp_path / "plain").read_masks(0, 2)

    def change(content):
        for row in content["annotations"]:
            row["score"] = float("nan")

    source = by_image(tmp_path / "nan", change)
    masks = source.read_masks(0, 2)
    assert list(masks) == list(expected) and np.array_equal(masks[3], expected[3])
    assert list(pickle.loads(pickle.dumps(source)).read_masks(0, 2)) == list(expected)
    path = tmp_path / "plain" / "labels.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert np.array_equal(COCODataset(path).read_masks(0, 2)[3], expected[3])
    path.write_bytes(b"")
    with pytest.raises(DataError, match="labels.json is not a JSON"):
        COCODataset(path)


def test_changed_file_is_an_error(tmp_path):
    source = by_image(tmp_path)
    path = tmp_path / "labels.json"
    path.write_text(" " + path.read_text())
    with pytest.raises(DataError, match="labels.json has changed"):
        source.read_masks(0, 0)
    path.unlink()
    with pytest.raises(DataError, match="labels.json cannot be read"):
        source.read_masks(0, 0)


def test_masks_without_files(tmp_path):
    content = make_coco(tmp_path)
    content["images"][0].update(height=SIZE[0], width=SIZE[1])
    for row in content["annotations"][:3]:
        row["segmentation"] = [[3, 2, 11, 2, 11, 10, 3, 10]]
    shutil.rmtree(tmp_path / "images")
    source = COCODataset(save_json(tmp_path / "labels.json", content), files=False)
    assert np.array_equal(source.read_masks(1, 3)[3], square(2, 3))
    assert np.array_equal(
        source.read_masks(1, 1)[3], square(0, 2)
    )  # at the size of the run lengths
    assert source.order(1, 3) == 6 and source.num_frames(1) == 4
    assert source.frame_path(1, 3) is None and source.frame_name(1, 3) == "00003"
    with pytest.raises(DataError, match="polygons need"):
        source.read_masks(1, 2)
    with pytest.raises(DataError, match="without image files"):
        source.read_frame(1, 2)


def test_polygons_need_the_size_of_the_file(tmp_path):
    def change(content):
        content["images"][0].update(height=48, width=64)
        content["annotations"][0]["segmentation"] = [[6, 4, 22, 4, 22, 20, 6, 20]]

    with pytest.raises(DataError, match=r"annotation 0 \(image 'a-3'\).*\[48, 64\].*\[24, 32\]"):
        by_image(tmp_path, change).read_masks(1, 3)


def test_index_needs_few_bytes_per_annotation(tmp_path):
    count = 20_000
    save_frame(tmp_path / "0.png", 0)
    runs = compressed(square(0, 0))
    content = {
        "images": [{"id": 1, "video_id": 1, "order_in_video": 0, "file_name": "0.png"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n % 3, "segmentation": runs, "area": 64.0}
            for n in range(count)
        ],
    }
    source = COCODataset(save_json(tmp_path / "labels.json", content))
    assert len(pickle.dumps(source)) < 40 * count
    assert list(source.read_masks(0, 0)) == [0, 1, 2]


# --- masks --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
def test_compressed_run_lengths(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    encoded = encode_mask(mask)
    text = mask_utils.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    assert encoded == {"size": [height, width], "counts": text}
    assert np.array_equal(decode_mask(encoded), mask)
    assert np.array_equal(decode(uncompressed(mask), (height, width), ""), mask)


@pytest.mark.parametrize("counts", ["o" * 40 + "0", "d", "4o", "é", "4\0", "3", "5", "", None, 4])
def test_damaged_run_lengths(counts):
    """A long number, a truncated one, invalid characters, runs that end early or late, no runs."""
    with pytest.raises((ValueError, TypeError), match="its (counts|runs)"):
        decode_mask({"size": [2, 2], "counts": counts})


def test_corner_far_outside_the_frame():
    for corner in (1e9, float("nan")):
        with pytest.raises(DataError, match="far outside"):
            decode([[0, 0, 5, 0, 5, corner]], SIZE, "here")


@pytest.mark.parametrize("counts", [[760.5, 7.5], [2**63 - 1, 2**63 - 1, 770], [], [2**64]])
def test_invalid_runs_with_the_right_sum(counts):
    with pytest.raises(DataError, match="whole numbers"):
        decode({"size": list(SIZE), "counts": counts}, SIZE, "here")


def test_polygons_of_several_parts(tmp_path):
    parts = [[3, 2, 11, 2, 11, 10, 3, 10], [20, 12, 28, 12, 28, 20, 20, 20]]
    assert np.array_equal(decode(parts, SIZE, ""), square(2, 3) | square(12, 20))


# --- connected components -----------------------------------------------------------------------


class MaskList(VideoSource):
    """One video of the given masks by category; None: an unannotated frame."""

    def __init__(self, frames):
        self.frames = frames
        self.names = ["video"]
        self.read_indices = []

    def num_frames(self, i):
        return len(self.frames)

    def read_frame(self, i, t):
        return np.zeros((*SIZE, 3), np.uint8)

    def read_masks(self, i, t):
        self.read_indices.append(t)
        return self.frames[t]


def test_components_are_numbered_from_the_top_left():
    mask = square(10, 0, 4) | square(3, 20, 4) | square(3, 10, 4) | square(7, 14, 4)
    labels, count = components(mask)  # the last two touch at a corner
    assert count == 3
    assert [int(labels[p]) for p in ((3, 10), (7, 14), (3, 20), (10, 0), (0, 0))] == [1, 1, 2, 3, 0]


def test_components_keep_their_identity():
    frames = [
        {5: square(0, 0) | square(12, 20)},
        None,
        {5: square(12, 18) | square(0, 3)},  # both move
        {},
        {5: square(12, 17)},  # 5-1 disappears
        {5: square(12, 17) | square(1, 3) | square(12, 2), "b": square(0, 20)},  # 5-1 is back
    ]
    source = ConnectedObjects(MaskList(frames))
    masks = [source.read_masks(0, t) for t in range(6)]
    assert [m and list(m) for m in masks] == [
        ["5-1", "5-2"],
        None,
        ["5-1", "5-2"],
        {},
        ["5-2"],
        ["5-1", "5-3", "5-2", "b-1"],
    ]
    assert np.array_equal(masks[0]["5-2"], square(12, 20))
    assert np.array_equal(masks[2]["5-2"], square(12, 18))
    assert np.array_equal(masks[5]["5-1"], square(1, 3))
    assert np.array_equal(masks[5]["5-3"], square(12, 2))


def test_components_do_not_depend_on_the_reading_order():
    generator = np.random.default_rng(0)
    frames = [{1: generator.random(SIZE) < 0.08} for _ in range(5)]
    forwards, backwards = ConnectedObjects(MaskList(frames)), ConnectedObjects(MaskList(frames))
    one = [forwards.read_masks(0, t) for t in range(5)]
    other = [backwards.read_masks(0, t) for t in reversed(range(5))][::-1]
    copied = pickle.loads(pickle.dumps(backwards)).read_masks(0, 3)
    for t in range(5):
        assert list(one[t]) == list(other[t])
        assert all(np.array_equal(one[t][o], other[t][o]) for o in one[t])
        assert np.array_equal(np.any(list(one[t].values()), 0), frames[t][1])
    assert list(copied) == list(one[3])
    assert forwards.source.read_indices.count(2) == 2  # once to match, once to read


def test_merged_component_continues_the_object_with_larger_iou():
    frames = [{1: square(0, 0, 6) | square(0, 8, 12)}, {1: square(0, 0, 6) | square(0, 5, 15)}]
    assert list(ConnectedObjects(MaskList(frames)).read_masks(0, 1)) == ["1-2"]


def test_components_of_frames_of_different_sizes():
    frames = [{1: square(0, 0)}, {1: square(0, 0, size=(40, 40))}]
    with pytest.raises(DataError, match="'video'.*frame '00001'"):
        ConnectedObjects(MaskList(frames)).read_masks(0, 0)


def test_identity_by_configuration(tmp_path):
    content = make_coco(tmp_path)
    without_tracks(content)
    coco = DatasetConfig(
        type="coco",
        data_path=str(tmp_path),
        annotation_file=str(save_json(tmp_path / "labels.json", content)),
    )
    assert list(training_videos(coco, 0).read_masks(0, 2)) == [0]
    coco.identity = "components"
    source = training_videos(coco, 0)
    assert [list(source.read_masks(0, t)) for t in (0, 3)] == [["0-1", "0-2"]] * 2
    assert np.array_equal(source.read_masks(0, 3)["0-1"], square(0, 6))
    coco.annotation_file = str(tmp_path / "l*.json")
    assert training_videos(coco, 0).names == source.names
    for image in content["images"]:
        image["keyframe"] = False
    save_json(tmp_path / "labels.json", content)
    assert training_videos(coco, 0).read_masks(0, 0) is None
    coco.keyframes_only = False
    assert len(training_videos(coco, 0).read_masks(0, 0)) == 2
    davis = Config().dataset
    davis.data_path, davis.identity = str(make_davis(tmp_path / "davis")), "components"
    assert list(training_videos(davis, 0).read_masks(0, 0)) == ["1-1", "2-1"]


@pytest.mark.slow
def test_the_benchmark(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", str(root))
    command = [sys.executable, str(root / "benchmarks" / "coco_index.py"), "--videos", "3"]
    subprocess.run([*command, "--masks", "200", "--out", str(tmp_path / "o.json")], check=True)
    result = json.loads((tmp_path / "o.json").read_text())
    assert [row["JSON"] for row in result["rows"]] == ["images", "images", "tracks"]
    assert "pycocotools takes" in (tmp_path / "o.md").read_text()


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_cannot_leave_the_root(tmp_path, absolute):
    content = make_coco(tmp_path / "root")
    outside = tmp_path / "secret.png"
    save_frame(outside, 200)
    content["images"][0]["file_name"] = str(outside) if absolute else "../secret.png"
    file = save_json(tmp_path / "a.json", content)
    with pytest.raises(DataError, match=r"secret\.png"):
        everything(COCODataset(file, tmp_path / "root", strict=True))
    source = COCODataset(file, tmp_path / "root")
    assert [entry.count for entry in source.left_out()] == [1]
    assert sum(source.num_frames(i) for i in range(2)) == 7


@pytest.mark.parametrize("name", ["\\ud800", "a\\udc00", "\\ud83dx\\ude00", "\\ude00\\ud83d"])
def test_names_that_are_no_unicode_are_an_error(tmp_path, name):
    text = json.dumps(make_coco(tmp_path, 2, ("a",)))
    for new, is_valid in ((name, False), ("\\ud83d\\ude00", True)):
        (tmp_path / "labels.json").write_text(
            text.replace('"video_id": "a"', f'"video_id": "{new}"')
        )
        if is_valid:
            assert COCODataset(tmp_path / "labels.json").names == ["\U0001f600"]
        else:
            with pytest.raises(DataError, match="half a character"):
                COCODataset(tmp_path / "labels.json")


def test_frames_with_equal_file_names_have_different_names(tmp_path):
    # Results are named like the frames: with equal names they would overwrite each other.
    content = make_coco(tmp_path, 4, ("a", "b"))
    for image in content["images"]:
        if image["video_id"] == "a" and int(image["order_in_video"]) % 4:
            name = image["file_name"].replace("/a/", "/a/other/")
            number = image["order_in_video"] // 2 - 1
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            target = Path(name).with_stem(str(number))
            (tmp_path / image["file_name"]).rename(tmp_path / target)
            image["file_name"] = str(target)
    source = COCODataset(save_json(tmp_path / "labels.json", content))
    names = [[source.frame_name(i, t) for t in range(4)] for i in (0, 1)]
    assert names == [["00000", "00001", "00002", "00003"], ["0", "1", "2", "3"]]
