"""The state behind the annotator: objects, undo, ranges, files, and what a killed kernel keeps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import square
from PIL import Image

from sam2kit.data.sources.base import SelectedVideos, VideoSource
from sam2kit.data.sources.corrected import CorrectedSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.synthetic.dataset import CompositedDataset
from sam2kit.evaluation.metrics import iou
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.annotations import AnnotationStore, TrackedMask
from sam2kit.prompts.geometry import mask_center
from sam2kit.prompts.io import load_video_prompts
from sam2kit.tracking.training_set_job import make_training_set
from sam2kit.utils.errors import DataError
from sam2kit.widgets import prompt_session
from sam2kit.widgets.check_list import FrameToCheck, frames_to_check
from sam2kit.widgets.prompt_session import PromptSession

SAMPLES = Path(__file__).parents[1] / "blobs"
LENGTH = 6


class Clips(VideoSource):
    """The first frames of the sample clips, optionally without their masks."""

    def __init__(self, has_masks: bool = True, count: int = LENGTH) -> None:
        self.source, self.count, self.has_masks = VideoDataset(SAMPLES), count, has_masks
        self.names = self.source.names

    def num_frames(self, i: int) -> int:
        return self.count

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.source.read_frame(i, t)

    def read_masks(self, i: int, t: int):
        return self.source.read_masks(i, t) if self.has_masks else None


@pytest.fixture(scope="module")
def model():
    return load_model("nano")[1]


@pytest.fixture
def session(model):
    return PromptSession(Clips(), 0, model)


@pytest.fixture
def store(tmp_path):
    store = AnnotationStore(tmp_path / "annotations")
    yield store
    store.close()


@pytest.fixture
def reopen(model, store):
    """Return a function that opens the video again as a new kernel would."""

    def open_again(i: int = 0, has_masks: bool = True) -> PromptSession:
        return PromptSession(
            Clips(has_masks), i, model, store=AnnotationStore(store.folder), model_name="nano"
        )

    return open_again


def truth_center(session, o=1, t=0):
    return mask_center(Clips().read_masks(session.i, t)[o])


def png(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()


def content(session):
    """Return all that must come back, in comparable form."""
    masks = {
        (o, t): session.mask(o, t).tobytes()
        for o in session.objects
        for t in range(session.num_frames)
        if session.mask(o, t) is not None
    }
    kinds = {key: (session.provenance(*key), session.mask_model(*key)) for key in masks}
    attributes = ("objects", "names", "colors", "hidden", "accepted")
    lists = [copy(getattr(session, name)) for name in attributes]
    prompts = {k: (p.points, p.labels, p.box) for k, p in session.prompts.items()}
    tracks = dict(session.tracked), session.j, session.timeline(), session.stale
    return masks, kinds, *lists, prompts, *tracks


def test_every_change_is_on_disk_at_once(reopen, model):
    session = reopen()
    x, y = truth_center(session)
    steps = [
        lambda: session.click(1, 0, x, y),
        lambda: session.click(1, 0, 3, 3, positive=False),
        lambda: session.add_object("left / ü"),
        lambda: session.box("left / ü", 1, (5, 5, 30, 40)),
        lambda: session.click("left / ü", 1, 9, 9),
        lambda: session.choose("left / ü", 1, 1),
        lambda: session.paint(2, 2, square(3, 3, 30, session.size), "imported"),
        lambda: session.rename(2, " <b>cell</b> "),
        lambda: session.recolor(1, (255, 0, 7)),
        lambda: session.set_hidden(2, True),
        lambda: list(session.propagate()),
        lambda: session.click(1, 3, x, y),
        lambda: session.accept([0, 1]),
        lambda: session.accept([4]),
        lambda: session.unaccept([1]),
        lambda: session.delete_object(2),
        session.undo,
        session.undo,
        session.redo,
        lambda: session.clear(1, 0),
    ]
    for number, step in enumerate(steps):
        step()
        assert content(reopen()) == content(session), f"step {number}"
    assert session.names[2] == "<b>cell</b>" and session.colors == {1: (255, 0, 7)}
    assert session.provenance("left / ü", 1) == "click" and session.provenance(2, 2) == "imported"
    assert session.provenance(1, 1) == "propagated" and session.mask_model(1, 1) == "nano"
    other = reopen(1)
    assert not other.prompts and not other.accepted and other.names == {1: "1"} | other.names
    other.click(1, 0, 5, 5)
    assert content(reopen()) == content(session)  # a video does not affect another one
    assert session.store.videos() == [session.video, other.video]


def test_reopening_runs_no_model(reopen, monkeypatch):
    session = reopen()
    session.click(1, 0, *truth_center(session))
    mask = session.mask(1, 0)
    monkeypatch.setattr(PromptSession, "_predict", None)
    assert (reopen().mask(1, 0) == mask).all()


def test_accepted_frames_of_the_store(reopen, store):
    session = reopen()
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.paint(2, 3, square(3, 3, 30, session.size))
    session.accept([1, 2, 3])
    frames = {f.index: f for f in store.accepted(session.video)}
    assert frames.keys() == {1, 2, 3}
    # Of an object without another mask, the mask of the data set is accepted.
    assert frames[1].provenance == {1: "propagated", 2: "truth"} and frames[1].model == "nano"
    assert (frames[1].masks[2] == session.truth(1)[2]).all()
    assert (frames[1].masks[1] == session.mask(1, 1)).all()
    assert frames[3].provenance == {1: "propagated", 2: "painted"}
    assert [f.index for f in store.accepted(session.video, "checked")] == [3]  # it has a prompt
    session.accept([5])
    assert [f.index for f in store.accepted(session.video, "checked")] == [3, 5]
    session.unaccept([1, 3])
    assert session.mask(2, 1) is None and session.accepted == {2, 5}
    assert session.timeline()["accepted"] == [2, 5]
    session.delete_object(2)
    assert {f.index: list(f.masks) for f in store.accepted(session.video)} == {2: [1], 5: [1]}


def test_the_store_knows_where_the_video_is(model, store, tmp_path):
    session = PromptSession(VideoDataset(SAMPLES), 0, model, store=store)
    session.paint(1, 3, square(3, 3, 30, session.size))
    session.accept([3])
    assert Path(store.load(session.video).path) == SAMPLES / "JPEGImages" / session.video
    # So the command line needs nothing but the folder of annotations.
    (summary,) = make_training_set([store.folder], tmp_path / "set")
    assert summary.written == 1
    assert list(TrainingSet(tmp_path / "set").annotated_frames(0)) == [3]


def test_only_frames_with_masks_can_be_accepted(model):
    session = PromptSession(Clips(has_masks=False), 0, model)
    session.click(1, 1, 40, 40)
    list(session.propagate(end=3))
    for frames, wrong in (([1, 0, 2], [0]), ([5], [5]), ([9], [9]), ([-1], [-1])):
        with pytest.raises(DataError) as error:
            session.accept(frames)
        assert (error.value.key, error.value.value) == ("frames", wrong) and error.value.hint
    assert not session.accepted
    session.accept([1, 2])
    assert session.accepted == {1, 2} and session.can_undo


def test_undo_and_redo_cover_objects_and_accepting(session):
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    states, actions = (
        [content(session)],
        [
            lambda: session.rename(1, "bear"),
            lambda: session.recolor(1, [1, 2, 3]),
            lambda: session.click(2, 1, *truth_center(session, 2, 1)),
            lambda: session.accept([1, 2]),
            lambda: session.delete_object(1),
            lambda: session.add_object("new"),
            lambda: session.unaccept([2]),
            lambda: session.recolor(2, None),  # changes nothing, and is no step
        ],
    )
    for action in actions:
        action()
        states.append(content(session))
    assert 1 not in session.objects and not any(o == 1 for o, _ in session.tracked)
    states.pop()
    for state in states[-2::-1]:
        session.undo()
        assert content(session) == state
    for state in states[1:]:
        assert session.can_redo
        session.redo()
        assert content(session) == state
    assert not session.can_redo and session.can_undo
    session.undo()
    session.rename(2, "other")  # another edit: what was undone is gone
    assert not session.can_redo
    session.redo()
    assert session.names[2] == "other"


def test_deleting_an_object_of_the_data_set(session, tmp_path):
    session.click(2, 0, *truth_center(session, 2))
    session.click(1, 0, *truth_center(session))
    session.delete_object(2)
    assert session.objects == [1] and [o for o, _ in session.prompts] == [1]
    session.truth(3)
    session.truth(0)
    assert session.objects == [1] and session.add_object() == 3
    session.accept([0])
    assert session.provenance(2, 0) is None
    session.append(tmp_path / "c.jsonl", 0)
    corrected = CorrectedSource(session.source, tmp_path / "c.jsonl").read_masks(0, 0)
    assert (corrected[2] == session.truth(0)[2]).all()  # the data set keeps it
    assert session.add_object(2) == 2 and session.objects == [1, 3, 2]


def test_invalid_edits_of_objects_are_rejected(session):
    actions = [
        (lambda: session.rename(9, "a"), "object"),
        (lambda: session.rename(1, "  "), "name"),
        (lambda: session.recolor(1, (1, 2)), "rgb"),
        (lambda: session.recolor(1, (1, 2, 256)), "rgb"),
        (lambda: session.set_hidden("1", True), "object"),
        (lambda: session.delete_object(3), "object"),
    ]
    for action, key in actions:
        with pytest.raises(DataError) as error:
            action()
        assert error.value.key == key and error.value.hint
    assert not session.can_undo


def test_ranges_keep_the_masks_of_other_frames(session):
    session.click(1, 1, *truth_center(session, 1, 1))
    session.click(2, 3, *truth_center(session, 2, 3))
    assert session.propagation_frames() == [1, 2, 3, 4, 5]
    assert list(session.propagate()) == [1, 2, 3, 4, 5]
    before = dict(session.tracked)
    assert set(before) == {(1, t) for t in range(1, 6)} | {(2, t) for t in range(3, 6)}
    session.clear(1)
    session.box(1, 1, (2, 2, 30, 30))
    assert list(session.propagate(2, 3)) == session.propagation_frames(2, 3) == [2, 3]
    changed = {k for k in before if session.tracked[k] != before[k]}
    assert changed == {(1, 2), (1, 3)} and set(session.tracked) == set(before)
    assert session.stale  # only a part was tracked with the new prompt
    list(session.propagate(0))
    assert not session.stale
    assert all(session.score(*key) is not None for key in session.tracked)
    for arguments, key in (((3, 2), "end"), ((9,), "frames"), ((0, 1, "up"), "direction")):
        with pytest.raises(DataError) as error:
            session.propagate(*arguments)
        assert error.value.key == key and error.value.hint


def test_backward_tracking(session):
    session.click(1, 3, *truth_center(session, 1, 3))
    session.click(2, 5, *truth_center(session, 2, 5))
    assert list(session.propagate(direction="backward")) == [5, 4, 3, 2, 1, 0]
    # An object is tracked backward from its last prompt on.
    assert set(session.tracked) == {(1, t) for t in range(4)} | {(2, t) for t in range(6)}
    assert session.j[1, 0] > 0.5 and session.j[2, 0] > 0.5
    assert list(session.propagate(2, 4, "backward")) == [4, 3, 2]
    backward = dict(session.tracked)
    assert list(session.propagate()) == [3, 4, 5]  # forward keeps what was tracked backward
    assert {k: v for k, v in session.tracked.items() if k[1] < 3} == {
        k: v for k, v in backward.items() if k[1] < 3
    }
    assert (1, 5) in session.tracked
    session.clear(1)
    list(session.propagate())
    assert {o for o, _ in session.tracked} == {2}  # no prompt, so no mask
    session.clear()
    session.click(2, 0, *truth_center(session, 2))
    assert list(session.propagate(direction="backward")) == []


def test_both_directions_measure_their_disagreement(model):
    session = PromptSession(Clips(), 0, model)
    session.click(1, 0, *truth_center(session))
    session.click(1, 5, *truth_center(session, 1, 5))
    list(session.propagate())
    forward = dict(session.tracked)
    list(session.propagate(direction="backward"))
    backward = dict(session.tracked)
    expected = session.propagation_frames(direction="both")
    assert list(session.propagate(direction="both")) == expected == [*range(6), *range(5, -1, -1)]
    # The nearer prompt decides: frame 0 for frames 1 and 2, frame 5 for frames 3 and 4.
    assert [session.tracked[1, t] for t in (1, 2)] == [forward[1, t] for t in (1, 2)]
    assert [session.tracked[1, t] for t in (3, 4)] == [backward[1, t] for t in (3, 4)]
    for t in range(1, 5):
        masks = [prompt_session.decode_mask(runs[1, t]) for runs in (forward, backward)]
        assert session.disagreement(1, t) == pytest.approx(1 - iou(*masks), abs=1e-3)
    list(session.propagate())
    assert session.disagreement(1, 2) is None


def test_accepted_masks_do_not_change(session):
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.accept([2])
    before = dict(session.tracked)
    session.clear()
    session.box(1, 0, (1, 1, 40, 40))
    list(session.propagate(direction="both"))
    list(session.propagate())
    changed = {key for key in before if session.tracked[key] != before[key]}
    assert (1, 2) not in changed and {(1, 1), (1, 3)} <= changed
    session.unaccept([2])
    list(session.propagate())
    assert session.tracked[1, 2] != before[1, 2]


def test_a_stopped_propagation_keeps_old_and_new_masks(reopen):
    session = reopen()
    session.click(1, 1, *truth_center(session, 1, 1))
    list(session.propagate())
    before = dict(session.tracked)
    session.clear()
    session.box(1, 1, (1, 1, 60, 60))
    frames = session.propagate()
    assert [next(frames) for _ in range(2)] == [1, 2]
    frames.close()
    changed = {k for k in before if session.tracked[k] != before[k]}
    assert changed == {(1, 1), (1, 2)} and set(session.tracked) == set(before)
    assert dict(reopen().tracked) == dict(session.tracked)


def test_edits_during_a_propagation(reopen):
    session = reopen()
    session.click(1, 0, *truth_center(session))
    session.click(2, 0, *truth_center(session, 2))
    for t in session.propagate():
        if t == 1:
            session.delete_object(1)
        if t == 2:
            session.paint(2, 4, square(0, 0, 9, session.size))
        if t == 3:
            session.accept([0])
    assert {o for o, _ in session.tracked} == {2} and len(session.tracked) == LENGTH
    assert session.stale  # the painted mask was not tracked
    session.undo()
    session.undo()
    session.undo()
    assert session.objects == [1, 2]
    assert (1, 0) in session.tracked and (1, 5) not in session.tracked
    assert content(reopen()) == content(session)


KILLED = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from test_prompt_session import *
from sam2kit.widgets import prompt_session
prompt_session.SAVE_SECONDS = 0
session = PromptSession(
    Clips(), 0, load_model("nano")[1], store=AnnotationStore(sys.argv[1]), model_name="nano"
)
session.click(1, 0, *truth_center(session))
session.rename(1, "bear")
for t in session.propagate():
    print(t, flush=True)
    if t == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_kernel_loses_only_the_last_action(tmp_path, reopen, session):
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path += {paths}\n{KILLED}",
            tmp_path / "annotations",
        ],
        capture_output=True,
        text=True,
    )
    assert process.stdout.split() == ["0", "1", "2", "3"], process.stderr
    again = reopen()
    assert again.names[1] == "bear" and list(again.prompts) == [(1, 0)]
    assert set(again.tracked) >= {(1, 0), (1, 1), (1, 2)}
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    assert all(again.tracked[key] == session.tracked[key] for key in again.tracked)
    list(again.propagate())  # the lock of the killed process is free
    assert dict(again.tracked) == dict(session.tracked)


def test_another_video_of_the_same_name_is_noticed(reopen, store, model):
    reopen().click(1, 0, 5, 5)
    with pytest.raises(DataError, match=f"{LENGTH} frames .* 2 frames") as error:
        PromptSession(Clips(count=2), 0, model, store=store)
    assert error.value.hint
    other = SelectedVideos(Clips(), [1])
    other.name = lambda i: Clips().names[0]
    with pytest.raises(DataError, match="other pixels") as error:
        PromptSession(other, 0, model, store=store)
    assert error.value.hint
    slightly = Clips()
    slightly.read_frame = lambda i, t: Clips().read_frame(i, t) // 2 * 2  # another decoder
    assert list(PromptSession(slightly, 0, model, store=store).prompts) == [(1, 0)]


def test_prompt_files_keep_several_videos(session, model, tmp_path):
    path = tmp_path / "new" / "prompts.json"
    session.click(1, 0, *truth_center(session))
    session.save(path)
    document = json.loads(path.read_text())
    assert document["version"] == 1 and document["image_size"] == list(session.size)
    second = PromptSession(Clips(), 1, model)
    second.box(1, 2, (3, 3, 50, 50))
    second.save(path)
    session.click(1, 0, 3, 3, positive=False)
    session.paint(2, 1, square(5, 5, 20, session.size))
    session.save(path)
    entries = json.loads(path.read_text())["prompts"]
    assert [e["video"] for e in entries] == [second.video, session.video, session.video]
    again = PromptSession(Clips(), 0, model)
    again.click(2, 4, 9, 9)
    again.load(path)
    assert {k: (p.points, p.labels) for k, p in again.prompts.items()} == {
        (1, 0): (session.prompts[1, 0].points, (1, 0)),
        (2, 1): ((), ()),
    }
    assert (again.mask(1, 0) == session.mask(1, 0)).all()
    assert (again.mask(2, 1) == session.mask(2, 1)).all()
    assert again.provenance(2, 1) == "imported" and again.provenance(1, 0) == "click"
    again.undo()
    assert list(again.prompts) == [(2, 4)]
    third = PromptSession(Clips(), 2, model)
    with pytest.raises(DataError, match="video"):
        third.load(path)
    path.write_text("{}")
    with pytest.raises(DataError, match="version"):
        session.save(path)  # something else is not replaced
    assert path.read_text() == "{}"


def test_prompt_files_keep_videos_of_different_sizes(session, tmp_path):
    path = tmp_path / "prompts.json"
    entry = {"video": "other", "object_id": 1, "frame_index": 0, "kind": "box", "box": [1, 2, 9, 9]}
    document = {"version": 1, "image_size": [10, 20], "prompts": [entry]}
    path.write_text(json.dumps(document))
    session.box(1, 0, (10, 10, 100, 100))
    session.save(path)
    saved = json.loads(path.read_text())
    assert saved["version"] == 2
    assert saved["image_sizes"] == {"other": [10, 20], session.video: list(session.size)}
    read = [
        load_video_prompts(path, "other", 1, 40),
        load_video_prompts(path, session.video, 1, 40),
    ]
    (other,), (this,) = (prompts for prompts, _ in read)
    scale = torch.tensor([2.0, 4.0])
    assert torch.allclose(other.points, (torch.tensor([[[1.0, 2], [9, 9]]]) + 0.5) * scale - 0.5)
    height, width = session.size
    scale = torch.tensor([40 / width, 40 / height])
    expected = (torch.tensor([[[10.0, 10], [100, 100]]]) + 0.5) * scale - 0.5
    assert torch.allclose(this.points, expected)
    session.save(path)
    assert json.loads(path.read_text()) == saved
    saved["image_sizes"]["other"] = [10]
    path.write_text(json.dumps(saved))
    with pytest.raises(DataError, match="other"):
        load_video_prompts(path, "other", 1, 40)


def test_prompts_of_another_size_are_scaled(session, tmp_path):
    path, (height, width) = tmp_path / "prompts.json", session.size
    entry = {"video": session.video, "object_id": 1, "frame_index": 0}
    box = entry | {"kind": "box", "box": [5, 10, 40, 50]}
    click = entry | {"kind": "point", "points": [[10, 20]], "labels": [1]}
    document = {"version": 1, "image_size": [height // 2, width // 2], "prompts": [box, click]}
    path.write_text(json.dumps(document))
    session.load(path)
    prompt = session.prompts[1, 0]
    assert prompt.box == (10, 20, 80, 100) and prompt.points == ((20, 40),)
    # Rows and columns in the wrong order are noticed, at any scale.
    for factor in (1, 2):
        document["image_size"] = [width // factor, height // factor]
        path.write_text(json.dumps(document))
        with pytest.raises(DataError, match="swapped") as error:
            session.load(path)
        assert error.value.key == "image_size" and error.value.value == document["image_size"]
        with pytest.raises(DataError, match="swapped"):
            load_video_prompts(path, session.video, 6, 128, session.size)
        load_video_prompts(path, session.video, 6, 128)  # the size of the frames is unknown
    document["image_size"] = [128, 128]  # the model's square is no mistake
    path.write_text(json.dumps(document))
    session.load(path)
    assert session.prompts[1, 0].points == ((round(10.5 * width / 128 - 0.5), 20),)


@pytest.mark.parametrize("kind", ["palette", "gray", "uint16", "tiff", "rgb", "file"])
def test_label_images(session, tmp_path, kind):
    labels = np.zeros(session.size, np.uint8)
    labels[5:20, 5:30], labels[60:80, 90:120], labels[100:110, 10:50] = 1, 7, 250
    file: Path | bytes = png(labels)
    if kind == "palette":
        image = Image.fromarray(labels)
        image.putpalette([0] * 768)  # the colours do not matter
        with io.BytesIO() as stream:
            image.save(stream, "PNG")
            file = stream.getvalue()
    elif kind == "uint16":
        file = png(labels.astype(np.uint16) * 257)
    elif kind == "tiff":
        file = tmp_path / "labels.tif"
        Image.fromarray(labels.astype(np.int32)).save(file)
    elif kind == "rgb":
        file = png(np.repeat(labels[..., None], 3, 2))
    elif kind == "file":
        file = tmp_path / "labels.png"
        file.write_bytes(png(labels))
    factor = 257 if kind == "uint16" else 1
    objects = session.add_label_image(1, file)
    assert objects == [1 * factor, 7 * factor, 250 * factor]
    for o in objects:
        assert (
            session.mask(o, 1) == (labels * factor == o if factor == 1 else labels == o // 257)
        ).all()
        assert session.provenance(o, 1) == "imported"
    session.undo()
    assert not session.prompts and session.objects == [1, 2]
    assert session.add_label_image(1, file, "cell")[1] == f"cell {7 * factor}"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((128, 160), np.uint8), "pixels are 0"),
        (np.ones((160, 128), np.uint8), "160 rows"),
        (np.arange(128 * 160 * 3, dtype=np.uint8).reshape(128, 160, 3), "3 channels"),
        (np.arange(128 * 160, dtype=np.uint16).reshape(128, 160), "up to 2000"),
    ],
)
def test_label_images_that_cannot_be_used(session, labels, message):
    with pytest.raises(DataError, match=message) as error:
        session.add_label_image(0, png(labels))
    assert error.value.key == "file" and error.value.hint
    with pytest.raises(DataError, match="cannot be read"):
        session.add_label_image(0, b"no image")
    assert not session.can_undo


def test_sixty_objects_of_a_label_image_are_tracked(reopen):
    session = reopen(has_masks=False)
    labels = np.zeros(session.size, np.uint8)
    for n in range(60):
        row, column = divmod(n, 10)
        labels[20 * row + 4 : 20 * row + 16, 16 * column + 3 : 16 * column + 13] = n + 1
    assert len(session.add_label_image(0, png(labels), "cell")) == 60
    assert list(session.propagate(0, 1)) == [0, 1]
    again = reopen(has_masks=False)
    assert len(again.prompts) == 60 and len(again.tracked) == 120
    assert again.objects == [f"cell {n + 1}" for n in range(60)]


def test_automatic_masks(model):
    session = PromptSession(Clips(), 0, model, model_name="nano")
    session.paint(1, 0, session.truth(0)[1])
    shares = list(session.propose_masks(0))
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
    proposals = session.proposals
    # The second object is found, and the first one is not proposed again.
    assert max(iou(p.mask, session.truth(0)[2]) for p in proposals) > 0.7
    assert all((p.mask & session.mask(1, 0)).sum() <= 0.5 * p.mask.sum() for p in proposals)
    assert not any(
        (p.mask & q.mask).sum() > 0.5 * min(p.mask.sum(), q.mask.sum())
        for p in proposals
        for q in proposals
        if p is not q
    )
    assert [p.score for p in proposals] == sorted((p.score for p in proposals), reverse=True)
    with pytest.raises(DataError) as error:
        session.accept_proposals([len(proposals)])
    assert error.value.key == "indices"
    objects = session.accept_proposals([0])
    assert objects == [3] and (session.mask(3, 0) == proposals[0].mask).all()
    assert session.provenance(3, 0) == "automatic" and session.proposals == proposals[1:]
    session.discard_proposals()
    assert session.proposals == [] and session.accept_proposals() == []
    session.undo()
    assert session.objects == [1, 2]
    assert [*session.propose_masks(0, points_per_side=2, min_iou=1.0)][-1] == 1
    assert session.proposals == []


def test_timeline(session):
    session.click(1, 1, *truth_center(session, 1, 1))
    list(session.propagate(end=4))
    session.click(1, 3, 5, 5, positive=True)
    session.accept([2])
    assert session.timeline() == {
        "prompted": [1, 3],
        "corrected": [3],
        "tracked": [1, 2, 3, 4],
        "accepted": [2],
        "annotated": list(range(LENGTH)),
    }


def test_timeline_reads_no_masks_that_have_files(model):
    session = PromptSession(VideoDataset(SAMPLES), 0, model)
    session.source.read_masks = None
    assert session.timeline()["annotated"] == list(range(session.num_frames))


def test_frames_to_check(session):
    size = (40, 40)

    def track(side, score=9.0, disagreement=None, row=0):
        counts = prompt_session.encode_mask(square(row, 0, side, size))["counts"]
        return TrackedMask(counts, score, disagreement=disagreement)

    tracks = {(1, t): track(10) for t in range(300)}  # pycocotools fails for lists above 255
    tracks[1, 8] = track(10, score=0.2)
    tracks[1, 9] = track(10, score=0.5)  # next to a worse one
    tracks[1, 20] = track(20)
    tracks[1, 30] = track(10, disagreement=0.6)
    tracks |= {
        (2, 0): track(10, row=25),
        (2, 1): track(0, score=-8.0),
        (2, 2): track(0, score=-9.0),
    }
    listed = frames_to_check(tracks, {}, size, 20)
    assert [(f.object, f.frame) for f in listed] == [(1, 8), (2, 1), (1, 20), (1, 30)]
    assert isinstance(listed[0], FrameToCheck)
    assert [round(f.severity, 2) for f in listed] == [0.9, 0.9, 0.68, 0.6]
    for suspect, word in zip(listed, ["score", "disappears", "+300%", "backward"], strict=True):
        assert word in suspect.reason
    assert [f.frame for f in frames_to_check(tracks, {(1, 8): 0, (1, 20): 0}, size, 2)] == [1, 9]
    assert frames_to_check({}, {}, size, 20) == [] == session.frames_to_check()


def test_objects_with_almost_the_same_mask_are_to_be_checked():
    """A tracker that moves to a neighbour is as sure of it as before."""
    size = (40, 40)

    def track(row, side):
        counts = prompt_session.encode_mask(square(row, 0, side, size))["counts"]
        return TrackedMask(counts, 9.0, disagreement=None)

    tracks = {(o, t): track(20 * (o - 1), 10) for o in (1, 2) for t in range(4)}
    assert frames_to_check(tracks, {}, size, 20) == []
    tracks |= {(2, t): track(0, 10) for t in (2, 3)}
    (listed,) = frames_to_check(tracks, {}, size, 20, {1: "left <cell>"})
    assert (listed.object, listed.frame) == (2, 2) and listed.severity == 1
    assert "left <cell>" in listed.reason
    assert [f.frame for f in frames_to_check(tracks, {(2, 2): None}, size, 20)] == [3]
    many = {(o, 0): track(0, 10 if o % 300 else 11) for o in range(300)}
    assert len(frames_to_check(many, {}, size, 1000)) == 299


def test_accepted_and_prompted_frames_need_no_check(session, monkeypatch):
    monkeypatch.setattr("sam2kit.widgets.check_list.MIN_SEVERITY", 0.0)
    monkeypatch.setattr("sam2kit.widgets.check_list.NEIGHBORHOOD", 0)
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.accept([2, 3])
    assert {f.frame for f in session.frames_to_check()} == {1, 4, 5}
    assert len(session.frames_to_check(limit=2)) == 2


def test_generated_objects_are_not_annotations(model, tmp_path):
    raw = Clips(has_masks=False)
    for source in (
        CompositedDataset(raw),
        SelectedVideos(CompositedDataset(raw), [2, 0]),
    ):
        session = PromptSession(source, 1, model)
        assert session.video == source.name(1) == raw.names[session.i]
        assert session.objects == [] and session.truth(0) is None
        assert (session.frame(1) == raw.read_frame(session.i, 1)).all()
        session.click(1, 0, 9, 9)
        session.append(tmp_path / "c.jsonl", 0)
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [[o["id"] for o in line["objects"]] for line in lines] == [[1], [1]]
