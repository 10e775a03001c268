"""The state behind the annotator: objects, undo, ranges, files, and what a killed kernel keeps."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import make_coco, save_json, square
from PIL import Image
from session_helpers import LENGTH, SAMPLES, Clips, content, png, truth_center

from sam2kit.data.build import open_source
from sam2kit.data.sources.base import SelectedVideos
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.corrected import CorrectedSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.synthetic.dataset import CompositedDataset
from sam2kit.prompts.io import load_video_prompts
from sam2kit.tracking.training_set_job import make_training_set
from sam2kit.utils.errors import DataError
from sam2kit.widgets.predictor import MaskPredictor
from sam2kit.widgets.prompt_session import PromptSession


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
    monkeypatch.setattr(MaskPredictor, "predict", None)
    assert (reopen().mask(1, 0) == mask).all()


def test_accepted_frames_of_the_store(reopen, store):
    session = reopen()
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.paint(2, 3, square(3, 3, 30, session.size))
    session.accept([1, 2, 3])
    frames = {f.index: f for f in store.accepted(session.video)}
    assert frames.keys() == {1, 2, 3}
    # Of an object without another mask, the mask of the dataset is accepted.
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
    assert (corrected[2] == session.truth(0)[2]).all()  # the dataset keeps it
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


KILLED = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
from session_helpers import Clips, truth_center
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.widgets import prompt_session
prompt_session.SAVE_SECONDS = 0
session = prompt_session.PromptSession(
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


@pytest.mark.parametrize("kind", ["files", "json"])
def test_timeline_reads_no_masks(model, tmp_path, kind):
    source = VideoDataset(SAMPLES)
    if kind == "json":
        source = COCODataset(save_json(tmp_path / "coco.json", make_coco(tmp_path)))
    session = PromptSession(source, 0, model)
    session.source.read_masks = None
    assert session.timeline()["annotated"] == list(range(session.num_frames))


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


def test_box_replaces_clicks_and_later_clicks_are_added(session):
    session.click(1, 0, 3, 3)
    x, y = truth_center(session)
    session.box(1, 0, (x + 20, y + 15, x - 20, y - 15))  # any two opposite corners
    assert session.prompts[1, 0].box == (x - 20, y - 15, x + 20, y + 15)
    assert session.prompts[1, 0].points == ()
    box_mask = session.mask(1, 0)
    session.click(1, 0, 1, 1, positive=False)
    prompt = session.prompts[1, 0]
    assert prompt.box is not None and prompt.points == ((1, 1),)
    assert prompt.mask is None and len(session.prediction(1, 0).ious) == 3 and box_mask.any()


def test_undo_reverts_one_edit_at_a_time(session):
    session.undo()
    session.click(1, 0, *truth_center(session))
    first_mask = session.mask(1, 0)
    session.click(1, 0, 1, 1, positive=False)
    session.clear()
    assert not session.prompts and session.mask(1, 0) is None
    session.undo()
    assert session.prompts[1, 0].labels == (1, 0)
    session.undo()
    assert (session.mask(1, 0) == first_mask).all()
    session.undo()
    assert not session.prompts
    session.click(1, 0, 5, 5)
    session.click(2, 0, 6, 6)
    session.click(1, 2, 7, 7)
    session.clear(1, 0)
    assert list(session.prompts) == [(2, 0), (1, 2)]


def test_history_and_cached_predictions_are_limited(session, monkeypatch):
    monkeypatch.setattr("sam2kit.widgets.prompt_session.UNDO_STEPS", 3)
    for n in range(5):
        session.click(1, 0, 5 + n, 6)
    for _ in range(9):
        session.undo()
    assert len(session.prompts[1, 0].points) == 2
    session.click(2, 0, 3, 3)
    session.click(2, 1, 3, 3)
    assert len(session._predictions) == 1 and session.mask(1, 0) is not None  # predicted again


def test_painted_masks_are_exact_and_invalid_input_is_rejected(session):
    mask = session.truth(1)[2]
    session.paint(2, 1, mask)
    assert (session.mask(2, 1) == mask).all() and session.j_of(2, 1, mask) == 1
    with pytest.raises(DataError, match="mask is empty"):
        session.paint(2, 1, mask & False)
    with pytest.raises(DataError) as error:
        session.paint(2, 1, mask[:9])
    assert (error.value.key, error.value.value) == ("mask.shape", (9, 160))
    with pytest.raises(DataError, match="160 x 128") as error:
        session.click(1, 0, 160, 0)
    assert (error.value.key, error.value.value) == ("point", (160, 0))
    with pytest.raises(DataError) as error:
        session.choose(2, 1, 0)
    assert (error.value.key, error.value.value) == ("candidate", 0)
    assert list(session.prompts) == [(2, 1)]


def test_append_writes_a_correction_for_the_dataset(session, tmp_path):
    path = tmp_path / "corrections.jsonl"
    with pytest.raises(DataError, match="no object .* on frame 2"):
        session.append(path, 2)
    session.click(1, 2, *truth_center(session, 1, 2))
    assert session.append(path, 2) == [1]
    masks = CorrectedSource(open_source(session.source), path).read_masks(0, 2)
    assert (masks[1] == session.mask(1, 2)).all()
    assert (masks[2] == session.truth(2)[2]).all()  # not prompted, so the mask of the dataset
