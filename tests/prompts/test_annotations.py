"""Annotations on disk: several videos, hostile names, killed writers, two writers."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SIZE, square

from sam2kit.data.rle import encode_mask
from sam2kit.prompts import annotations
from sam2kit.prompts.annotations import (
    AnnotationStore,
    StoredObject,
    StoredPrompt,
    TrackedMask,
    VideoState,
)
from sam2kit.utils.errors import DataError

HOSTILE = ["a/b", "../../a", "..", "", "A", "a", "ü\udcff", "a\n", "CON", "/etc"]
HOSTILE += ["x" * 5000, "日" * 99]


@pytest.fixture
def store(tmp_path):
    store = AnnotationStore(tmp_path / "annotations")
    yield store
    store.close()


def counts(mask: np.ndarray) -> str:
    return encode_mask(mask)["counts"]


def state(video: str = "a", **fields) -> VideoState:
    return VideoState(video, SIZE, 6, **fields)


def run(code: str, folder: Path, **options) -> subprocess.Popen:
    """Run code in another process, with a store of the folder; it prints lines to wait for."""
    start = "import sys\nfrom sam2kit.prompts.annotations import *\n"
    start += "store = AnnotationStore(sys.argv[1])\n"
    return subprocess.Popen(
        [sys.executable, "-c", start + code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_names_of_videos_are_safe_and_distinct(store):
    for number, name in enumerate(HOSTILE):
        store.save(name, state(name, objects=[StoredObject(number)]))
        store.save_tracked(name, {0: [(number, TrackedMask(counts(square(0, 0))))]})
    assert store.videos() == sorted(HOSTILE)
    reader = AnnotationStore(store.folder)
    for number, name in enumerate(HOSTILE):
        assert reader.load(name).video == name
        assert [entry.id for entry in reader.load(name).objects] == [number]
        assert list(reader.load_tracked(name)) == [(number, 0)]
    paths = list(store.folder.iterdir())
    assert len(paths) == 2 * len(HOSTILE) + 1
    assert all(len(p.name) < 120 and p.name.isascii() and p.name != ".." for p in paths)
    # Names that differ only in case are different files where the file system ignores case.
    assert len({p.name.lower() for p in paths}) == len(paths)


def test_everything_comes_back(store):
    objects = [StoredObject(1, "left", (1, 2, 3), hidden=True), StoredObject("1", deleted=True)]
    prompts = [
        StoredPrompt(1, 2, "click", [(3, 4)], [1], (1, 2, 3, 4), result="x", model="m"),
        StoredPrompt("1", 0, "painted", mask=counts(square(1, 1)), correction=True),
    ]
    saved = state(objects=objects, prompts=prompts, accepted=[1, 2], checked=[2], stale=True)
    store.save("a", saved)
    loaded = AnnotationStore(store.folder).load("a")
    assert loaded == saved and loaded.revision == 1 and store.load("b") is None
    tracked = TrackedMask(counts(square(2, 2)), -1.5, "m", disagreement=0.25, backward=True)
    store.save_tracked("a", {3: [(1, tracked), ("1", tracked)]})
    assert store.load_tracked("a") == {(1, 3): tracked, ("1", 3): tracked}
    assert store.load_tracked("b") == {}
    (store.folder / "other.json").write_text("not of the store")
    assert store.videos() == ["a"]
    assert AnnotationStore(store.folder / "missing").videos() == []


def test_the_last_line_of_a_frame_applies(store):
    masks = [TrackedMask(counts(square(n, n))) for n in range(3)]
    store.save_tracked("a", {0: [(1, masks[0])], 1: [(1, masks[0]), (2, masks[0])]})
    store.save_tracked("a", {1: [(1, masks[1])], 2: [(1, masks[2])]})
    expected = {(1, 0): masks[0], (1, 1): masks[1], (1, 2): masks[2]}
    assert store.load_tracked("a") == expected
    store.save_tracked("a", {2: []})
    assert list(store.load_tracked("a")) == [(1, 0), (1, 1)]
    store.save_tracked("a", {5: [(1, masks[2])]}, replace=True)
    assert store.load_tracked("a") == {(1, 5): masks[2]}


def test_outdated_lines_do_not_accumulate(store):
    masks = [TrackedMask(counts(square(n, n))) for n in range(3)]
    for number in range(700):
        store.save_tracked("a", {number % 100: [(1, masks[number % 3])]})
        if number == 400:
            store = AnnotationStore(store.folder)
    (path,) = store.folder.glob("*.jsonl")
    assert len(path.read_text().splitlines()) < 320
    expected = {(1, t): masks[(600 + t) % 3] for t in range(100)}
    assert store.load_tracked("a") == expected


def test_saving_does_not_read_the_file_again_and_again(store, monkeypatch):
    reads = []
    read = AnnotationStore._read_lines
    monkeypatch.setattr(
        AnnotationStore, "_read_lines", lambda self, video: reads.append(video) or read(self, video)
    )
    mask = TrackedMask(counts(square(1, 1)))
    for t in range(0, 3000, 10):
        store.save_tracked("a", {t + n: [(1, mask)] for n in range(10)})
    assert len(reads) == 2  # at 510 and 2050 lines
    assert len(store.load_tracked("a")) == 3000


def test_accepted_frames(store):
    first, second = square(0, 0), square(9, 9)
    prompts = [
        StoredPrompt(1, 0, "click", [(1, 1)], [1], result=counts(first), model="m"),
        StoredPrompt(2, 2, "painted", mask=counts(second)),
        StoredPrompt(9, 0, "painted", mask=counts(second)),
    ]
    objects = [StoredObject(1), StoredObject(2), StoredObject(9, deleted=True)]
    store.save("a", state(objects=objects, prompts=prompts, accepted=[0, 2, 3, 4], checked=[0, 2]))
    tracked = TrackedMask(counts(first), 2.0, "n")
    store.save_tracked("a", {t: [(1, tracked), (2, tracked)] for t in range(6)})
    frames = list(store.accepted("a"))
    assert [f.index for f in frames] == [0, 2, 3, 4]
    assert frames[0].provenance == {1: "click", 2: "propagated"} and frames[0].model == "m, n"
    assert frames[1].provenance == {1: "propagated", 2: "painted"} and frames[1].model == "n"
    assert (frames[1].masks[2] == second).all() and (frames[1].masks[1] == first).all()
    assert frames[0].masks[1].dtype == bool
    assert [f.index for f in store.accepted("a", "checked")] == [0, 2]
    assert [f.index for f in store.accepted("a", "all")] == [0, 1, 2, 3, 4, 5]
    assert [f.index for f in store.accepted("a", every=2)] == [0, 3]
    for arguments, key in ((("a", "some"), "which"), (("a", "all", 0), "every"), (("b",), "video")):
        with pytest.raises(DataError) as error:
            store.accepted(*arguments)
        assert error.value.key == key and error.value.hint


def test_damaged_files_are_named(store):
    store.save("a", state(accepted=[1]))
    store.save_tracked("a", {1: [(1, TrackedMask("zz"))], 2: [(1, TrackedMask("zz"))]})
    path, masks = sorted(store.folder.glob("a-*"))
    good = path.read_text()
    for text in (
        "",
        "{",
        "[" * 99_999,
        good[:-9],
        good.replace('"version":1', '"version":9'),
        "[]",
    ):
        path.write_text(text)
        for read in (lambda: store.load("a"), store.videos, lambda: store.save("a", state())):
            with pytest.raises(DataError, match=path.name) as error:
                read()
            assert error.value.hint
        assert path.read_text() == text  # a damaged file is not replaced
    for change, message in (
        ({"accepted": ["1"]}, "accepted"),
        ({"accepted": [6]}, "from 0 to 5"),
        ({"num_frames": 0}, "1 or more"),
        ({"objects": [{"id": 1}, {"id": 1}]}, "twice"),
        ({"objects": [{"id": 1, "color": [1, 2, 256]}]}, "color"),
        ({"prompts": [{"object": 1, "frame": 0}]}, "not listed"),
        ({"objects": [{"id": 1}], "prompts": [{"object": 1, "frame": -1}]}, "frame"),
    ):
        path.write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(DataError, match=message):
            store.load("a")
    prompt = {"object": 1, "frame": 0}
    for fields in ({"points": [[32, 0]], "labels": [1]}, {"points": [[1, 1]], "labels": [2]}):
        changed = {"objects": [{"id": 1}], "prompts": [prompt | fields]}
        path.write_text(json.dumps(json.loads(good) | changed))
        with pytest.raises(DataError, match="point"):
            store.load("a")
    path.write_text(good)
    lines = masks.read_text()
    masks.write_text("{}\n" + lines)
    with pytest.raises(DataError, match=f"{masks.name}: line 1"):
        store.load_tracked("a")
    masks.write_text(lines)
    store.save("a", state(revision=1, objects=[StoredObject(1)], accepted=[1]))
    with pytest.raises(DataError, match="object 1 on frame 1"):
        list(store.accepted("a"))


def test_a_cut_line_is_dropped_and_replaced(store):
    masks = [TrackedMask(counts(square(n, n))) for n in range(3)]
    store.save_tracked("a", {0: [(1, masks[0])]})
    (path,) = store.folder.glob("*.jsonl")
    first = path.read_text()
    for length in (1, 20, len(first) - 1):
        path.write_text(first + first[:length])
        reopened = AnnotationStore(store.folder)
        assert reopened.load_tracked("a") == {(1, 0): masks[0]}
        reopened.save_tracked("a", {1: [(1, masks[1])]})
        assert reopened.load_tracked("a") == {(1, 0): masks[0], (1, 1): masks[1]}


def test_a_full_disk_leaves_no_half_line(store, monkeypatch):
    masks = [TrackedMask(counts(square(n, n))) for n in range(3)]
    store.save_tracked("a", {0: [(1, masks[0])]})
    opened = annotations.open_to_append

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, text):
            self.file.write(text[:20])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(annotations, "open_to_append", lambda path: Full(opened(path)))
    with pytest.raises(DataError, match="No space left"):
        store.save_tracked("a", {1: [(1, masks[1])]})
    monkeypatch.setattr(annotations, "open_to_append", opened)
    store.save_tracked("a", {2: [(1, masks[2])]})
    assert store.load_tracked("a") == {(1, 0): masks[0], (1, 2): masks[2]}


def test_a_second_process_is_told_who_writes(store, monkeypatch):
    code = "store.acquire(); print('ready', flush=True); sys.stdin.read()"
    owner = run(code, store.folder, stdin=subprocess.PIPE)
    assert owner.stdout.readline() == "ready\n"
    monkeypatch.setattr(annotations.locks, "WAIT_FOR_LIVING", 0)
    for write in (lambda: store.save("a", state()), lambda: store.save_tracked("a", {})):
        with pytest.raises(DataError, match=f"process {owner.pid} on") as error:
            write()
        assert error.value.hint
    assert store.videos() == [] and store.load("a") is None  # reading is always allowed
    owner.kill()
    owner.communicate()
    store.save("a", state())  # the lock of a dead process is released
    second = run("store.acquire()", store.folder)
    assert f"process {os.getpid()} on" in second.communicate()[1]
    store.close()
    assert run("store.acquire()", store.folder).wait() == 0


def test_file_systems_without_locks(store, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(annotations.locks.fcntl, "flock", flock)
    store.save("a", state())
    assert store.videos() == ["a"]


def test_two_widgets_of_one_process_do_not_overwrite_each_other(store):
    first, other = state(), AnnotationStore(store.folder)
    store.save("a", first)
    second = other.load("a")
    second.accepted = [3]
    other.save("a", second)
    with pytest.raises(DataError, match="open the video again"):
        store.save("a", first)
    with pytest.raises(DataError, match="open the video again"):
        AnnotationStore(store.folder).save("a", state())
    assert store.load("a").accepted == [3]
    store.save("a", store.load("a"))


WRITER = """
mask = TrackedMask("0" * 2000)
state = store.load("a") or VideoState("a", (24, 32), 10**6)
while True:
    n = state.revision + 1
    state.accepted = [n] * 3000
    store.save_tracked("a", {n % 500: [(1, mask)] * 20, n % 500 + 500: []})
    store.save("a", state)
    print(n, flush=True)
"""


def test_a_process_killed_while_writing_loses_only_the_last_action(store):
    done = 0
    for attempt in range(4):
        writer = run(WRITER, store.folder)
        assert writer.stdout.readline()
        time.sleep(0.05 + 0.037 * attempt)
        writer.send_signal(signal.SIGKILL)
        done = int(writer.communicate()[0].split()[-1]) if attempt else done
        loaded = AnnotationStore(store.folder).load("a")
        assert loaded.revision >= done
        assert loaded.accepted == [loaded.revision] * 3000
        tracked = AnnotationStore(store.folder).load_tracked("a")
        assert {t for _, t in tracked} >= {n % 500 for n in range(1, done + 1)}


def test_reading_loads_no_torch(tmp_path):
    code = "list(store.videos()); assert 'torch' not in sys.modules"
    process = run(code, tmp_path)
    assert process.wait() == 0, process.stderr.read()


def test_saved_files_are_small_and_fast(store):
    """60 painted objects and 300 frames of 60 tracked masks."""
    mask = counts(square(0, 0))
    objects = [StoredObject(n) for n in range(60)]
    prompts = [StoredPrompt(n, 0, "painted", mask=mask) for n in range(60)]
    saved = state(objects=objects, prompts=prompts, accepted=list(range(300)))
    start = time.perf_counter()
    for _ in range(5):
        store.save("a", saved)
    assert (time.perf_counter() - start) / 5 < 0.2
    store.save_tracked("a", {t: [(n, TrackedMask(mask)) for n in range(60)] for t in range(300)})
    path, lines = sorted(store.folder.glob("a-*"))
    assert path.stat().st_size < 20_000 and lines.stat().st_size < 1_500_000
    assert len(json.loads(path.read_text())["objects"]) == 60
