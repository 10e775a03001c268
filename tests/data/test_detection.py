"""Test that each layout is recognised, and that a directory of several kinds is rejected."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from data_helpers import (
    SIZE,
    make_coco,
    make_davis,
    make_sav,
    make_ytvis,
    save_frame,
    save_json,
    save_palette,
    save_video,
    square,
)

from sam2kit.data import convert, open_source
from sam2kit.data.detection import Layout, detect_layout
from sam2kit.utils.errors import DataError


def paths(layout: Layout) -> tuple[Path | None, Path | None, Path | None]:
    return layout.data_path, layout.masks_path, layout.annotation_file


def test_folders_of_frames(tmp_path):
    davis = make_davis(tmp_path / "davis")
    assert detect_layout(davis).type == "video"
    plain = davis / "JPEGImages"
    assert (detect_layout(plain).type, paths(detect_layout(plain))) == (
        "video",
        (plain, None, None),
    )
    assert "Annotations" in detect_layout(davis).reason
    one_video = detect_layout(plain / "a")
    assert one_video.type == "video"
    assert open_source(plain / "a").names == ["a"]


def test_video_files(tmp_path):
    save_video(tmp_path / "videos/a.mp4", [0, 10])
    save_video(tmp_path / "deep/cam1/a.mp4", [0, 10])
    assert detect_layout(tmp_path / "videos").type == "files"
    assert detect_layout(tmp_path / "videos/a.mp4").type == "files"
    assert detect_layout(tmp_path / "deep").type == "files"
    save_palette(tmp_path / "videos/Annotations/a/00000.png", square(0, 0) * 1)
    assert open_source(tmp_path / "videos").has_masks


def test_video_files_with_a_coco_file(tmp_path):
    content = make_coco(tmp_path / "elsewhere", 2, ("a",))
    for n, row in enumerate(sorted(content["images"], key=lambda r: r["order_in_video"])):
        row |= {"order_in_video": n, "height": SIZE[0], "width": SIZE[1]}
    save_video(tmp_path / "videos/a.mp4", [0, 10])
    file = save_json(tmp_path / "videos/labels.json", content)
    assert detect_layout(tmp_path / "videos").masks_path == file
    assert open_source(tmp_path / "videos").read_masks(0, 0)


def test_sav(tmp_path):
    root = make_sav(tmp_path)
    assert detect_layout(root).type == detect_layout(root / "a.mp4").type == "sav"
    assert detect_layout(root / "a_manual.json") == replace(
        detect_layout(root / "a.mp4"), reason="the SA-V masklets of a video"
    )
    (root / "a.mp4").unlink()
    with pytest.raises(DataError, match=r"a_manual\.json is an SA-V .* video a\.mp4 is missing"):
        detect_layout(root / "a_manual.json")


def test_still_images(tmp_path):
    for name in "ab":
        save_frame(tmp_path / f"images/{name}.jpg", 10)
        save_palette(tmp_path / f"masks/{name}.png", square(0, 0) * 1)
    assert detect_layout(tmp_path).type == "images"


def test_coco_file_and_its_folder(tmp_path):
    file = save_json(tmp_path / "flat/labels.json", make_coco(tmp_path / "flat"))
    assert paths(detect_layout(file)) == (None, None, file)
    assert paths(detect_layout(file.parent)) == (file.parent, None, file)
    file = save_json(tmp_path / "vis/labels.json", make_ytvis(tmp_path / "vis/JPEGImages"))
    layout = detect_layout(file.parent)
    assert (layout.type, layout.data_path) == ("coco", tmp_path / "vis/JPEGImages")
    assert open_source(file.parent).read_masks(0, 0)
    file = save_json(tmp_path / "sub/annotations/all.json", make_coco(tmp_path / "sub"))
    assert paths(detect_layout(tmp_path / "sub")) == (tmp_path / "sub", None, file)


def test_json_files_of_other_formats_are_not_coco(tmp_path):
    make_davis(tmp_path)
    save_json(tmp_path / "JPEGImages/settings.json", {"version": "5", "shapes": []})
    assert detect_layout(tmp_path / "JPEGImages").type == "video"


def test_several_coco_files_are_ambiguous(tmp_path):
    content = make_coco(tmp_path)
    for name in ("train.json", "val.json"):
        save_json(tmp_path / name, content)
    with pytest.raises(DataError, match=r"train\.json") as error:
        detect_layout(tmp_path)
    assert error.value.key == "dataset.annotation_file"


def test_what_convert_wrote(tmp_path):
    source = open_source(make_davis(tmp_path / "data"))
    convert(source, tmp_path / "davis", "davis")
    convert(source, tmp_path / "coco", "coco-video")
    assert detect_layout(tmp_path / "davis").type == "video"
    assert detect_layout(tmp_path / "coco").type == "coco"
    assert open_source(tmp_path / "coco").names == ["a", "b"]


@pytest.mark.parametrize("kind", ["frames", "folder", "davis"])
def test_mixed_kinds_are_listed(tmp_path, kind):
    save_video(tmp_path / "a.mp4", [0, 10])
    if kind == "frames":
        save_frame(tmp_path / "cover.jpg", 0)
    elif kind == "folder":
        save_frame(tmp_path / "b/00000.jpg", 0)
    else:
        make_davis(tmp_path)
    with pytest.raises(DataError, match=r"a\.mp4.*(cover\.jpg|b|JPEGImages)") as error:
        detect_layout(tmp_path)
    assert error.value.key == "dataset.type"
    assert "files" in error.value.expected


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        detect_layout(tmp_path / "nothing")
