"""Test the exports of annotation tools: identity, interpolation, boxes, and rows left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_helpers import (
    SIZE,
    everything,
    make_coco,
    make_davis,
    make_ytvis,
    save_frame,
    save_json,
    save_video,
    square,
    training_videos,
)
from tool_helpers import (
    both,
    box_of,
    brush,
    make_cvat,
    make_label_studio,
    make_labelme,
    make_yolo,
    points_text,
    yolo_row,
)

from sam2kit.config.schema import DatasetConfig
from sam2kit.data import ConnectedObjects, convert, open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.doctor.report import run_doctor
from sam2kit.data.sources import shapes
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.cvat import CVATDataset, frame_list, mask_element
from sam2kit.data.sources.label_studio import LabelStudioDataset, decode_brush
from sam2kit.data.sources.labelme import LabelMeDataset
from sam2kit.data.sources.shapes import box_corners
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.data.sources.video_files import VideoFileDataset
from sam2kit.data.sources.yolo import YOLODataset
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import unpack_hint

MAKERS = {
    "cvat": make_cvat,
    "label_studio": make_label_studio,
    "labelme": make_labelme,
    "yolo": make_yolo,
}


def content_of(source) -> list:
    """Return names, frames and masks, without void pixels, which not every format has."""
    whole = everything(source)
    return whole[:1] + [entry if n % 2 == 0 else entry[0] for n, entry in enumerate(whole[1:])]


def counts(source) -> list[tuple[str, int]]:
    return [(entry.kind, entry.count) for entry in source.left_out()]


@pytest.mark.parametrize("kind", MAKERS)
def test_each_export_is_recognised(tmp_path, kind):
    root = MAKERS[kind](tmp_path / "data")
    layout = detect_layout(root)
    assert layout.type == kind and layout.reason
    assert len(open_source(root)) == 2
    config = DatasetConfig(type=kind, data_path=str(root), identity="components")
    assert isinstance(training_videos(config, 0), ConnectedObjects)


def test_annotation_files_are_recognised(tmp_path):
    make_cvat(tmp_path / "cvat")
    assert detect_layout(tmp_path / "cvat/a/annotations.xml").type == "cvat"
    assert open_source(tmp_path / "cvat/a/annotations.xml").names == ["a"]
    make_label_studio(tmp_path / "ls")
    assert detect_layout(tmp_path / "ls/project-1.json").type == "label_studio"
    make_labelme(tmp_path / "lm")
    assert detect_layout(tmp_path / "lm/a/00000.json").type == "labelme"
    assert open_source(tmp_path / "lm/a/00000.json").names == ["a"]


def test_roboflow_is_coco(tmp_path):
    """Subsets in folders of their own, each with its JSON file; no ids of videos or tracks."""
    for subset in ("train", "valid"):
        content = make_coco(tmp_path / "old", 3, (subset,))
        for image in content["images"]:
            t = image.pop("order_in_video") // 2
            image.pop("video_id")
            image["file_name"] = f"film_mp4-{t}_jpg.rf.{subset}{t}.jpg"
            save_frame(tmp_path / "data" / subset / image["file_name"], 10 * t)
        save_json(tmp_path / "data" / subset / "_annotations.coco.json", content)
    assert detect_layout(tmp_path / "data").type == "coco"
    source = open_source(tmp_path / "data")
    assert [source.num_frames(i) for i in range(len(source))] == [3, 3]
    assert detect_layout(tmp_path / "data/train").type == "coco"


def test_coco_of_cvat_is_found_with_its_images(tmp_path):
    content = make_coco(tmp_path / "old", 3, ("a",))
    for image in content["images"]:
        t = image.pop("order_in_video") // 2
        image.pop("video_id")
        image["file_name"] = f"frame_{t:06d}.PNG"
        save_frame(tmp_path / "task/images/default" / image["file_name"], 10 * t)
    save_json(tmp_path / "task/annotations/instances_default.json", content)
    source = open_source(tmp_path / "task")
    assert source.names == ["default"] and set(source.read_masks(0, 2)) == {3, "cat"}


# --- archives -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("my data.zip", "unzip '{}/my data.zip' -d '{}/my data'"),
        ("a.tar.gz", "tar -xf {}/a.tar.gz -C {}/a"),
        ("a.TAR", "tar -xf {}/a.TAR -C {}/a"),
    ],
)
def test_archives_are_named_with_their_command(tmp_path, name, command):
    (tmp_path / name).write_bytes(b"PK")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(DataError, match="archive") as error:
            open_source(path)
        assert command.format(tmp_path, tmp_path) in error.value.hint
    with pytest.raises(DataError) as error:
        training_videos(DatasetConfig(data_path=str(tmp_path / name)), 0)
    assert error.value.key == "dataset.data_path" and "unpack" in error.value.hint
    assert unpack_hint("a.mp4") is None


# --- CVAT ---------------------------------------------------------------------------------------


def xml(root: Path, body: str, num_frames: int = 4, name: str = "frame_{:06d}.png") -> Path:
    for t in range(num_frames):
        save_frame(root / "images" / name.format(t), 10 * t)
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version><meta/>{body}</annotations>"
    )
    return root


def polygon(t: int, mask: np.ndarray, **attributes: str) -> str:
    keys = {"frame": str(t), "keyframe": "1", "outside": "0"} | attributes
    text = " ".join(f'{key}="{value}"' for key, value in keys.items())
    return f'<polygon {text} points="{points_text(mask)}"/>'


def test_interpolated_shapes_of_cvat(tmp_path):
    root = make_cvat(tmp_path)
    source = CVATDataset(root, keyframes_only=False)
    assert set(source.read_masks(0, 3)) == {1}
    assert np.array_equal(source.read_masks(0, 3)[1], square(0, 6))
    assert CVATDataset(root).read_masks(0, 3) is None


def test_a_task_of_cvat_that_begins_later_in_its_film(tmp_path):
    """Its frames carry the numbers of the video, as its shapes do."""
    shapes = "".join(polygon(t, square(0, t)) for t in (2, 5))
    root = xml(tmp_path, f'<track id="0" label="cell">{shapes}</track>', 0)
    for t in range(2, 6):
        save_frame(root / "images" / f"{t:05d}.png", 10 * t)
    file = root / "annotations.xml"
    meta = "<meta><task><mode>interpolation</mode><start_frame>2</start_frame></task></meta>"
    file.write_text(file.read_text().replace("<meta/>", meta))
    source = CVATDataset(root)
    assert [t for t in range(4) if source.read_masks(0, t)] == [0, 3]
    (mask,) = source.read_masks(0, 3).values()
    assert np.array_equal(mask, square(0, 5))


def test_shapes_of_cvat_that_are_not_tracked(tmp_path, messages):
    """CVAT exports them as tracks of one frame; the next frame only says that they are gone."""
    track = '<track id="{}" label="cell">{}</track>'
    body = "".join(
        track.format(2 * t + k, polygon(t, mask) + polygon(t + 1, mask, outside="1"))
        for t in range(3)
        for k, mask in enumerate(both(t))
    )
    source = CVATDataset(xml(tmp_path, body))
    assert [set(source.read_masks(0, t) or ()) for t in range(3)] == [{"cell-1", "cell-2"}] * 3
    assert np.array_equal(source.read_masks(0, 2)["cell-1"], square(0, 4))
    assert source.read_masks(0, 3) is None
    assert any("no id" in line and "cell" in line for line in messages)
    with pytest.raises(DataError, match="no id") as error:
        CVATDataset(tmp_path, identity="track")
    assert error.value.key == "dataset.identity"
    merged = CVATDataset(tmp_path, identity="category").read_masks(0, 1)
    assert list(merged) == ["cell"] and np.array_equal(merged["cell"], square(0, 2) | both(1)[1])


def test_all_shapes_of_cvat(tmp_path):
    x0, y0, x1, y1 = box_of(square(4, 4))
    shapes = (
        f'<box frame="0" keyframe="1" outside="0" xtl="{x0}" ytl="{y0}" xbr="{x1}" ybr="{y1}"/>',
        '<ellipse frame="1" keyframe="1" outside="0" cx="16" cy="12" rx="6" ry="4"/>',
        '<points frame="2" keyframe="1" outside="0" points="1,1"/>',
        '<polygon frame="2" keyframe="1" outside="0" points="1,1;2,2"/>',
        '<mask frame="2" keyframe="1" outside="0" rle="1, 2" left="0" top="0" width="2" '
        'height="2"/>',
        polygon(99, square(0, 0)),
    )
    root = xml(tmp_path, f'<track id="5" label="cell">{"".join(shapes)}</track>')
    source = CVATDataset(root)
    assert np.array_equal(source.read_masks(0, 0)[5], square(4, 4))
    ellipse = source.read_masks(0, 1)[5]
    assert abs(int(ellipse.sum()) - np.pi * 24) < 8 and ellipse[12, 16]
    assert source.read_masks(0, 2) is None
    assert sorted(counts(source)) == [("boxes", 1), ("masks", 1), ("masks", 1), ("masks", 2)]
    findings = run_doctor(source, DatasetConfig(image_size=32)).findings
    assert {"boxes", "left out"} <= {f.kind for f in findings}
    with pytest.raises(DataError):
        CVATDataset(root, strict=True)


def test_a_turned_box():
    corners = box_corners(0, 0, 4, 2, 90)
    expected = np.array([[3, -1], [3, 3], [1, 3], [1, -1]])
    assert np.allclose(corners, expected)


def test_cvat_for_images(tmp_path):
    body = ""
    for t in (2, 10, 1):
        save_frame(tmp_path / "images" / f"cam_{t}.png", 10 * t)
        shape = f'<polygon label="cell" points="{points_text(square(0, t))}" group_id="4"/>'
        body += f'<image id="{t}" name="cam_{t}.png" width="32" height="24">{shape}</image>'
    body += '<image id="5" name="cam_11.png" width="32" height="24"></image>'
    save_frame(tmp_path / "images" / "cam_11.png", 110)
    body += '<image id="6" name="cam_12.png" width="32" height="24"></image>'
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{body}</annotations>"
    )
    source = CVATDataset(tmp_path)
    assert source.names == [tmp_path.name] and counts(source) == [("frames", 1)]
    assert [source.frame_name(0, t) for t in range(4)] == ["cam_1", "cam_2", "cam_10", "cam_11"]
    assert np.array_equal(source.read_masks(0, 2)[4], square(0, 10))
    assert source.read_masks(0, 3) is None


def test_frames_of_cvat_elsewhere(tmp_path):
    root = make_cvat(tmp_path / "export", "a")
    (root / "a" / "images").rename(tmp_path / "frames")
    with pytest.raises(DataError, match="no frames or video") as error:
        CVATDataset(root)
    assert "dataset.data_path" in error.value.hint
    source = CVATDataset(tmp_path / "frames", annotation_file=root / "a" / "annotations.xml")
    assert source.num_frames(0) == 6 and set(source.read_masks(0, 1)) == {1, 2}


def test_a_video_file_with_cvat(tmp_path):
    save_video(tmp_path / "film.mp4", [0, 10, 20])
    body = f'<track id="0" label="cell">{polygon(1, square(0, 2))}</track>'
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{body}</annotations>"
    )
    source = CVATDataset(tmp_path)
    assert source.num_frames(0) == 3 and source.frame_path(0, 1) is None
    assert source.frame_rate(0) == 12
    assert np.array_equal(source.read_masks(0, 1)[0], square(0, 2))
    assert round(source.read_frame(0, 2).mean() / 10) == 2 and source.read_masks(0, 2) is None


def project(root: Path, separate: bool) -> Path:
    """Write a CVAT project of two tasks of two frames; the second object is in task 7 only."""
    tracks, about = "", ""
    for number, name in ((5, "day"), (7, "night.mp4")):
        stem_ = name.removesuffix(".mp4")
        for t in range(2):
            folder = root / "images" / "Train" / (stem_ if separate else "")
            save_frame(folder / f"frame_{t:06d}.png", 10 * t + number)
        about += f"<task><id>{number}</id><name>{name}</name><mode>interpolation</mode></task>"
        shapes = "".join(polygon(t, square(0, 2 * t + number)) for t in range(2))
        tracks += f'<track id="{number}" label="cell" task_id="{number}" subset="Train">'
        tracks += f"{shapes}</track>"
    (root / "annotations.xml").write_text(
        "<annotations><version>1.1</version><meta><project><tasks>"
        f"{about}</tasks></project></meta>{tracks}</annotations>"
    )
    return root


def test_a_project_of_cvat_has_a_video_per_task(tmp_path):
    source = CVATDataset(project(tmp_path, separate=True))
    assert source.names == ["day", "night"] and counts(source) == []
    for i, number in enumerate((5, 7)):
        assert set(source.read_masks(i, 1)) == {number}
        assert np.array_equal(source.read_masks(i, 1)[number], square(0, 2 + number))
        assert round(source.read_frame(i, 1).mean()) == 10 + number
    (tmp_path / "images/Train/night").rename(tmp_path / "elsewhere")
    source = CVATDataset(tmp_path)
    assert source.names == ["day"] and counts(source) == [("frames", 1)]
    with pytest.raises(DataError, match="no frames or video"):
        CVATDataset(tmp_path, strict=True)


def test_tasks_of_a_cvat_project_that_overwrite_their_frames(tmp_path):
    """CVAT writes the frames of all videos of a subset to the same names."""
    with pytest.raises(DataError, match="'day' and 'night'") as error:
        CVATDataset(project(tmp_path, separate=False))
    assert "images/night" in error.value.hint


def test_images_of_a_cvat_project(tmp_path):
    body = ""
    for number in (5, 7):
        for t in range(2):
            name = f"{number}_{t}.png"
            save_frame(tmp_path / "images" / "Train" / name, 10 * t)
            shape = f'<polygon label="cell" points="{points_text(square(0, number))}"/>'
            body += f'<image id="{t}" name="{name}" subset="Train" task_id="{number}" '
            body += f'width="32" height="24">{shape}</image>'
    (tmp_path / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{body}</annotations>"
    )
    source = CVATDataset(tmp_path)
    assert source.names == ["task_5", "task_7"]
    assert [source.num_frames(i) for i in range(2)] == [2, 2]
    assert np.array_equal(source.read_masks(1, 1)["cell"], square(0, 7))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("<a/>", "not CVAT's format"),
        ("<annotations><version>1.1</version></annotations>", "no frame of its 1 videos"),
        ("<annotations>", "not an XML file"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "document type"),
    ],
)
def test_invalid_files_of_cvat(tmp_path, text, match):
    root = xml(tmp_path, "")
    (root / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=match) as error:
        CVATDataset(root)
    assert error.value.hint


def test_the_round_trip_through_cvat(tmp_path):
    """Masks, ids, order and unannotated frames survive; overlapping masks too."""
    root = make_davis(tmp_path / "data", annotated=lambda t: t not in (0, 4))
    source = open_source(root)
    out = convert(source, tmp_path / "cvat", "cvat")
    again = open_source(out)
    assert isinstance(again, CVATDataset) and content_of(again) == content_of(source)
    assert again.left_out() == []
    (label,) = json.loads((out / "labels.json").read_text())
    assert label["attributes"][0]["name"] == "object_id"
    back = convert(again, tmp_path / "davis", "davis")
    assert content_of(open_source(back)) == content_of(source)


def test_corrections_that_cvat_exports(tmp_path):
    """CVAT writes each mask as a track of its own, with new numbers, and drops foreign elements."""
    source = open_source(make_davis(tmp_path / "data", {"a": 3}))
    path = convert(source, tmp_path / "cvat", "cvat") / "a" / "annotations.xml"
    text = path.read_text()
    begin, end = text.index("<sam2kit>"), text.index("</sam2kit>")
    text = text[:begin] + text[end + len("</sam2kit>") :]
    for number in range(6):
        text = text.replace(f'<track id="{number}"', f'<track id="{90 - number}"')
    path.write_text(text)
    assert content_of(CVATDataset(tmp_path / "cvat")) == content_of(source)


def test_ids_that_xml_cannot_hold(tmp_path):
    content = make_coco(tmp_path, 2, ("a",))
    for row in content["annotations"]:
        row["track_id"] = "a\0b" if row["track_id"] == "cat" else "<&\">'"
    file = save_json(tmp_path / "labels.json", content)
    with pytest.raises(DataError, match="XML cannot represent"):
        convert(file, tmp_path / "cvat", "cvat")
    assert not (tmp_path / "cvat").exists()
    content["annotations"] = [r for r in content["annotations"] if r["track_id"] != "a\0b"]
    save_json(file, content)
    source = open_source(convert(file, tmp_path / "cvat", "cvat"))
    assert set(source.read_masks(0, 1)) == {"<&\">'"}


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_cvat(tmp_path, seed):
    mask = np.random.default_rng(seed).random(SIZE) < 0.4
    mask[0, 0] = seed % 2
    keys = " ".join(f'{key}="{value}"' for key, value in mask_element(mask).items())
    element = f'<mask frame="0" keyframe="1" outside="0" {keys}/>'
    source = CVATDataset(xml(tmp_path, f'<track id="0" label="x">{element}</track>'))
    assert np.array_equal(source.read_masks(0, 0)[0], mask)


def test_lists_of_frames():
    assert frame_list([0, 1, 2, 4, 7, 8]) == "0-2,4,7-8" and frame_list([]) == ""


# --- Label Studio -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_brush_strokes(seed):
    mask = np.random.default_rng(seed).random(SIZE) < 0.3
    data = np.array(brush(mask), np.uint8)
    assert np.array_equal(decode_brush(data, SIZE), mask)
    with pytest.raises(ValueError, match="end early"):
        decode_brush(data[:20], SIZE)
    with pytest.raises(ValueError, match="values"):
        decode_brush(data, (4, 4))


def video_task(file: str, sequence: list[dict], region: str = "Xy12") -> dict:
    value = {"framesCount": 5, "sequence": sequence, "labels": ["cell"]}
    result = [{"id": region, "type": "videorectangle", "value": value}]
    return {"id": 1, "data": {"video": file}, "annotations": [{"id": 1, "result": result}]}


def key_frame(frame: int, mask: np.ndarray, enabled: bool = True) -> dict:
    x0, y0, x1, y1 = box_of(mask)
    x, width = 100 * x0 / SIZE[1], 100 * (x1 - x0) / SIZE[1]
    y, height = 100 * y0 / SIZE[0], 100 * (y1 - y0) / SIZE[0]
    box = {"x": x, "y": y, "width": width, "height": height, "rotation": 0}
    return {"frame": frame, "enabled": enabled, "time": 0.0, **box}


def test_videos_of_label_studio(tmp_path):
    """Frames count from 1; between key frames boxes are interpolated, after a disabled one not."""
    save_video(tmp_path / "clip.mp4", [0, 10, 20, 30, 40])
    sequence = [key_frame(1, square(0, 0)), key_frame(3, square(0, 4), enabled=False)]
    task = video_task("/data/upload/1/0a1b2c3d-clip.mp4", sequence)
    file = save_json(tmp_path / "export.json", [task])
    source = LabelStudioDataset(tmp_path)
    assert source.names == ["clip"] and source.num_frames(0) == 5
    annotated = [source.read_masks(0, t) is not None for t in range(5)]
    assert annotated == [True, False, True, False, False]
    assert np.array_equal(source.read_masks(0, 2)["Xy12"], square(0, 4))
    assert counts(source) == [("boxes", 2)]
    every = LabelStudioDataset(tmp_path, file, keyframes_only=False)
    assert np.array_equal(every.read_masks(0, 1)["Xy12"], square(0, 2))
    with pytest.raises(DataError, match="is a box"):
        LabelStudioDataset(tmp_path, strict=True)


def test_all_files_of_a_label_studio_project_are_read(tmp_path, monkeypatch):
    for name in "ab":
        save_video(tmp_path / f"{name}.mp4", [0, 10, 20, 30, 40])
        task = video_task(f"{name}.mp4", [key_frame(1, square(0, 0)), key_frame(3, square(0, 4))])
        save_json(tmp_path / f"project-{name}.json", [task])
    source = open_source(tmp_path)
    assert source.names == ["a", "b"]
    # Opening a video file reads all of it, so it must not be repeated when the videos alternate.
    opened = []
    monkeypatch.setattr(shapes, "VideoFile", lambda path: opened.append(path) or VideoFile(path))
    for t in (0, 2, 1):
        for i in range(2):
            assert source.read_frame(i, t).mean() == pytest.approx(10 * t, abs=3)
            assert source.num_frames(i) == 5 and (t == 1 or source.read_masks(i, t))
    assert len(opened) == 2


def test_several_annotators_of_label_studio(tmp_path, messages):
    """The starred annotation is used, else the first; the others are counted and reported."""
    root = make_label_studio(tmp_path, "a", 3)
    tasks = json.loads((root / "project-1.json").read_text())
    second = {"id": 3, "was_cancelled": False, "result": []}
    tasks[0]["annotations"].append(second)
    tasks[1]["annotations"] += [second | {"ground_truth": True}, second]
    save_json(root / "project-1.json", tasks)
    source = LabelStudioDataset(root)
    assert len(source.read_masks(0, 0)) == 2 and source.read_masks(0, 1) == {}
    (finding,) = (
        f for f in run_doctor(source, DatasetConfig(image_size=32)).findings if f.kind == "ignored"
    )
    assert "3 further annotations of 2 tasks" in finding.message and "task 1" in finding.where
    assert sum("further annotations" in line for line in messages) == 1


def test_damaged_regions_of_label_studio(tmp_path):
    root = make_label_studio(tmp_path, "a", 2)
    file = root / "project-1.json"
    tasks = json.loads(file.read_text())
    regions = tasks[0]["annotations"][1]["result"]
    regions[0]["value"]["rle"] = [1, 2, 3]
    regions[1]["value"]["points"] = [[0, 0], [1, 1]]
    tasks.append({"id": 9, "data": {"image": "gone.png"}, "annotations": []})
    save_json(file, tasks)
    source = LabelStudioDataset(root)
    assert source.read_masks(0, 0) == {} and set(source.read_masks(0, 1)) == {"one", "two"}
    assert sorted(counts(source)) == [("frames", 1), ("masks", 1)]
    assert [entry.count for entry in source.left_out_masks(0)] == [1]
    with pytest.raises(DataError):
        LabelStudioDataset(root, strict=True)


@pytest.mark.parametrize("content", [{}, [1], [{"data": {}}], [{"image": "a.png", "tag": []}]])
def test_other_json_is_not_label_studio(tmp_path, content):
    file = save_json(tmp_path / "a.json", content)
    with pytest.raises(DataError, match=r"a\.json") as error:
        LabelStudioDataset(tmp_path, file)
    assert "JSON" in error.value.hint


# --- LabelMe ------------------------------------------------------------------------------------


def labelme_file(root: Path, t: int, shapes: list[dict], **keys) -> None:
    save_frame(root / f"{t}.png", 10 * t)
    content = {"version": "5", "shapes": shapes, "imagePath": f"{t}.png", "imageData": None}
    save_json(root / f"{t}.json", content | keys)


def test_shapes_of_labelme(tmp_path):
    shapes = [
        {"label": "a", "points": [[4, 4], [12, 12]], "shape_type": "rectangle"},
        {"label": "b", "points": [[20, 12], [20, 16]], "shape_type": "circle"},
        {"label": "c", "points": [[1, 1]], "shape_type": "point"},
        {"label": "d", "points": [[1, 1], [2, 2]], "shape_type": "polygon"},
        {"label": "e", "points": [[0, 0], [3, 3]], "shape_type": "mask", "mask": "%%%"},
        {"label": "f"},
    ]
    labelme_file(tmp_path, 0, shapes)
    labelme_file(tmp_path, 1, [])
    save_frame(tmp_path / "2.png", 20)
    source = LabelMeDataset(tmp_path)
    masks = source.read_masks(0, 0)
    assert set(masks) == {"a", "b"} and np.array_equal(masks["a"], square(4, 4))
    assert abs(int(masks["b"].sum()) - np.pi * 16) < 8
    assert source.read_masks(0, 1) == {} and source.read_masks(0, 2) is None
    assert sorted(counts(source)) == [("boxes", 1), ("masks", 1), ("masks", 2)]
    assert [entry.count for entry in source.left_out_masks(0)] == [1]


def test_groups_of_labelme_with_several_labels(tmp_path):
    def row(label, mask, group):
        x0, y0, x1, y1 = box_of(mask)
        points = [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]
        return {"label": label, "points": points, "group_id": group, "shape_type": "polygon"}

    labelme_file(tmp_path, 0, [row("cat", square(0, 0), 1), row("dog", square(12, 20), 1)])
    labelme_file(tmp_path, 1, [row("dog", square(12, 20), 1), row("cow", square(0, 0), 7)])
    source = LabelMeDataset(tmp_path)
    assert set(source.read_masks(0, 0)) == {"cat-1", "dog-1"}
    assert set(source.read_masks(0, 1)) == {"dog-1", 7}


def test_labelme_files_in_a_folder_of_their_own(tmp_path):
    make_labelme(tmp_path, "a", 3)
    (tmp_path / "labels").mkdir()
    for file in sorted((tmp_path / "a").glob("*.json")):
        content = json.loads(file.read_text())
        save_json(
            tmp_path / "labels" / file.name, content | {"imagePath": f"..\\a\\{file.stem}.png"}
        )
        file.unlink()
    source = LabelMeDataset(tmp_path)
    assert source.names == ["a"] and set(source.read_masks(0, 2)) == {1, 2}
    # The path in the file does not lead to other folders of the user.
    with pytest.raises(DataError) as caught:
        LabelMeDataset(tmp_path / "labels")
    assert caught.value.key == "imagePath" and caught.value.value == "..\\a\\00000.png"
    assert str(tmp_path / "labels" / "00000.json") in str(caught.value)
    (tmp_path / "a").rename(tmp_path / "frames")  # a name that needs no path
    assert LabelMeDataset(tmp_path / "labels").num_frames(0) == 3


@pytest.mark.parametrize("kind", ["coco", "ytvis", "cvat", "label_studio"])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_paths_in_annotation_files_stay_in_the_dataset(tmp_path, kind, is_absolute):
    """An image outside of the dataset is never read, although it exists where the file says."""
    save_frame(tmp_path / "private" / "a_0.png", 99)
    root = tmp_path / "data"
    path = str(tmp_path / "private" / "a_0.png") if is_absolute else "../private/a_0.png"
    (root / "images").mkdir(parents=True)
    open_it = {"cvat": CVATDataset, "label_studio": LabelStudioDataset}.get(kind, COCODataset)
    if kind == "cvat":
        polygon = f'<polygon label="a" points="{points_text(square(0, 0))}"/>'
        image = f'<image id="0" name="{path}" width="32" height="24">{polygon}</image>'
        file, field = root / "annotations.xml", path
        file.write_text(f"<annotations>{image}</annotations>")
    elif kind == "label_studio":
        task = {"id": 1, "data": {"image": path}, "annotations": [{"result": []}]}
        file, field = save_json(root / "tasks.json", [task]), path
    else:
        content = {"coco": make_coco, "ytvis": make_ytvis}[kind](tmp_path / "unused", 1, (1,))
        if kind == "coco":
            content["images"][0]["file_name"] = path
        else:
            content["videos"][0]["file_names"] = [path]
        file, field = save_json(root / "coco.json", content), "file_name"
    with pytest.raises(DataError) as caught:
        open_it(file)
    assert str(file) in str(caught.value) and field in str(caught.value)


def test_labelme_of_frames_of_another_size(tmp_path):
    labelme_file(
        tmp_path,
        0,
        [{"label": "a", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": "polygon"}],
        imageHeight=48,
        imageWidth=64,
    )
    with pytest.raises(DataError, match="48 rows and 64 columns"):
        LabelMeDataset(tmp_path, strict=True).read_masks(0, 0)
    source = LabelMeDataset(tmp_path)
    assert source.read_masks(0, 0) == {} and [e.count for e in source.left_out_masks(0)] == [1]


# --- YOLO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["subsets", "roboflow", "beside"])
def test_layouts_of_yolo(tmp_path, layout):
    images, labels = {
        "subsets": ("images/train", "labels/train"),
        "roboflow": ("train/images", "train/labels"),
        "beside": ("", ""),
    }[layout]
    for t in range(3):
        save_frame(tmp_path / images / f"f{t}.png", 10 * t)
        (tmp_path / labels).mkdir(parents=True, exist_ok=True)
        (tmp_path / labels / f"f{t}.txt").write_text(yolo_row(0, square(0, t)))
    (tmp_path / "classes.txt").write_text("cell\n")
    assert detect_layout(tmp_path).type == "yolo"
    source = YOLODataset(tmp_path)
    assert len(source) == 1 and source.num_frames(0) == 3
    assert np.array_equal(source.read_masks(0, 2)["cell"], square(0, 2))


def test_tracks_boxes_and_damaged_rows_of_yolo(tmp_path):
    save_frame(tmp_path / "0.png", 0)
    save_frame(tmp_path / "1.png", 0)
    rows = [yolo_row(0, square(0, 0), " 7"), yolo_row(0, square(12, 20))]
    rows += ["0 0.5 0.5 0.25 0.25\n", "0 0.1 0.2\n", "x 1 2\n", "0 5 5 6 5 6 6\n", "\n"]
    (tmp_path / "0.txt").write_text("".join(rows))
    (tmp_path / "1.txt").write_text("")
    source = YOLODataset(tmp_path)
    assert source.columns == "track"
    masks = source.read_masks(0, 0)
    assert set(masks) == {7, "0-1", "0-2"} and np.array_equal(masks[7], square(0, 0))
    assert sorted(counts(source)) == [("boxes", 1), ("masks", 3)]
    assert source.read_masks(0, 1) == {}
    with pytest.raises(DataError, match=r"0\.txt, line \d"):
        YOLODataset(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("ends", "columns", "ids"),
    [
        # Ultralytics writes "conf id"; an object that is not followed has the confidence alone.
        (((" 0.97 1", " 0.9 2"), (" 0.95 1", " 0.4")), "confidence_track", [{1, 2}, {1, "0"}]),
        (((" 0.97 1",), (" 1 1",)), "confidence_track", [{1}, {1}]),
        (((" 1", ""), (" 1", "")), "track", [{1, "0"}, {1, "0"}]),
        (((" 3", " 4"), (" 3", " 4")), "track", [{3, 4}, {3, 4}]),
        # Confidences of exactly 1 are no ids: two rows of a frame would be one object.
        (((" 1", " 1"), (" 0.5", " 1")), "confidence", [{"0-1", "0-2"}] * 2),
        ((("", ""), ("", "")), "none", [{"0-1", "0-2"}] * 2),
        (((" 7", " 0.83"), (" 0.5", " 0.5")), "confidence", [{"0-1"}, {"0-1", "0-2"}]),
    ],
)
def test_what_follows_the_corners_in_rows_of_yolo(tmp_path, messages, ends, columns, ids):
    """Decided once per dataset, and never read as a corner."""
    for t, row_ends in enumerate(ends):
        save_frame(tmp_path / f"{t}.png", 0)
        rows = [yolo_row(0, m, end) for m, end in zip(both(t), row_ends, strict=False)]
        (tmp_path / f"{t}.txt").write_text("".join(rows))
    source = YOLODataset(tmp_path)
    assert source.columns == columns
    for t, expected in enumerate(ids):
        masks = source.read_masks(0, t)
        assert set(masks) == expected
        for mask in masks.values():
            assert any(np.array_equal(mask, m) for m in both(t))
    assert any("after the corners" in line for line in messages) == (columns != "none")
    notes = [remark.message for remark in source.remarks if remark.kind == "note"]
    assert len(notes) == (columns != "none")


def test_the_columns_of_yolo_are_a_key(tmp_path):
    """A polygon that ends on the corner of the image, once in the whole set, is ambiguous."""
    save_frame(tmp_path / "0.png", 0)
    (tmp_path / "0.txt").write_text("0 0.25 0.5 0.5 0.5 0.5 1 0.25 1\n")
    assert YOLODataset(tmp_path).columns == "none"
    config = DatasetConfig(type="yolo", data_path=str(tmp_path), yolo_columns="confidence_track")
    assert set(training_videos(config, 0).read_masks(0, 0)) == {1}
    assert YOLODataset(tmp_path, columns="none").read_masks(0, 0)["0"].sum() == 8 * 12
    (tmp_path / "0.txt").write_text(yolo_row(0, square(0, 0), " 0.5"))
    with pytest.raises(DataError, match="yolo_columns"):
        YOLODataset(tmp_path, columns="none", strict=True)
    with pytest.raises(DataError) as error:
        YOLODataset(tmp_path, columns="both")
    assert error.value.key == "dataset.yolo_columns"


def test_augmented_copies_of_frames(tmp_path):
    for copy in ("aaa", "bbb"):
        save_frame(tmp_path / f"images/f1_jpg.rf.{copy}.png", 0)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/f1_jpg.rf.{copy}.txt").write_text(yolo_row(0, square(0, 0)))
    with pytest.raises(DataError, match="2 files are frame 1") as error:
        YOLODataset(tmp_path)
    assert "augmented" in error.value.hint


# --- the configuration --------------------------------------------------------------------------


def test_video_files_of_other_layouts_stay_as_they_are(tmp_path):
    """Text files that are no rows, and JSON of other programs, do not make an export."""
    save_video(tmp_path / "a.mp4", [0, 10])
    (tmp_path / "a.txt").write_text("notes\n")
    save_json(tmp_path / "settings.json", {"shapes": {}})
    assert isinstance(open_source(tmp_path), VideoFileDataset)
    save_frame(tmp_path / "frames" / "0.png", 0)
    (tmp_path / "frames" / "0.txt").write_text("2024-01-01 frame 0\n")
    assert detect_layout(tmp_path / "frames").type == "video"


def test_target_cvat_is_offered(tmp_path):
    with pytest.raises(ConfigError) as error:
        convert(make_davis(tmp_path), tmp_path / "out", "cvta")
    assert "cvat" in error.value.expected
