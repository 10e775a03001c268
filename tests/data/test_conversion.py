"""Test that conversion keeps frames, masks, ids and order of any source, or raises an error."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_helpers import make_davis, save_palette, square, training_videos
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_sources import FORMATS, config_of

import sam2kit.data.conversion
from sam2kit.cli.main import main
from sam2kit.data import SelectedVideos, open_source
from sam2kit.data.conversion import convert
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import file_name

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SIZE = (12, 16)


class MemorySource(VideoSource):
    """Videos with the masks that are passed in: by object for each frame; None: unannotated."""

    def __init__(self, videos: dict[str, list[dict[ObjectId, np.ndarray] | None]]) -> None:
        self.names = list(videos)
        self.videos = list(videos.values())

    def num_frames(self, i: int) -> int:
        return len(self.videos[i])

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return np.random.default_rng((i, t)).integers(0, 255, (*SIZE, 3), np.uint8)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return self.videos[i][t]


def assert_same(
    one: VideoSource, other: VideoSource, names: bool = True, pixels: bool = True
) -> None:
    assert one.names == other.names
    for i in range(len(one)):
        assert one.num_frames(i) == other.num_frames(i)
        for t in range(one.num_frames(i)):
            if names:
                assert one.frame_name(i, t) == other.frame_name(i, t)
            if pixels:
                assert np.array_equal(one.read_frame(i, t), other.read_frame(i, t))
            masks, others = one.read_masks(i, t), other.read_masks(i, t)
            assert (masks is None) == (others is None), (i, t)
            visible = {o: m for o, m in (masks or {}).items() if m.any()}
            assert visible.keys() == {o for o, m in (others or {}).items() if m.any()}
            assert all(np.array_equal(m, others[o]) for o, m in visible.items())
            assert {type(o) for o in visible} == {type(o) for o in others or {}}


def check_round_trips(source: VideoSource, root: Path) -> None:
    """Convert source -> DAVIS -> COCO -> DAVIS, and source -> COCO."""
    last: VideoSource | Path = source
    for n, to in enumerate(("davis", "coco-video", "davis")):
        last = convert(last, root / f"{n}", to)
        assert_same(source, open_source(last))
    assert_same(source, open_source(convert(source, root / "coco", "coco-video")))


@pytest.mark.parametrize("name", FORMATS)
def test_round_trips_of_every_source(tmp_path, name, messages):
    source = training_videos(config_of(FORMATS[name](tmp_path / "data")), seed=0)
    selected = SelectedVideos(source, list(range(min(len(source), 2))))
    check_round_trips(selected, tmp_path)
    assert not list(tmp_path.glob("*unfinished*"))


IDS = st.one_of(st.integers(0, 300), st.sampled_from(["cat", "7", "a/b", "ü"]))


@st.composite
def videos(draw: st.DrawFn) -> MemorySource:
    """Videos with unannotated frames, objects that appear and disappear, any ids, no overlaps."""
    made = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True).map(sorted)):
        ids = draw(st.lists(IDS, max_size=3, unique=True))
        frames: list[dict[ObjectId, np.ndarray] | None] = []
        for t in range(draw(st.integers(1, 4))):
            flags = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=3, max_size=3)))
            if flags is None and t:
                frames.append(None)
                continue
            objects = zip(range(3), ids, flags or [True] * 3, strict=False)
            frames.append({o: square(4 * n, 3 * t, 4, SIZE) & visible for n, o, visible in objects})
        made[name] = frames
    return MemorySource(made)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(videos())
def test_round_trips_keep_masks_ids_order_and_annotation_flags(tmp_path_factory, source):
    check_round_trips(source, tmp_path_factory.mktemp("round"))


@pytest.mark.skipif(not (SHARED / "davis").is_dir(), reason="needs ../shared/davis")
def test_round_trip_of_davis_copies_its_frame_files(tmp_path):
    source = open_source(SHARED / "davis")
    selected = SelectedVideos(source, [source.names.index("libby")])
    coco = convert(selected, tmp_path / "coco", "coco-video")
    davis = convert(coco, tmp_path / "davis", "davis")
    assert_same(selected, open_source(coco), pixels=False)
    assert_same(selected, open_source(davis), pixels=False)
    for t in range(0, selected.num_frames(0), 10):
        path = selected.frame_path(0, t)
        assert path is not None
        for copy in (f"coco/images/libby/{path.name}", f"davis/JPEGImages/libby/{path.name}"):
            assert (tmp_path / copy).read_bytes() == path.read_bytes()


# --- what a target cannot represent --------------------------------------------------------------


def test_overlapping_masks_are_rejected_by_davis_and_converted_to_coco(tmp_path):
    both = {1: square(0, 0, 6, SIZE), "cat": square(4, 4, 6, SIZE)}
    source = MemorySource({"a": [{1: square(0, 0, 6, SIZE)}, both]})
    with pytest.raises(DataError, match=r"'a', frame 00001: objects 1 and 'cat' overlap") as error:
        convert(source, tmp_path / "davis", "davis")
    assert "coco-video" in error.value.hint
    assert not list(tmp_path.iterdir())
    assert_same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


def test_more_objects_than_a_palette_has_numbers(tmp_path):
    cells = [np.zeros(SIZE, bool) for _ in range(12 * 16)]
    for n, cell in enumerate(cells):
        cell.flat[n] = True
    frames = [dict(zip(range(k, k + 192), cells, strict=True)) for k in (1, 100)]
    with pytest.raises(DataError, match=r"'a' has at least 255 objects .*00001.*254"):
        convert(MemorySource({"a": frames}), tmp_path / "davis", "davis")
    assert_same(
        MemorySource({"a": frames[:1]}),
        open_source(convert(MemorySource({"a": frames[:1]}), tmp_path / "d", "davis")),
    )
    assert_same(
        MemorySource({"a": frames}),
        open_source(convert(MemorySource({"a": frames}), tmp_path / "c", "coco-video")),
    )


def test_unannotated_video_next_to_annotated_ones(tmp_path):
    source = MemorySource({"a": [{1: square(0, 0, 6, SIZE)}], "b": [None, None]})
    with pytest.raises(DataError, match="'b' has no annotated frame") as error:
        convert(source, tmp_path / "davis", "davis")
    assert "coco-video" in error.value.hint
    assert_same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


@pytest.mark.parametrize("name", ["../up", "a/b", ".", ".hidden", "", "a [1]"])
def test_video_names_that_are_no_folder_names_are_changed(tmp_path, name):
    for to in ("davis", "coco-video"):
        source = MemorySource({name: [{}], "a-b": [{}]})
        names = open_source(convert(source, tmp_path / to, to)).names
        assert len(names) == 2 and "a-b" in names
        assert name not in names and all(file_name(new) == new for new in names)
    assert {p.name for p in tmp_path.iterdir()} == {"davis", "coco-video"}


def test_void_pixels_are_kept_by_davis_and_lost_with_a_warning_by_coco(tmp_path, messages):
    make_davis(tmp_path / "data", {"a": 2})
    path = tmp_path / "data/Annotations/a/00001.png"
    ids = np.array(Image.open(path))
    ids[20:, :4] = 255
    save_palette(path, ids)
    source = open_source(tmp_path / "data")
    again = open_source(convert(source, tmp_path / "davis", "davis"))
    assert np.array_equal(again.read_void(0, 1), source.read_void(0, 1)) and (ids == 255).any()
    assert not [m for m in messages if "void pixels" in m]
    assert_same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))
    assert [m for m in messages if "Frames without their void pixels: 1" in m]


def test_frames_whose_names_contradict_their_order_are_renumbered(tmp_path, messages):
    class Backwards(MemorySource):
        def frame_name(self, i: int, t: int) -> str:
            return f"{9 - t}"

    source = Backwards({"a": [{1: square(t, t, 4, SIZE)} for t in range(3)]})
    davis = convert(source, tmp_path / "davis", "davis")
    assert_same(source, open_source(davis), names=False)
    assert sorted(p.name for p in (davis / "JPEGImages/a").iterdir())[0] == "00000.png"
    assert [m for m in messages if "Frames renumbered: 3" in m]
    assert [m for m in messages if "Frames written as PNG: 3" in m]


def test_frames_without_masks(tmp_path):
    make_davis(tmp_path / "data", {"a": 3})
    source = open_source(tmp_path / "data/JPEGImages")
    again = open_source(convert(source, tmp_path / "davis", "davis"))
    assert not again.has_masks
    assert_same(source, again)
    assert_same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


# --- atomic output -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["davis", "coco-video"])
def test_full_disk_leaves_no_output(tmp_path, monkeypatch, to):
    make_davis(tmp_path / "data")
    copy = shutil.copyfile

    def full(source, target):
        if str(target).endswith("b/00002.jpg"):
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(sam2kit.data.conversion.shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        convert(tmp_path / "data", tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_interrupted_conversion_leaves_no_output(tmp_path, monkeypatch):
    make_davis(tmp_path / "data")
    copy = shutil.copyfile

    def interrupted(source, target):
        if "b" in Path(target).parts:
            assert not (tmp_path / "out").exists()
            raise KeyboardInterrupt
        copy(source, target)

    monkeypatch.setattr(sam2kit.data.conversion.shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "data", tmp_path / "out", "davis")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_unreadable_mask_leaves_no_output_in_any_number_of_processes(tmp_path):
    make_davis(tmp_path / "data", {name: 2 for name in "abcdefgh"})
    (tmp_path / "data/Annotations/g/00001.png").write_bytes(b"")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"g/00001.png cannot be read as a mask") as error:
            convert(tmp_path / "data", tmp_path / "out", "davis", workers)
        assert "Traceback" not in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_output_is_the_same_in_any_number_of_processes(tmp_path):
    make_davis(tmp_path / "data", {name: 2 for name in "abcdefgh"})
    for to in ("davis", "coco-video"):
        one = convert(tmp_path / "data", tmp_path / f"{to}0", to)
        other = convert(tmp_path / "data", tmp_path / f"{to}2", to, workers=2)
        assert_same(open_source(one), open_source(other))
    texts = [(tmp_path / f"coco-video{n}/annotations.json").read_text() for n in (0, 2)]
    assert texts[0] == texts[1]


# --- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    make_davis(tmp_path / "data", {"a": 2})
    there, back = str(tmp_path / "coco"), str(tmp_path / "new" / "davis")
    assert main(["convert", str(tmp_path / "data"), there, "--to", "coco-video"]) == 0
    assert capsys.readouterr().out == f"Wrote {there}/annotations.json\n"
    content = json.loads(Path(there, "annotations.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [row["image_id"] for row in content["annotations"]] == [1, 1, 2, 2]
    keys = ["dataset.type=coco", f"dataset.annotation_file={there}/annotations.json"]
    assert main(["convert", back, "--to", "davis", *keys]) == 0
    assert_same(open_source(tmp_path / "data"), open_source(back))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data", "out", "--to", "voc"], "davis, coco-video"),
        (["data", "data", "--to", "davis"], "not an empty folder"),
        (["data", "data/JPEGImages/a/00000.jpg", "--to", "davis"], "not an empty folder"),
        (["data", "data/JPEGImages/a/00000.jpg/out", "--to", "davis"], "cannot be written"),
        (["gone", "out", "--to", "davis"], "gone"),
        (["out", "--to", "davis"], "dataset.data_path: not set"),
        (["--to", "davis"], "0 paths"),
        (["a", "b", "c", "--to", "davis"], "3 paths"),
    ],
)
def test_command_rejects_invalid_arguments(tmp_path, monkeypatch, capsys, argv, message):
    make_davis(tmp_path / "data", {"a": 2})
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *argv]) == 2
    assert message in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_target_may_be_an_empty_folder(tmp_path):
    make_davis(tmp_path / "data", {"a": 2})
    (tmp_path / "out").mkdir()
    assert convert(tmp_path / "data", tmp_path / "out", "davis") == tmp_path / "out"
    assert oct(os.stat(tmp_path / "out").st_mode) == oct(os.stat(tmp_path / "data").st_mode)


def test_killed_conversion_leaves_no_target_folder(tmp_path):
    make_davis(tmp_path / "data")
    code = (
        "import os, shutil, signal, sys; from sam2kit.data.conversion import convert\n"
        "copy = shutil.copyfile\n"
        "def killed(source, target):\n"
        "    if 'b' in target.parts: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    copy(source, target)\n"
        "shutil.copyfile = killed; convert(*sys.argv[1:], 'davis')"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "data"), str(tmp_path / "out")]
    assert subprocess.run(argv, cwd=ROOT).returncode == -signal.SIGKILL
    assert list(tmp_path.glob("out.unfinished-*")) and not (tmp_path / "out").exists()
    assert_same(open_source(tmp_path / "data"), open_source(convert(*argv[3:], "davis")))


def test_existing_folder_with_the_name_of_the_unfinished_one_is_not_deleted(tmp_path):
    data, mine = make_davis(tmp_path / "data", {"a": 2}), tmp_path / f"out.unfinished-{os.getpid()}"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        convert(data, tmp_path / "out", "davis")
    assert (mine / "thesis.tex").is_file()
