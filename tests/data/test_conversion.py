"""Any source into both layouts and back: the same frames, masks, ids and order, or a refusal."""

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
from data_helpers import make_davis, save_palette, square
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger
from PIL import Image
from test_sources import FORMATS, config_of

import sam2kit.data.conversion
from sam2kit.cli.main import main
from sam2kit.data import SelectedVideos, build_source, open_source
from sam2kit.data.conversion import convert
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.utils.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
SIZE = (12, 16)


class Given(VideoSource):
    """Videos as they are given: masks by object for each frame, None where nobody looked."""

    def __init__(self, videos: dict[str, list[dict[ObjectId, np.ndarray] | None]]) -> None:
        self.names = list(videos)
        self.videos = list(videos.values())

    def num_frames(self, i: int) -> int:
        return len(self.videos[i])

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return np.random.default_rng((i, t)).integers(0, 255, (*SIZE, 3), np.uint8)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return self.videos[i][t]


def same(one: VideoSource, other: VideoSource, names: bool = True, pixels: bool = True) -> None:
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
            shown = {o: m for o, m in (masks or {}).items() if m.any()}
            assert shown.keys() == {o for o, m in (others or {}).items() if m.any()}
            assert all(np.array_equal(m, others[o]) for o, m in shown.items())
            assert {type(o) for o in shown} == {type(o) for o in others or {}}


def there_and_back(source: VideoSource, root: Path, **how: bool) -> None:
    """Source -> DAVIS -> COCO -> DAVIS, and source -> COCO."""
    last: VideoSource | Path = source
    for n, to in enumerate(("davis", "coco-video", "davis")):
        last = convert(last, root / f"{n}", to)
        same(source, open_source(last), **how)
        how = how | {"names": how.get("names", True)}
    same(source, open_source(convert(source, root / "coco", "coco-video")), **how)


@pytest.fixture
def messages():
    seen: list[str] = []
    handle = logger.add(seen.append, format="{message}", level="INFO")
    yield seen
    logger.remove(handle)


@pytest.mark.parametrize("name", FORMATS)
def test_every_source_goes_both_ways(tmp_path, name, messages):
    source = build_source(config_of(FORMATS[name](tmp_path / "data")), seed=0)
    some = SelectedVideos(source, list(range(min(len(source), 2))))
    there_and_back(some, tmp_path)
    assert not list(tmp_path.glob("*unfinished*"))


IDS = st.one_of(st.integers(0, 300), st.sampled_from(["cat", "7", "a/b", "ü"]))


@st.composite
def videos(draw: st.DrawFn) -> Given:
    """Videos without overlaps, some frames unannotated, objects that come and go, any ids."""
    made = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, unique=True).map(sorted)):
        ids = draw(st.lists(IDS, max_size=3, unique=True))
        frames: list[dict[ObjectId, np.ndarray] | None] = []
        for t in range(draw(st.integers(1, 4))):
            seen = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=3, max_size=3)))
            if seen is None and t:
                frames.append(None)
                continue
            shown = zip(range(3), ids, seen or [True] * 3, strict=False)
            frames.append({o: square(4 * n, 3 * t, 4, SIZE) & there for n, o, there in shown})
        made[name] = frames
    return Given(made)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(videos())
def test_masks_ids_order_and_flags_survive(tmp_path_factory, source):
    there_and_back(source, tmp_path_factory.mktemp("round"))


@pytest.mark.skipif(not (SHARED / "davis").is_dir(), reason="needs ../shared/davis")
def test_davis_goes_both_ways_and_its_frames_are_copied(tmp_path):
    source = open_source(SHARED / "davis")
    some = SelectedVideos(source, [source.names.index("libby")])
    coco = convert(some, tmp_path / "coco", "coco-video")
    davis = convert(coco, tmp_path / "davis", "davis")
    same(some, open_source(coco), pixels=False)
    same(some, open_source(davis), pixels=False)
    for t in range(0, some.num_frames(0), 10):
        path = some.frame_path(0, t)
        assert path is not None
        for copy in (f"coco/images/libby/{path.name}", f"davis/JPEGImages/libby/{path.name}"):
            assert (tmp_path / copy).read_bytes() == path.read_bytes()


# --- what a target cannot hold -------------------------------------------------------------------


def test_overlapping_objects_are_refused_by_a_palette_and_kept_by_coco(tmp_path):
    both = {1: square(0, 0, 6, SIZE), "cat": square(4, 4, 6, SIZE)}
    source = Given({"a": [{1: square(0, 0, 6, SIZE)}, both]})
    with pytest.raises(DataError, match=r"'a', frame 00001: objects 1 and 'cat' overlap.*coco"):
        convert(source, tmp_path / "davis", "davis")
    assert not list(tmp_path.iterdir())
    same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


def test_more_objects_than_a_palette_has_numbers(tmp_path):
    cells = [np.zeros(SIZE, bool) for _ in range(12 * 16)]
    for n, cell in enumerate(cells):
        cell.flat[n] = True
    frames = [dict(zip(range(k, k + 192), cells, strict=True)) for k in (1, 100)]
    with pytest.raises(DataError, match=r"'a' has 255 objects or more by .*00001.*254"):
        convert(Given({"a": frames}), tmp_path / "davis", "davis")
    same(
        Given({"a": frames[:1]}),
        open_source(convert(Given({"a": frames[:1]}), tmp_path / "d", "davis")),
    )
    same(
        Given({"a": frames}),
        open_source(convert(Given({"a": frames}), tmp_path / "c", "coco-video")),
    )


def test_a_video_that_nobody_annotated(tmp_path):
    source = Given({"a": [{1: square(0, 0, 6, SIZE)}], "b": [None, None]})
    with pytest.raises(DataError, match="'b' has no annotated frame"):
        convert(source, tmp_path / "davis", "davis")
    same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


@pytest.mark.parametrize("name", ["../up", "a/b", ".", ".hidden", ""])
def test_names_that_no_folder_can_have(tmp_path, name):
    with pytest.raises(DataError, match="rename the video"):
        convert(Given({name: [{}]}), tmp_path / "out", "davis")
    assert not list(tmp_path.iterdir())


def test_void_stays_in_a_palette_and_is_told_where_it_is_lost(tmp_path, messages):
    make_davis(tmp_path / "data", {"a": 2})
    path = tmp_path / "data/Annotations/a/00001.png"
    ids = np.array(Image.open(path))
    ids[20:, :4] = 255
    save_palette(path, ids)
    source = open_source(tmp_path / "data")
    again = open_source(convert(source, tmp_path / "davis", "davis"))
    assert np.array_equal(again.read_void(0, 1), source.read_void(0, 1)) and (ids == 255).any()
    assert not [m for m in messages if "void pixels" in m]
    same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))
    assert [m for m in messages if "1 of the frames were without their void pixels" in m]


def test_frames_whose_names_contradict_their_order_are_numbered(tmp_path, messages):
    class Backwards(Given):
        def frame_name(self, i: int, t: int) -> str:
            return f"{9 - t}"

    source = Backwards({"a": [{1: square(t, t, 4, SIZE)} for t in range(3)]})
    davis = convert(source, tmp_path / "davis", "davis")
    same(source, open_source(davis), names=False)
    assert sorted(p.name for p in (davis / "JPEGImages/a").iterdir())[0] == "00000.png"
    assert [m for m in messages if "3 of the frames were renumbered" in m]
    assert [m for m in messages if "3 of the frames were written as PNG" in m]


def test_frames_without_masks(tmp_path):
    make_davis(tmp_path / "data", {"a": 3})
    source = open_source(tmp_path / "data/JPEGImages")
    again = open_source(convert(source, tmp_path / "davis", "davis"))
    assert not again.has_masks
    same(source, again)
    same(source, open_source(convert(source, tmp_path / "coco", "coco-video")))


# --- whole or not at all -------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["davis", "coco-video"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, to):
    make_davis(tmp_path / "data")
    copy = shutil.copyfile

    def full(source, target):
        if str(target).endswith("b/00002.jpg"):
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(sam2kit.data.conversion.shutil, "copyfile", full)
    with pytest.raises(ConfigError, match="No space left on device; nothing was kept"):
        convert(tmp_path / "data", tmp_path / "out", to)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
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


def test_data_that_break_off_leave_nothing_in_processes_too(tmp_path):
    make_davis(tmp_path / "data", {name: 2 for name in "abcdefgh"})
    (tmp_path / "data/Annotations/g/00001.png").write_bytes(b"")
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"g/00001.png cannot be read as a mask") as error:
            convert(tmp_path / "data", tmp_path / "out", "davis", workers)
        assert "Traceback" not in str(error.value)
        assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_processes_write_the_same(tmp_path):
    make_davis(tmp_path / "data", {name: 2 for name in "abcdefgh"})
    for to in ("davis", "coco-video"):
        alone = convert(tmp_path / "data", tmp_path / f"{to}0", to)
        together = convert(tmp_path / "data", tmp_path / f"{to}2", to, workers=2)
        same(open_source(alone), open_source(together))
    texts = [(tmp_path / f"coco-video{n}/annotations.json").read_text() for n in (0, 2)]
    assert texts[0] == texts[1]


# --- the command ---------------------------------------------------------------------------------


def test_the_command(tmp_path, capsys):
    make_davis(tmp_path / "data", {"a": 2})
    there, back = str(tmp_path / "coco"), str(tmp_path / "new" / "davis")
    assert main(["convert", str(tmp_path / "data"), there, "--to", "coco-video"]) == 0
    assert capsys.readouterr().out == f"wrote {there}/annotations.json\n"
    content = json.loads(Path(there, "annotations.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [row["image_id"] for row in content["annotations"]] == [1, 1, 2, 2]
    keys = ["dataset.type=coco", f"dataset.annotation_file={there}/annotations.json"]
    assert main(["convert", back, "--to", "davis", *keys]) == 0
    same(open_source(tmp_path / "data"), open_source(back))


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["data", "out", "--to", "voc"], "davis or coco-video"),
        (["data", "data", "--to", "davis"], "not an empty folder"),
        (["data", "data/JPEGImages/a/00000.jpg", "--to", "davis"], "not an empty folder"),
        (["data", "data/JPEGImages/a/00000.jpg/out", "--to", "davis"], "cannot be written"),
        (["gone", "out", "--to", "davis"], "gone"),
        (["out", "--to", "davis"], "dataset.data_path is not given"),
        (["--to", "davis"], "0 paths"),
        (["a", "b", "c", "--to", "davis"], "3 paths"),
    ],
)
def test_what_the_command_refuses(tmp_path, monkeypatch, capsys, argv, told):
    make_davis(tmp_path / "data", {"a": 2})
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *argv]) == 2
    assert told in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_an_empty_folder_may_be_the_target(tmp_path):
    make_davis(tmp_path / "data", {"a": 2})
    (tmp_path / "out").mkdir()
    assert convert(tmp_path / "data", tmp_path / "out", "davis") == tmp_path / "out"
    assert oct(os.stat(tmp_path / "out").st_mode) == oct(os.stat(tmp_path / "data").st_mode)


def test_a_killed_conversion_is_not_taken_for_whole(tmp_path):
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
    same(open_source(tmp_path / "data"), open_source(convert(*argv[3:], "davis")))


def test_a_folder_that_has_the_name_of_the_unfinished_one_stays(tmp_path):
    data, mine = make_davis(tmp_path / "data", {"a": 2}), tmp_path / f"out.unfinished-{os.getpid()}"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        convert(data, tmp_path / "out", "davis")
    assert (mine / "thesis.tex").is_file()
