"""Write training sets incrementally, read them after a move, and reject what cannot be used."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import SIZE, make_coco, make_davis, save_json, save_video, square, training_videos
from PIL import Image
from stack_helpers import save_tiff, stack
from tool_helpers import make_cvat

from sam2kit.config.schema import DatasetConfig
from sam2kit.data import SyntheticDataset, open_source
from sam2kit.data import training_set as writer
from sam2kit.data.detection import detect_layout
from sam2kit.data.sources.training_set import INDEX_FILE, TrainingSet
from sam2kit.data.training_set import AcceptedFrame, add_to_training_set, read_provenance
from sam2kit.utils import locks
from sam2kit.utils.errors import ConfigError, DataError

COUNTS = ("written", "replaced", "unchanged", "overlaps")


def frames(*indices: int, **changes: Any) -> list[AcceptedFrame]:
    """Return accepted frames on which object 1 moves and object "cat" does not."""
    provenance = {1: "click", "cat": "propagated"}
    return [
        AcceptedFrame(t, {1: square(0, 2 * t), "cat": square(12, 20)} | changes, provenance, "nano")
        for t in indices
    ]


def counts(summary: writer.TrainingSetSummary) -> tuple[int, ...]:
    return tuple(getattr(summary, name) for name in COUNTS)


@pytest.fixture
def video(tmp_path) -> Path:
    return save_video(tmp_path / "films" / "a.mp4", [10 * t for t in range(6)])


@pytest.mark.parametrize("format", ["davis", "coco"])
def test_frames_are_added_replaced_and_kept(tmp_path, video, format):
    folder, source = tmp_path / "set", open_source(video)
    first = add_to_training_set(folder, source, 0, frames(0, 2), names={1: "ball"}, format=format)
    assert counts(first) == (2, 0, 0, 0) and first.video == "a"
    moved = frames(2, cat=square(14, 2))
    second = add_to_training_set(folder, source, 0, frames(0) + moved + frames(4))
    assert counts(second) == (1, 1, 1, 0) and second.others == 0
    third = add_to_training_set(folder, source, 0, frames(0))  # frames 2 and 4 stay, and are named
    assert counts(third) == (0, 0, 1, 0) and third.others == 2 and "2 earlier" in str(third)
    data = TrainingSet(folder)
    assert data.names == ["a"] and data.objects == [{1: "ball", "cat": "cat"}]
    annotated = [t for t in range(6) if data.read_masks(0, t) is not None]
    assert annotated == [0, 2, 4]
    masks = data.read_masks(0, 2)
    assert np.array_equal(masks[1], square(0, 4)) and np.array_equal(masks["cat"], square(14, 2))
    assert list(map(float, data.read_frame(0, 3)[0, 0])) == pytest.approx([30] * 3, abs=3)
    # Nothing but masks was written.
    assert not list(folder.rglob("*.mp4")) and not (folder / "JPEGImages").exists()


def test_provenance_is_kept_per_frame_and_object(tmp_path, video):
    folder, source = tmp_path / "set", open_source(video)
    add_to_training_set(folder, source, 0, frames(0, 2))
    before = read_provenance(folder, "a")
    objects = [{"id": 1, "made": "click"}, {"id": "cat", "made": "propagated"}]
    assert before[0]["objects"] == objects and before[0]["model"] == "nano"
    painted = AcceptedFrame(2, {1: square(0, 4), "cat": square(12, 20)}, {1: "painted"})
    add_to_training_set(folder, source, 0, [painted])
    after = read_provenance(folder, "a")
    assert after[0] == before[0] and after[2]["model"] is None
    assert [o["made"] for o in after[2]["objects"]] == ["painted", "accepted"]


def test_equal_names_of_different_videos_do_not_mix(tmp_path, video):
    other = save_video(tmp_path / "other" / "a.mp4", [50] * 4)
    folder = tmp_path / "set"
    for path in (video, other, video):
        add_to_training_set(folder, open_source(path), 0, frames(0))
    data = TrainingSet(folder)
    assert data.names == ["a", "a-2"] and [data.num_frames(i) for i in (0, 1)] == [6, 4]


def test_the_set_moves_with_its_videos(tmp_path, video):
    folder = tmp_path / "films" / "set"
    add_to_training_set(folder, open_source(video), 0, frames(0, 1))
    shutil.move(tmp_path / "films", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "set"
    assert TrainingSet(moved).read_frame(0, 1).shape == (*SIZE, 3)
    # A frame that is added later does not make a second video of it.
    source = open_source(tmp_path / "elsewhere" / "a.mp4")
    assert counts(add_to_training_set(moved, source, 0, frames(1, 2))) == (1, 0, 1, 0)
    assert TrainingSet(moved).names == ["a"]


def test_a_missing_video_is_named_with_the_fix(tmp_path, video):
    folder = tmp_path / "set"
    add_to_training_set(folder, open_source(video), 0, frames(0))
    shutil.move(folder, tmp_path / "far" / "set")  # alone: the former absolute path is used
    assert TrainingSet(tmp_path / "far" / "set").names == ["a"]
    gone = video.rename(tmp_path / "b.mp4")
    with pytest.raises(DataError, match="a.mp4") as caught:
        TrainingSet(tmp_path / "far" / "set")
    assert "videos" in caught.value.hint
    (tmp_path / "far" / "set" / "videos").mkdir()
    shutil.copy(gone, tmp_path / "far" / "set" / "videos" / "a.mp4")  # as the hint says
    assert TrainingSet(tmp_path / "far" / "set").num_frames(0) == 6
    save_video(tmp_path / "far" / "set" / "videos" / "a.mp4", [0] * 3)
    with pytest.raises(DataError, match="3 frames"):
        TrainingSet(tmp_path / "far" / "set")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_copy_can_be_moved_alone(tmp_path, video, kind):
    make_davis(tmp_path / "davis", {"a": 6})
    path = video if kind == "file" else tmp_path / "davis" / "JPEGImages" / "a"
    folder = tmp_path / "set"
    add_to_training_set(folder, open_source(path), 0, frames(0, 3), copy=True)
    shutil.move(folder, tmp_path / "new" / "set")
    shutil.rmtree(tmp_path / "films")
    shutil.rmtree(tmp_path / "davis")
    data = TrainingSet(tmp_path / "new" / "set")
    assert set(data.read_masks(0, 3)) == {1, "cat"} and data.read_masks(0, 1) is None
    assert data.read_frame(0, 5).mean() == pytest.approx(50, abs=3)


def test_folders_and_lists_of_frames_are_referred_to(tmp_path):
    davis = open_source(make_davis(tmp_path / "davis"))
    coco = open_source(save_json(tmp_path / "c.json", make_coco(tmp_path, 6, ("x",))))
    folder = tmp_path / "set"
    for source in (davis, coco):
        add_to_training_set(folder, source, len(source) - 1, frames(0, 2))
    data = TrainingSet(folder)
    assert data.names == ["b", "x"] and data.frame_path(0, 2) is not None
    assert [data.read_frame(i, 2).mean() for i in (0, 1)] == pytest.approx([20, 20], abs=2)
    assert (folder / "Annotations" / "b" / "00002.png").exists()
    assert not (folder / "JPEGImages").exists()


def test_frames_that_no_file_holds_are_copied(tmp_path):
    generated = SyntheticDataset(1, 3, 32)
    masks = {o: m for o, m in generated.read_masks(0, 1).items()}
    add_to_training_set(tmp_path / "set", generated, 0, [AcceptedFrame(1, masks)])
    data = TrainingSet(tmp_path / "set")
    assert np.array_equal(data.read_frame(0, 2), generated.read_frame(0, 2))
    assert set(data.read_masks(0, 1)) == {o for o, m in masks.items() if m.any()}


def test_a_copy_of_listed_frames_is_made_once(tmp_path):
    """Image files are copied as they are, and are recognised when frames are added later."""
    content = make_coco(tmp_path, 6, ("x",))
    source, folder = open_source(save_json(tmp_path / "c.json", content)), tmp_path / "set"
    for copy, t in ((True, 0), (True, 2), (False, 3)):
        add_to_training_set(folder, source, 0, frames(t), copy=copy)
    data = TrainingSet(folder)
    assert data.names == ["x"] and list(data.annotated_frames(0)) == [0, 2, 3]
    copied = folder / "JPEGImages" / "x" / "00002.png"
    assert copied.read_bytes() == (tmp_path / "images" / "x" / "2.png").read_bytes()


def test_stacks_of_one_name_do_not_mix(tmp_path):
    """Only the frames tell stacks of equal names apart; those of a grey stack are grey."""
    folder = tmp_path / "set"
    for root, factor in (("one", 1), ("other", 2), ("one", 1)):
        pixels = stack() // factor
        pixels[:, 0, 0] = 40000  # the darker stack would otherwise be scaled to the other one
        path = save_tiff(tmp_path / root / "a.tif", pixels)
        size = pixels.shape[1:]
        accepted = AcceptedFrame(0, {1: square(0, factor, size=size)})
        add_to_training_set(folder, open_source(path), 0, [accepted])
    data = TrainingSet(folder)
    assert data.names == ["a", "a-2"]
    assert [int(np.argmax(data.read_masks(i, 0)[1][0])) for i in (0, 1)] == [1, 2]
    with Image.open(folder / "JPEGImages" / "a" / "00000.png") as image:
        assert image.mode == "L"
    assert np.array_equal(data.read_frame(0, 1), open_source(path).read_frame(0, 1))


def test_the_video_of_a_tool_is_referred_to(tmp_path):
    task = make_cvat(tmp_path / "cvat", ["a"]) / "a"
    shutil.rmtree(task / "images")
    save_video(task / "a.mp4", [10 * t for t in range(6)])
    add_to_training_set(tmp_path / "set", open_source(tmp_path / "cvat"), 0, frames(0))
    index = json.loads((tmp_path / "set" / INDEX_FILE).read_text())
    assert index["videos"]["a"]["path"] == "../cvat/a/a.mp4"


@pytest.mark.parametrize("kind", ["folder", "files"])
def test_a_link_to_another_file_is_not_copied(tmp_path, kind):
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    if kind == "folder":
        source = open_source(make_davis(tmp_path / "davis", {"a": 4}))
        frame = tmp_path / "davis" / "JPEGImages" / "a" / "00001.jpg"
    else:
        source = open_source(save_json(tmp_path / "c.json", make_coco(tmp_path, 4, ("x",))))
        frame = tmp_path / "images" / "x" / "1.png"
    assert frame.is_file()
    frame.unlink()
    frame.symlink_to(secret)
    with pytest.raises(DataError, match=frame.name):
        add_to_training_set(tmp_path / "set", source, 0, frames(0), copy=True)
    assert not any(
        b"secret" in p.read_bytes() for p in (tmp_path / "set").rglob("*") if p.is_file()
    )


def test_overlaps_and_many_objects(tmp_path, video):
    folder, source = tmp_path / "set", open_source(video)
    small, large = square(2, 2, 2), square(0, 0, 12)
    frame = AcceptedFrame(0, {1: small, 2: large})
    assert counts(add_to_training_set(folder, source, 0, [frame])) == (1, 0, 0, 1)
    masks = TrainingSet(folder).read_masks(0, 0)
    assert np.array_equal(masks[1], small) and np.array_equal(masks[2], large & ~small)
    add_to_training_set(tmp_path / "coco", source, 0, [frame], format="coco")
    assert np.array_equal(TrainingSet(tmp_path / "coco").read_masks(0, 0)[2], large)
    many = {n: np.zeros(SIZE, bool) for n in range(1, 301)}
    for n in many:
        many[n].flat[2 * n] = True
    add_to_training_set(folder, source, 0, [AcceptedFrame(1, many)])
    with Image.open(folder / "Annotations" / "a" / "00001.png") as image:
        assert image.mode == "I;16"
    masks = TrainingSet(folder).read_masks(0, 1)
    assert set(masks) == set(many) and all(np.array_equal(masks[n], many[n]) for n in many)
    assert set(TrainingSet(folder).read_masks(0, 0)) == {1, 2}  # still the same objects


def test_new_objects_do_not_change_the_identity_of_stored_ones(tmp_path, video):
    folder, source = tmp_path / "set", open_source(video)
    for n, identity in enumerate(["cat", 1, 300, 2, "1"]):
        add_to_training_set(folder, source, 0, [AcceptedFrame(n, {identity: square(n, n)})])
    data = TrainingSet(folder)
    assert [list(data.read_masks(0, n)) for n in range(5)] == [["cat"], [1], [300], [2], ["1"]]


def test_an_interruption_leaves_a_whole_set(tmp_path, video, monkeypatch):
    folder, source, write = tmp_path / "set", open_source(video), writer.write_id_mask
    add_to_training_set(folder, source, 0, frames(0))

    written = []

    def interrupted(path, ids):
        if written:  # frame 4
            raise KeyboardInterrupt
        written.append(path)
        write(path, ids)

    monkeypatch.setattr(writer, "write_id_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add_to_training_set(folder, source, 0, frames(2, 4))
    data = TrainingSet(folder)
    assert [t for t in range(6) if data.read_masks(0, t) is not None] == [0, 2]
    monkeypatch.setattr(writer, "write_id_mask", write)
    assert counts(add_to_training_set(folder, source, 0, frames(2, 4))) == (1, 0, 1, 0)
    assert set(read_provenance(folder, "a")) == {0, 2, 4}
    assert not list(folder.rglob("*.part*"))


def test_invalid_frames_and_folders_are_rejected(tmp_path, video):
    folder, source = tmp_path / "set", open_source(video)
    wrong = [
        AcceptedFrame(6, {}),
        AcceptedFrame(0, {1: np.zeros((5, 5), bool)}),
        AcceptedFrame(0, {1: square(0, 0)}, {1: "guessed"}),
    ]
    for frame in wrong:
        with pytest.raises(DataError):
            add_to_training_set(folder, source, 0, [frame])
        assert not list(folder.rglob("*.png"))
    with pytest.raises(DataError):
        add_to_training_set(folder, source, 0, frames(0, 0))
    with pytest.raises(ConfigError) as caught:
        add_to_training_set(video.parent, source, 0, frames(0))
    assert caught.value.key == "folder"
    add_to_training_set(folder, source, 0, frames(0))
    with pytest.raises(ConfigError) as caught:
        add_to_training_set(folder, source, 0, frames(0), format="coco")
    assert caught.value.key == "format"
    lock = locks.acquire(folder / writer.LOCK_FILE)
    with pytest.raises(ConfigError, match="process"):
        add_to_training_set(folder, source, 0, frames(0))
    os.close(lock)


def test_a_file_system_without_locks(tmp_path, video, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    summary = add_to_training_set(tmp_path / "set", open_source(video), 0, frames(0))
    assert summary.written == 1


@pytest.mark.parametrize("content", ["{", "[" * 10000, '{"version": 9}', '{"videos": {}}'])
def test_a_damaged_index_is_an_error(tmp_path, content):
    (tmp_path / INDEX_FILE).write_text(content)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "", ".."])
def test_a_downloaded_set_writes_nothing_elsewhere(tmp_path, video, name):
    folder, source = tmp_path / "set", open_source(video)
    add_to_training_set(folder, source, 0, frames(0))
    index = json.loads((folder / INDEX_FILE).read_text())
    index["videos"]["a"]["folder"] = name
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
        add_to_training_set(folder, source, 0, frames(2))
    assert caught.value.key == "folder"


def test_a_damaged_coco_file_is_kept(tmp_path, video):
    folder, source = tmp_path / "set", open_source(video)
    add_to_training_set(folder, source, 0, frames(0), format="coco")
    (folder / "annotations.json").write_text('{"images": [{}]}')
    with pytest.raises(DataError):
        add_to_training_set(folder, source, 0, frames(2))
    assert (folder / "annotations.json").read_text() == '{"images": [{}]}'


def test_training_recognizes_the_folder(tmp_path, video):
    folder = tmp_path / "set"
    add_to_training_set(folder, open_source(video), 0, frames(0))
    source = training_videos(DatasetConfig(type="training_set", data_path=str(folder)), seed=0)
    assert isinstance(source, TrainingSet) and isinstance(open_source(folder), TrainingSet)
    assert detect_layout(folder).type == "training_set"
    index = json.loads((folder / INDEX_FILE).read_text())
    assert index["videos"]["a"]["path"] == "../films/a.mp4"
