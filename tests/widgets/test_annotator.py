"""Test the prompt debugger: its session, the widget, and the view in JupyterLab."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from browser_helpers import SIZE_OF_SAMPLES, View
from data_helpers import SIZE, make_davis, save_frame
from PIL import Image
from session_helpers import SAMPLES, Clips, truth_center

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.models.automatic_masks import Proposal
from sam2kit.tracking.tracking_job import track_video
from sam2kit.utils.errors import DataError
from sam2kit.viz.overlays import ERROR_COLORS, PALETTE
from sam2kit.widgets.annotator import Annotator, PromptDebugger
from sam2kit.widgets.check_list import FrameToCheck
from sam2kit.widgets.prompt_session import PromptSession


@pytest.fixture(scope="module")
def samples():
    return Clips(count=4)


@pytest.fixture
def session(samples, model):
    return PromptSession(samples, 0, model)


@pytest.fixture
def widget(samples, model, tmp_path):
    return Annotator(samples, model, run_dir=tmp_path)


def message(widget, kind, buffers=(), **fields):
    """Send a message as a view does."""
    widget._handle_custom_msg({"type": kind, **fields}, list(buffers))


def test_track_reproduces_the_masks_from_saved_prompts(session, tmp_path):
    """Replay clicks, a box with a click, a selected candidate and a correction in sam2kit track."""
    folder = tmp_path / session.video
    folder.mkdir()
    for t in range(session.num_frames):
        Image.fromarray(session.frame(t)).save(folder / f"{t:05d}.png")
    session.click(1, 0, *truth_center(session))
    x, y = truth_center(session, 2)
    session.box(2, 0, (x - 20, y - 20, x + 20, y + 20))
    session.click(2, 0, x, y)
    list(session.propagate())
    session.choose(1, 0, 2)
    session.click(1, 2, *truth_center(session, 2, 2), positive=False)
    session.add_object("third")
    session.click("third", 1, 20, 20)
    assert session.stale
    assert list(session.propagate()) == [0, 1, 2, 3] and not session.stale
    prompts = session.save(tmp_path / "prompts.json")
    out = track_video(folder, prompts, "nano", tmp_path / "out", "cpu")
    numbers = json.loads((out / "track.json").read_text())["objects"]
    coco = json.loads((out / "masks.json").read_text())
    areas = {(a["image_id"] - 1, a["track_id"]): a["area"] for a in coco["annotations"]}
    assert set(numbers) == {1, 2, "third"}
    for (o, t), runs in session.tracked.items():
        mask = decode_mask(runs, session.size)
        assert areas.get((t, o), 0) == mask.sum()
        with Image.open(out / "masks" / session.video / f"{t:05d}.png") as labels:
            pixels = np.array(labels)
        assert not (pixels[~mask] == numbers.index(o) + 1).any()


def test_preview_keeps_masks_of_earlier_frames(session):
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    runs = dict(session.tracked)
    assert list(session.propagate(2)) == [2, 3]
    assert all(session.tracked[1, t] == runs[1, t] for t in (0, 1))
    assert set(session.j) == {(1, t) for t in range(4)}


@pytest.mark.parametrize("count", [1, 3])
def test_unannotated_videos(tmp_path, model, count):
    for t in range(count):
        save_frame(tmp_path / "clip" / f"{t}.png", 40 + t)
    widget = Annotator(tmp_path / "clip", model)
    assert widget.objects == [] and not widget.state["annotated"]
    with pytest.raises(DataError, match="no object has a prompt"):
        widget.propagate()
    widget.click(3, 4)
    assert [o["name"] for o in widget.objects] == ["1"] and widget.state["j"] is None
    widget.propagate()
    assert len(widget.session.tracked) == count and widget.state["mean_j"] is None
    for action in (widget.save, widget.append, widget.make_training_set):
        with pytest.raises(DataError, match="run_dir"):
            action()
    widget.append(tmp_path / "c.jsonl")
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 1


def test_generated_objects_are_not_shown(tmp_path, model, tiny_config):
    for t in range(3):
        save_frame(tmp_path / "clip" / f"{t}.png", 40 + t)
    tiny_config.dataset.type, tiny_config.dataset.data_path = "video", str(tmp_path)
    tiny_config.dataset.synthetic_objects = 2
    widget = Annotator(tiny_config, model)
    frame = np.array(Image.open(io.BytesIO(widget.picture)))
    assert np.ptp(frame) <= 2 and widget.objects == [] and not widget.setup["has_truth"]


def shown(planes, position):
    """Return the mask of an object that is sent to the view."""
    assert all(plane["base"] == 0 for plane in planes)
    images = [np.array(Image.open(io.BytesIO(plane["labels"]))) for plane in planes]
    return np.any([image == position + 1 for image in images], 0)


def test_large_frames_and_many_objects(tmp_path, model):
    save_frame(tmp_path / "clip" / "0.png", 90, (1080, 1920))
    widget = Annotator(tmp_path / "clip", model)
    with Image.open(io.BytesIO(widget.picture)) as picture:
        assert picture.size == (960, 540)
    for n in range(9):
        widget.add_object(f"object {n}")
    widget.select(0)
    widget.click(1919, 1079)
    assert len(widget.objects) == 9 and len(widget.state["marks"]) == 1
    assert widget.session.prompts["object 0", 0].points == ((1919, 1079),)
    assert widget.session.mask("object 0", 0).shape == (1080, 1920)
    # Zoomed in, the visible part is sent in full resolution.
    widget.add_object("painted")
    widget.brush([[205, 110]], 3)
    message(widget, "viewport", rect=[100, 50, 400, 250])
    with Image.open(io.BytesIO(widget.detail["picture"])) as picture:
        assert picture.size == (300, 200)
    mask = shown(widget.detail["planes"], 9)
    assert mask.any() and (mask == widget.session.mask("painted", 0)[50:250, 100:400]).all()
    message(widget, "viewport", rect=None)
    assert widget.detail == {}


def test_messages_change_the_state(widget):
    seq = widget.seq
    x, y = truth_center(widget.session)
    message(widget, "ready")
    message(widget, "click", x=x, y=y, positive=True)
    assert widget.views == 1 and widget.error == "" and widget.seq > seq
    assert widget.state["marks"][0]["points"] == ((x, y),) and len(widget.candidates) == 3
    assert widget.state["j"] > 0.7 and widget.state["chosen"] is not None
    assert widget.state["provenance"] == "prompted"
    assert shown(widget.planes, 0)[y, x]
    message(widget, "view", mode="errors")
    assert widget.state["errors"] == [list(c) for c in ERROR_COLORS.values()]
    assert shown(widget.planes, 0)[y, x]  # a hit
    message(widget, "choose", candidate=0)
    assert widget.state["chosen"] == 0
    message(widget, "undo")
    message(widget, "select", index=1)
    message(widget, "take_truth")
    assert widget.session.mask(2, 0).sum() == widget.session.truth(0)[2].sum()
    message(widget, "brush", points=[[2, 2], [20, 2]], radius=2, erase=False)
    assert widget.session.mask(2, 0)[:4, 2:20].all()
    message(widget, "brush", points=[[10, 2]], radius=1, erase=True)
    assert not widget.session.mask(2, 0)[1:4, 9:12].any()
    message(widget, "undo")
    assert widget.session.mask(2, 0)[1:4, 9:12].all()
    message(widget, "redo")
    assert not widget.session.mask(2, 0)[1:4, 9:12].any()
    message(widget, "random_prompt", recipe="box")
    first = widget.state["marks"][-1]["box"]
    assert first is not None and widget.state["seed"] == 1
    message(widget, "go", frame=99)
    assert widget.state["frame"] == 3 and widget.state["marks"] == []


def test_list_of_objects(widget):
    message(widget, "rename", index=0, name="<b>one</b>")
    message(widget, "recolor", index=0, color="#010203")
    message(widget, "set_hidden", index=1, hidden=True)
    first, second = widget.objects
    assert (first["name"], first["color"], first["hidden"]) == ("<b>one</b>", [1, 2, 3], False)
    assert second["hidden"] and second["color"] != first["color"]
    message(widget, "hide_all", hidden=False)
    assert not widget.objects[1]["hidden"]
    message(widget, "delete_object", index=0)
    assert [o["name"] for o in widget.objects] == ["2"]
    message(widget, "undo")
    assert [o["name"] for o in widget.objects] == ["<b>one</b>", "2"]
    message(widget, "recolor", index=0, color="#12")
    assert "color='#12'" in widget.error


def test_colors_stand_out_from_the_video(tmp_path, model):
    Image.new("RGB", (64, 48), tuple(PALETTE[0].tolist())).save(tmp_path / "0.png")
    widget = Annotator(tmp_path, model)
    widget.click(3, 3)
    assert widget.objects[0]["color"] != PALETTE[0].tolist()
    assert sorted(map(tuple, widget._palette.tolist())) == sorted(map(tuple, PALETTE.tolist()))
    assert widget._palette[-1].tolist() == PALETTE[0].tolist()


def test_annotations_survive_switching_and_a_new_widget(samples, model, tmp_path):
    widget = Annotator(samples, model, run_dir=tmp_path)
    x, y = truth_center(widget.session)
    widget.click(x, y)
    widget.rename(0, "tool")
    widget.propagate(end=2)
    widget.accept([1, 2])
    mask = widget.session.mask(1, 2)
    widget.go(2)
    widget.open_video(1)
    assert not widget.session.prompts and widget.state["video"] == 1
    widget.open_video(0)
    for current in (widget, Annotator(samples, model, run_dir=tmp_path)):
        assert current.session.prompts[1, 0].points == ((x, y),)
        assert (current.session.mask(1, 2) == mask).all()
        assert current.timeline["accepted"] == [[1, 2]] and current.timeline["tracked"] == [[0, 2]]
        assert current.objects[0]["name"] == "tool"
    assert widget.frame == 2  # where the video was left
    # Without a run directory, switching keeps them too.
    other = Annotator(samples, model)
    other.click(x, y)
    other.open_video(1)
    other.open_video(0)
    assert (1, 0) in other.session.prompts


def test_another_folder_and_another_model(widget, tmp_path, monkeypatch):
    widget.click(*truth_center(widget.session))
    message(widget, "open_folder", folder=str(tmp_path / "nowhere"))
    assert "nowhere does not exist" in widget.error and (1, 0) in widget.session.prompts
    folder = tmp_path / "videos" / "clip"
    save_frame(folder / "0.png", 90)
    message(widget, "open_folder", folder=str(folder.parent))
    assert widget.error == "" and widget.setup["folder"] == str(folder.parent)
    assert widget.session.size == SIZE and not widget.session.prompts
    message(widget, "open_model", model="no such model")
    assert "no such model" in widget.error and widget.setup["model"] == ""
    old = widget.model
    message(widget, "click", x=3, y=3, positive=True)
    message(widget, "open_model", model="nano")
    assert widget.error == "" and widget.model is not old and widget.setup["model"] == "nano"
    assert (1, 0) in widget.session.prompts and "nano" in widget.setup["models"]
    widget.click(4, 4)
    assert widget.state["provenance"] == "prompted by nano"


def test_errors_are_shown_in_the_widget(widget):
    message(widget, "click", x=999, y=0, positive=True)
    assert "point=(999, 0)" in widget.error
    message(widget, "import", buffers=[b"no image"])
    assert "cannot be read as an image" in widget.error
    message(widget, "no_such_thing")
    assert "no_such_thing" in widget.error
    message(widget, "click", x=5, y=5, positive=True)
    assert widget.error == ""


def test_pictures_that_are_too_large_are_errors_in_the_widget(widget, monkeypatch):
    file = io.BytesIO()
    Image.new("L", (400, 400)).save(file, format="PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("import", "import_labels"):
        message(widget, kind, buffers=[memoryview(file.getvalue())])
        assert "pixels" in widget.error


def test_import_mask(widget, tmp_path):
    mask = widget.session.truth(0)[1]
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    message(widget, "import", buffers=[memoryview(file.getvalue())])
    assert (widget.session.mask(1, 0) == mask).all()
    assert widget.state["provenance"] == "imported"
    (tmp_path / "mask.png").write_bytes(file.getvalue())
    widget.go(1)
    widget.import_mask(tmp_path / "mask.png")
    assert (widget.session.mask(1, 1) == mask).all()


def test_import_label_image(widget):
    labels = np.zeros(widget.session.size, np.uint16)
    labels[2:5, 3:9], labels[20:30, 20:40] = 7, 300
    file = io.BytesIO()
    Image.fromarray(labels).save(file, format="TIFF")
    message(widget, "import_labels", buffers=[memoryview(file.getvalue())])
    assert widget.error == "" and [o["name"] for o in widget.objects] == ["1", "2", "7", "300"]
    assert (widget.session.mask(300, 0) == (labels == 300)).all() and widget.object == 7
    message(widget, "undo")
    assert len(widget.objects) == 2


def test_proposals_are_kept_or_discarded_in_the_list(widget, monkeypatch):
    masks = [np.zeros(widget.session.size, bool) for _ in range(3)]
    for n, mask in enumerate(masks):
        mask[10 * n : 10 * n + 5, :5] = True

    def propose_masks(t):
        proposals = widget.session.proposals
        proposals.items, proposals.frame = [Proposal(mask, 0.9) for mask in masks], t
        yield 1.0

    monkeypatch.setattr(widget.session, "propose_masks", propose_masks)
    message(widget, "propose")
    widget.wait()
    assert widget.state["proposals"] == [3, 0] and not widget.state["running"]
    assert [o["proposal"] for o in widget.objects] == [False, False, True, True, True]
    assert (shown(widget.planes, 3) == masks[1]).all()
    message(widget, "delete_object", index=2)
    message(widget, "accept_proposals", indices=[2])
    assert [o["proposal"] for o in widget.objects] == [False] * 3 + [True]
    assert (widget.session.mask(3, 0) == masks[1]).all()
    message(widget, "go", frame=1)
    assert len(widget.objects) == 3 and widget.state["proposals"] == [1, 0]
    message(widget, "discard_proposals")
    assert widget.state["proposals"] is None


def test_propagation_runs_in_the_background_and_can_be_cancelled(widget, monkeypatch):
    widget.click(*truth_center(widget.session))
    read_frame, frames = Clips.read_frame, []

    def cancel_at_third_frame(self, i, t):
        frames.append(t)
        if len(frames) == 3:
            widget.cancel()
        return read_frame(self, i, t)

    monkeypatch.setattr(Clips, "read_frame", cancel_at_third_frame)
    message(widget, "propagate")
    widget.wait()
    assert not widget.state["running"] and 0 < widget.state["done"] < 4
    assert "Stopped after" in widget.state["message"] and widget.session.tracked
    monkeypatch.setattr(Clips, "read_frame", read_frame)
    message(widget, "propagate")
    message(widget, "click", x=5, y=5, positive=False)
    widget.wait()
    assert widget.state["done"] == widget.state["total"] == 4 and widget.state["stale"]
    assert widget.error == "" and len(widget.session.prompts[1, 0].points) == 2


def test_propagation_over_a_range_and_backward(widget):
    widget.go(2)
    widget.click(*truth_center(widget.session, 1, 2))
    message(widget, "propagate", direction="backward")
    widget.wait()
    assert widget.timeline["tracked"] == [[0, 2]] and widget.state["total"] == 3
    message(widget, "propagate", direction="forward", start=2, end=3)
    widget.wait()
    assert widget.timeline["tracked"] == [[0, 3]] and widget.state["total"] == 2
    message(widget, "propagate", direction="both", start=3, end=1)
    assert "end=1" in widget.error


def test_switching_the_video_stops_propagation_and_keeps_its_masks(widget, monkeypatch):
    widget.click(*truth_center(widget.session))
    reached = threading.Event()
    read_frame = Clips.read_frame

    def wait_for_the_switch(self, i, t):
        if t == 1:
            reached.set()
            time.sleep(0.05)
        return read_frame(self, i, t)

    monkeypatch.setattr(Clips, "read_frame", wait_for_the_switch)
    widget.propagate(wait=False)
    assert reached.wait(60)
    widget.open_video(1)
    widget.wait()
    assert not widget.state["running"] and not widget.session.tracked
    widget.open_video(0)
    assert (1, 1) in widget.session.tracked


def test_frames_to_check_and_acceptance(widget, monkeypatch):
    widget.click(*truth_center(widget.session))
    suspects = [FrameToCheck(3, 2, "low score", 0.9), FrameToCheck(1, 1, "area", 0.5)]
    monkeypatch.setattr(widget.session, "frames_to_check", lambda limit: suspects[:limit])
    widget.propagate()
    assert widget.checks[0] == {"frame": 3, "name": "2", "reason": "low score"}
    visited = []
    for _ in range(3):
        message(widget, "next_check")
        visited.append((widget.frame, widget.object))
    assert visited == [(3, 2), (1, 1), (3, 2)]
    message(widget, "accept")
    assert widget.state["accepted"] and widget.session.accepted == {3}
    message(widget, "accept")
    assert not widget.session.accepted
    message(widget, "accept_all", every=2)
    assert widget.timeline["accepted"] == [[0, 0], [2, 2]]
    # Frames with prompts are accepted whatever the step is: a correction must not be left out.
    widget.go(3)
    widget.click(*truth_center(widget.session))
    message(widget, "accept_all", every=2)
    assert widget.session.accepted == {0, 2, 3}
    suspects.clear()
    widget.accept([1])
    message(widget, "next_check")
    assert "no frame to check" in widget.error


def test_training_set_of_all_annotated_videos(widget, samples, tmp_path):
    message(widget, "make_training_set", folder="")
    assert "no frame is accepted" in widget.error
    for i in (0, 1):
        widget.open_video(i)
        widget.click(*truth_center(widget.session, widget.session.objects[0]))
        widget.propagate()
        widget.accept_all(every=2)
    message(widget, "make_training_set", folder="")
    assert widget.error == ""
    command = widget.report[-1]
    assert command["command"] and f"--data-path {tmp_path / 'training_set'} " in command["text"]
    assert "--image-size 192" in command["text"]
    source = open_source(tmp_path / "training_set")
    assert source.names == samples.names[:2] and source.num_frames(0) == 4
    assert [source.read_masks(0, t) is not None for t in range(4)] == [True, False, True, False]
    o = next(iter(widget.session.objects))
    written = source.read_masks(1, 2)[o]  # where masks overlap, the smaller object is in front
    assert written.any() and not (written & ~widget.session.mask(o, 2)).any()
    # A second call adds what is new; a video whose folder is not open is reported.
    widget.accept([1])
    save_frame(tmp_path / "videos" / "clip" / "0.png", 90)
    other = Annotator(tmp_path / "videos", widget.model, run_dir=tmp_path)
    with pytest.raises(DataError, match="directory is unknown.*train_000"):
        other.make_training_set()
    widget.make_training_set()
    assert "1 frame added, 0 replaced, 2 unchanged" in str(widget.report)
    message(widget, "close_report")
    assert widget.report == []
    # The message is about the videos so far; another one begins without it.
    widget.make_training_set()
    widget.open_model(widget.model)
    assert widget.report
    widget.open_video(0)
    assert widget.report == [] and widget.state["every"] == 2


def test_unreadable_frame_stops_propagation_with_its_error(widget, monkeypatch):
    widget.click(*truth_center(widget.session))

    def broken(self, i, t):
        if t == 2:
            raise DataError("frame 2 is damaged")
        return VideoDataset.read_frame(self.source, i, t)

    monkeypatch.setattr(Clips, "read_frame", broken)
    with pytest.raises(DataError, match="frame 2 is damaged"):
        widget.propagate()
    assert not widget.state["running"] and (1, 1) in widget.session.tracked


def test_static_image_without_a_front_end(widget):
    widget.click(*truth_center(widget.session))
    widget.box(5, 5, 60, 60)
    data, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    plain = widget.session.frame(0).astype(int)
    assert pixels.shape == plain.shape and np.abs(pixels - plain).max() > 50


def test_arguments(samples, model, tmp_path, tiny_config):
    assert PromptDebugger is Annotator
    tiny_config.dataset.data_path = str(make_davis(tmp_path / "davis"))
    tiny_config.dataset.corrections = str(tmp_path / "c.jsonl")
    Path(tiny_config.dataset.corrections).touch()
    widget = Annotator(tiny_config, video="b")
    assert widget.session.size == SIZE and "this configuration" in widget.recipes
    assert widget.corrections == tiny_config.dataset.corrections
    assert widget.session.image_size == 192
    for video in (9, "z"):
        with pytest.raises(DataError) as error:
            widget.open_video(video)
        assert (error.value.key, error.value.value) == ("video", video)
    with pytest.raises(DataError) as error:
        Annotator(samples, model, recipes={"a": DatasetConfig()}).random_prompt("other")
    assert (error.value.key, error.value.value) == ("recipe", "other")


NOTEBOOK = """
import torch
torch.set_num_threads(1)
from sam2kit.widgets.annotator import Annotator
annotator = Annotator({samples!r}, run_dir={run_dir!r})
annotator
"""
CENTERS = (
    "(lambda s, c: [[int(v) for v in c(m)] for m in s.truth(0).values()])("
    "annotator.session, __import__('sam2kit.prompts.geometry', fromlist=['']).mask_center)"
)
PROMPTS = (
    "[[list(map(list, m.points)), list(m.labels), m.box and list(m.box)] "
    "for m in annotator.session.prompts.values()]"
)


@pytest.mark.browser
def test_prompts_objects_and_zoom_in_jupyterlab(lab, tmp_path):
    view = View(lab.open("annotator", NOTEBOOK.format(samples=str(SAMPLES), run_dir=str(tmp_path))))
    (x, y), (u, v) = view.notebook.kernel(CENTERS)
    aside = (x + 6, y + 5)  # on the object, but not covered by the drawn click
    assert not view.is_colored(*aside)

    # A click on the object, then a click off it; undo both.
    view.click(x, y)
    view.kernel_has(PROMPTS, [[[[x, y]], [1], None]])
    view.until("e => e.querySelectorAll('.strip img').length === 3")
    assert view.is_colored(*aside)
    view.click(u, v, button="right")
    view.kernel_has(PROMPTS, [[[[x, y], [u, v]], [1, 0], None]])
    assert view.page.locator(".lm-Menu:visible").count() == 0  # no context menu
    view.press("z")
    view.press("Control+z")
    view.kernel_has(PROMPTS, [])
    assert not view.is_colored(*aside)
    view.press("y")
    view.kernel_has(PROMPTS, [[[[x, y]], [1], None]])
    view.press("Delete")
    view.kernel_has(PROMPTS, [])

    # Drag a box. M hides the masks, and the number of an object selects it.
    view.act(lambda: view.drag(view.at(x - 20, y - 15), view.at(x + 20, y + 15)))
    view.kernel_has(PROMPTS, [[[], [], [x - 20, y - 15, x + 20, y + 15]]])
    assert view.is_colored(*aside)
    view.root.press("m")
    view.page.wait_for_timeout(200)
    assert not view.is_colored(*aside)
    view.root.press("m")
    view.press("2")
    view.kernel_has("annotator.object", 2)

    # Zoomed in with the wheel, a click reaches the pixel under the pointer, and pixels stay sharp.
    view.page.mouse.move(*view.at(u, v))
    view.page.mouse.wheel(0, -400)
    view.until("e => Number(e.dataset.zoom) > 1.5")
    view.click(u, v, rect=zoomed(view, u, v))
    view.kernel_has("list(map(list, annotator.session.prompts[2, 0].points))", [[u, v]])
    before = view.root.get_attribute("data-zoom")
    view.root.press("+")
    view.until(f"e => Number(e.dataset.zoom) > {before}")
    view.page.keyboard.down(" ")
    view.drag(view.at(80, 64), view.at(20, 40))  # moves the image, and draws no box
    view.page.keyboard.up(" ")
    view.drag(view.at(80, 64), view.at(120, 90), button="middle")
    view.root.press("f")
    view.until("e => e.dataset.zoom === '1.00'")
    view.kernel_has("[p.box for p in annotator.session.prompts.values()][1]", None)

    # The brush has an outline of its size at the pointer; [ and ] change it.
    view.root.press("b")
    view.root.press("]")
    size = int(view.root.locator("input[title^='Brush radius']").input_value())
    assert size > 10
    view.page.mouse.move(*view.at(60, 60))
    view.page.wait_for_timeout(200)
    ring = (60 + size + 0.5 + 0.5) / 160, 60.5 / 128
    red, green, blue = view.notebook.pixel(view.canvas, *ring)
    assert green > red + 30 or max(red, green, blue) < 90  # the green line, or its dark border
    view.act(lambda: view.drag(view.at(30, 100), view.at(40, 100)))
    view.kernel_has("annotator.session.provenance(2, 0)", "painted")
    view.root.press("c")

    # The list of objects: add, rename (a hostile name is text), hide, delete, undo.
    view.root.locator("input[placeholder^='name']").fill("cell")
    view.act(lambda: view.button("add").click())
    view.kernel_has("annotator.object", "cell")
    view.button("object-2").locator(".label").dblclick()
    editor = view.root.locator("input.editing")
    editor.fill("<img src=x onerror=alert(1)>")
    view.act(lambda: editor.press("Enter"))
    view.kernel_has("annotator.session.names['cell']", "<img src=x onerror=alert(1)>")
    view.until("e => e.querySelector('.objects').textContent.includes('<img src=x')")
    assert view.root.locator("img[src='x']").count() == 0
    view.act(lambda: view.button("object-0").locator("input").fill("#ff00ff"))
    view.kernel_has("annotator.objects[0]['color']", [255, 0, 255])
    view.act(lambda: view.button("hide-0").click())
    view.kernel_has("annotator.objects[0]['hidden']", True)
    assert not view.is_colored(*aside)
    view.press("0")
    view.kernel_has("[o['hidden'] for o in annotator.objects]", [False] * 3)
    view.act(lambda: view.button("delete-2").click())
    view.kernel_has("annotator.session.objects", [1, 2])
    view.press("z")
    view.kernel_has("annotator.session.objects", [1, 2, "cell"])
    view.press("y")
    view.kernel_has("annotator.session.objects", [1, 2])

    # Keys work whatever has the focus, and none of them reaches the notebook.
    view.root.locator(".frame-slider").fill("3")
    view.until("e => e.dataset.frame === '3'")
    view.root.locator(".frame-slider").press("ArrowRight")
    view.until("e => e.dataset.frame === '4'")
    view.root.locator("input[title^='Mask opacity']").press("ArrowLeft")
    view.until("e => e.dataset.frame === '3'")
    view.button("back").click()
    view.until("e => e.dataset.frame === '2'")
    for key in ("d", "d", "x", "j", "Home"):
        view.page.keyboard.press(key)
    view.until("e => e.dataset.frame === '0'")
    assert view.root.locator(".position").inner_text() == "frame 0 of 0–7"
    assert view.cells() == 1
    view.page.keyboard.press("?")
    assert view.root.locator(".help").is_visible()
    assert "next frame to check" in view.root.locator(".help").inner_text()
    view.page.keyboard.press("Escape")
    assert view.root.locator(".help").is_hidden()

    # Errors are shown in the widget.
    view.act(lambda: view.button("add").click())
    view.act(lambda: view.button("truth").click())
    view.until("e => e.querySelector('.status.error').innerText.includes('mask of object 3')")


def zoomed(view, x, y):
    """Return the visible part of the frame after zooming at a pixel, from the rules of the view."""
    zoom, (columns, rows) = float(view.root.get_attribute("data-zoom")), SIZE_OF_SAMPLES
    (x0, y0), (width, height) = (0, 0), (columns / zoom, rows / zoom)
    x0 = x + 0.5 - (x + 0.5) / zoom
    y0 = y + 0.5 - (y + 0.5) / zoom
    return x0, y0, x0 + width, y0 + height


@pytest.mark.browser
def test_tracking_and_a_killed_kernel_in_jupyterlab(lab, tmp_path):
    cell = NOTEBOOK.format(samples=str(SAMPLES), run_dir=str(tmp_path))
    view = View(lab.open("tracking", cell))
    (x, y), _ = view.notebook.kernel(CENTERS)
    view.click(x, y)
    view.counts("prompted", 1)

    # Track over a range, then everything; the timeline follows.
    view.button("from").fill("0")
    view.button("to").fill("3")
    view.button("forward").click()
    view.counts("tracked", 4)
    view.until("e => e.dataset.running === 'false'")
    view.button("from").fill("")
    view.button("to").fill("")
    view.root.press("t")
    view.counts("tracked", 8)
    view.until("e => e.dataset.running === 'false'")
    view.until("e => e.querySelector('.status').textContent === 'Tracked 8 frames'")

    # Click on the timeline to jump; correct the mask there.
    box = view.root.locator(".timeline").bounding_box()
    view.root.locator(".timeline").click(
        position={"x": 8 + (box["width"] - 16) * 5 / 7, "y": box["height"] / 2}
    )
    view.until("e => e.dataset.frame === '5'")
    row, column = view.notebook.kernel(
        "[int(v[len(v) // 2]) for v in annotator.session.mask(1, 5).nonzero()]"
    )
    assert view.is_colored(column, row)
    view.click(column, row)
    view.counts("corrected", 1)
    view.until("e => e.querySelector('.scores').textContent.includes('track again')")

    # Frames worth checking, and acceptance.
    view.notebook.kernel(
        "setattr(annotator.session, 'frames_to_check', lambda limit: [__import__("
        "'sam2kit.widgets.check_list', fromlist=['']).FrameToCheck(6, 1, 'low score', 0.9)])"
    )
    view.press("Home")
    view.root.press("t")
    view.until("e => e.querySelector('.checks').textContent.includes('low score')")
    view.until("e => e.dataset.running === 'false'")
    view.press("n")
    view.until("e => e.dataset.frame === '6'")
    view.press("a")
    view.counts("accepted", 1)
    assert view.cells() == 1  # JupyterLab's key for a new cell
    # *From here* does not change the range for the next tracking.
    view.button("here").click()
    view.until("e => e.dataset.running === 'false'")
    assert view.button("from").input_value() == ""
    view.button("every").fill("2")
    view.button("accept-all").click()
    view.counts("accepted", 5)  # every second frame, and the corrected one
    view.button("training-set").click()
    view.until("e => e.querySelector('.report').textContent.includes('sam2kit train --data-path')")
    assert open_source(tmp_path / "training_set").names == ["train_000"]

    # Another video and back.
    view.root.get_by_title("Video", exact=True).select_option("train_001")
    view.counts("prompted", 0)
    view.kernel_has("annotator.session.video", "train_001")
    view.root.get_by_title("Video", exact=True).select_option("train_000")
    view.counts("corrected", 1)
    view.counts("accepted", 5)

    # Kill the kernel and reload the page: everything is there again, and the widget answers.
    view.press("z")
    view.click(3, 3, button="right")
    expected = view.notebook.kernel(f"[{PROMPTS}, len(annotator.session.tracked)]")
    view = View(lab.reopen(view.notebook))
    view.counts("accepted", 5)
    assert view.notebook.kernel(f"[{PROMPTS}, len(annotator.session.tracked)]") == expected
    view.click(x, y)
    view.kernel_has("annotator.error", "")
