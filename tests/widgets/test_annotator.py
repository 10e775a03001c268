"""Test the prompt debugger: its session, the widget, and the view in JupyterLab."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import SIZE, make_davis, save_frame
from PIL import Image

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.corrected import CorrectedSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.evaluation.metrics import iou
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.geometry import mask_center
from sam2kit.tracking.tracking_job import track_video
from sam2kit.utils.errors import DataError
from sam2kit.viz.overlays import ERROR_COLORS, PALETTE
from sam2kit.widgets.annotator import PromptDebugger
from sam2kit.widgets.prompt_session import PromptSession

SAMPLES = Path(__file__).parents[2] / "data_samples"


class FirstFrames(VideoSource):
    """Limit the videos of a source to their first frames."""

    def __init__(self, source: VideoSource, count: int) -> None:
        self.source, self.count, self.names = source, count, source.names

    def num_frames(self, i: int) -> int:
        return self.count

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.source.read_frame(i, t)

    def read_masks(self, i: int, t: int):
        return self.source.read_masks(i, t)


@pytest.fixture(scope="module")
def model():
    return load_model("nano")[1]


@pytest.fixture(scope="module")
def samples():
    return FirstFrames(VideoDataset(SAMPLES), 4)


@pytest.fixture
def session(samples, model):
    return PromptSession(samples, 0, model)


@pytest.fixture
def widget(samples, model, tmp_path):
    return PromptDebugger(samples, model, run_dir=tmp_path)


def center(session, o=1, t=0):
    return mask_center(session.truth(t)[o])


def message(widget, kind, buffers=(), **fields):
    """Send a message as a view does."""
    widget._handle_custom_msg({"type": kind, **fields}, list(buffers))


def test_click_segments_the_object(session):
    assert session.objects == [1, 2] and session.size == (128, 160)
    assert session.mask(1, 0) is None and session.prediction(1, 0) is None
    session.click(1, 0, *center(session))
    prediction = session.prediction(1, 0)
    assert session.j_of(1, 0, prediction.mask) > 0.7
    assert prediction.candidates.shape == (3, *session.size) and len(prediction.ious) == 3
    best = prediction.candidates[int(np.argmax(prediction.ious))]
    assert (prediction.mask == best).all() and (session.mask(1, 0) == best).all()
    session.click(1, 0, *center(session, 2), positive=False)
    prompt = session.prompts[1, 0]
    assert prompt.labels == (1, 0) and not session.mask(1, 0)[center(session, 2)[::-1]]
    assert len(session.prediction(1, 0).candidates) == 3  # although the model returns one mask


def test_masks_depend_only_on_the_prompts(session, samples, model):
    session.click(1, 0, *center(session))
    session.box(2, 1, (10, 10, 60, 60))
    session.click(1, 0, 5, 5, positive=False)
    second = PromptSession(samples, 0, model)
    second.click(1, 0, *center(session))
    second.click(1, 0, 5, 5, positive=False)
    assert (second.mask(1, 0) == session.mask(1, 0)).all()


def test_box_replaces_clicks_and_later_clicks_are_added(session):
    session.click(1, 0, 3, 3)
    x, y = center(session)
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
    session.click(1, 0, *center(session))
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


def test_track_reproduces_the_masks_from_saved_prompts(session, tmp_path):
    """Replay clicks, a box with a click, a selected candidate and a correction in sam2kit track."""
    folder = tmp_path / session.video
    folder.mkdir()
    for t in range(session.num_frames):
        Image.fromarray(session.frame(t)).save(folder / f"{t:05d}.png")
    session.click(1, 0, *center(session))
    x, y = center(session, 2)
    session.box(2, 0, (x - 20, y - 20, x + 20, y + 20))
    session.click(2, 0, x, y)
    list(session.propagate())
    session.choose(1, 0, 2)
    session.click(1, 2, *center(session, 2, 2), positive=False)
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
        assert not (pixels[~mask] == numbers.index(o) + 1).any() or isinstance(o, int)


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


def test_click_refines_a_tracked_mask(session):
    session.click(1, 0, *center(session))
    list(session.propagate())
    before = session.mask(1, 2)
    wrong = before & ~session.truth(2)[1]
    x, y = mask_center(wrong)
    session.click(1, 2, x, y, positive=False)
    prompt, after = session.prompts[1, 2], session.mask(1, 2)
    assert (prompt.base == before).all() and (prompt.mask == after).all()
    assert iou(after, before) > 0.3  # refined; a negative click alone would give another mask
    session.click(1, 2, x, y, positive=False)
    assert (session.prompts[1, 2].base == before).all()  # the tracked mask, not the refined one


def test_preview_keeps_masks_of_earlier_frames(session):
    session.click(1, 0, *center(session))
    list(session.propagate())
    runs = dict(session.tracked)
    assert list(session.propagate(2)) == [2, 3]
    assert all(session.tracked[1, t] == runs[1, t] for t in (0, 1))
    assert set(session.j) == {(1, t) for t in range(4)}


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


def test_draw_prompts_as_in_training(session):
    side = session.image_size
    for kind in ("mask", "box", "point"):
        recipe = DatasetConfig(prompt_types=[kind], num_positive_points=2, num_negative_points=1)
        session.draw(1, 0, recipe, seed=3)
        prompt, truth = session.prompts[1, 0], session.truth(0)[1]
        if kind == "mask":
            assert (prompt.mask == truth).all()
        elif kind == "box":
            ys, xs = np.nonzero(truth)
            tight = (xs.min(), ys.min(), xs.max(), ys.max())
            assert np.abs(np.subtract(prompt.box, tight)).max() <= 160 / side + 1
        else:
            assert prompt.labels == (1, 1, 0)
            inside = [truth[y, x] for x, y in prompt.points]
            assert inside[0] and not inside[2]
    drawn = []
    for seed in (1, 1, 2):
        session.draw(1, 0, replace(recipe, include_center=False), seed)
        drawn.append(session.prompts[1, 0].points)
    assert drawn[0] == drawn[1] != drawn[2]
    session.add_object("new")
    with pytest.raises(DataError, match="object new is not visible on frame 0"):
        session.draw("new", 0, recipe, 0)


def test_draw_uses_the_prompt_generator(session, monkeypatch):
    seen = []
    call = PromptGenerator.__call__
    monkeypatch.setattr(
        PromptGenerator, "__call__", lambda self, *a: seen.append(self.box_noise) or call(self, *a)
    )
    session.draw(1, 0, DatasetConfig(prompt_types=["box"], box_noise=0.3), 0)
    assert seen == [0.3]


def test_append_writes_a_correction_for_the_dataset(session, tmp_path):
    path = tmp_path / "corrections.jsonl"
    with pytest.raises(DataError, match="no object .* on frame 2"):
        session.append(path, 2)
    session.click(1, 2, *center(session, 1, 2))
    assert session.append(path, 2) == [1]
    masks = CorrectedSource(open_source(session.source), path).read_masks(0, 2)
    assert (masks[1] == session.mask(1, 2)).all()
    assert (masks[2] == session.truth(2)[2]).all()  # not prompted, so the mask of the dataset


@pytest.mark.parametrize("count", [1, 3])
def test_unannotated_videos(tmp_path, model, count):
    for t in range(count):
        save_frame(tmp_path / "clip" / f"{t}.png", 40 + t)
    widget = PromptDebugger(tmp_path / "clip", model)
    assert widget.state["objects"] == [] and not widget.state["annotated"]
    with pytest.raises(DataError, match="no object has a prompt"):
        widget.propagate()
    widget.click(3, 4)
    assert [o["name"] for o in widget.state["objects"]] == ["1"] and widget.state["j"] is None
    widget.propagate()
    assert len(widget.session.tracked) == count and widget.state["mean_j"] is None
    with pytest.raises(DataError, match="run_dir"):
        widget.save()
    with pytest.raises(DataError, match="run_dir"):
        widget.append()
    widget.append(tmp_path / "c.jsonl")
    assert len((tmp_path / "c.jsonl").read_text().splitlines()) == 1


def test_large_frames_and_many_objects(tmp_path, model):
    save_frame(tmp_path / "clip" / "0.png", 90, (1080, 1920))
    widget = PromptDebugger(tmp_path / "clip", model)
    with Image.open(io.BytesIO(widget.picture)) as picture:
        assert picture.size == (960, 540)
    for n in range(12):
        widget.add_object(f"object {n}")
        widget.click(1919 - n, 1079)
    assert len(widget.state["objects"]) == 12 and len(widget.state["marks"]) == 12
    assert widget.session.prompts["object 0", 0].points == ((1919, 1079),)
    assert widget.session.mask("object 3", 0).shape == (1080, 1920)


def test_messages_change_the_state(widget):
    seq = widget.seq
    x, y = center(widget.session)
    message(widget, "ready")
    message(widget, "click", x=x, y=y, positive=True)
    assert widget.views == 1 and widget.error == "" and widget.seq > seq
    assert widget.state["marks"][0]["points"] == ((x, y),) and len(widget.candidates) == 3
    assert widget.state["j"] > 0.7 and widget.state["chosen"] is not None
    with Image.open(io.BytesIO(widget.masks)) as masks:
        assert masks.mode == "P" and np.array(masks)[y, x] == 1
        assert masks.getpalette()[3:6] == PALETTE[0].tolist()
    message(widget, "view", mode="errors")
    with Image.open(io.BytesIO(widget.masks)) as masks:
        assert masks.getpalette()[3:12] == [v for c in ERROR_COLORS.values() for v in c]
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
    message(widget, "dice", recipe="box")
    first = widget.state["marks"][-1]["box"]
    assert first is not None and widget.state["seed"] == 1
    message(widget, "go", frame=99)
    assert widget.state["frame"] == 3 and widget.state["marks"] == []
    message(widget, "open_video", video=1)
    assert widget.state["video"] == 1 and not widget.session.prompts


def test_errors_are_shown_in_the_widget(widget):
    message(widget, "click", x=999, y=0, positive=True)
    assert "point=(999, 0)" in widget.error
    message(widget, "import", buffers=[b"no image"])
    assert "cannot be read as an image" in widget.error
    message(widget, "no_such_thing")
    assert "no_such_thing" in widget.error
    message(widget, "click", x=5, y=5, positive=True)
    assert widget.error == ""


def test_import_mask(widget, tmp_path):
    mask = widget.session.truth(0)[1]
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    message(widget, "import", buffers=[memoryview(file.getvalue())])
    assert (widget.session.mask(1, 0) == mask).all()
    (tmp_path / "mask.png").write_bytes(file.getvalue())
    widget.go(1)
    widget.import_mask(tmp_path / "mask.png")
    assert (widget.session.mask(1, 1) == mask).all()


def test_propagation_runs_in_the_background_and_can_be_cancelled(widget, monkeypatch):
    widget.click(*center(widget.session))
    read_frame, frames = FirstFrames.read_frame, []

    def cancel_at_third_frame(self, i, t):
        frames.append(t)
        if len(frames) == 3:
            widget.cancel()
        return read_frame(self, i, t)

    monkeypatch.setattr(FirstFrames, "read_frame", cancel_at_third_frame)
    message(widget, "propagate")
    widget.wait()
    assert not widget.state["running"] and 0 < widget.state["done"] < 4
    assert "stopped after" in widget.state["message"] and widget.session.tracked
    monkeypatch.setattr(FirstFrames, "read_frame", read_frame)
    message(widget, "propagate")
    message(widget, "click", x=5, y=5, positive=False)
    widget.wait()
    assert widget.state["done"] == 4 and widget.state["stale"]
    assert widget.error == "" and len(widget.session.prompts[1, 0].points) == 2


def test_unreadable_frame_stops_propagation_with_its_error(widget, monkeypatch):
    widget.click(*center(widget.session))

    def broken(self, i, t):
        if t == 2:
            raise DataError("frame 2 is damaged")
        return VideoDataset.read_frame(self.source, i, t)

    monkeypatch.setattr(FirstFrames, "read_frame", broken)
    with pytest.raises(DataError, match="frame 2 is damaged"):
        widget.propagate()
    assert not widget.state["running"] and (1, 1) in widget.session.tracked


def test_static_image_without_a_front_end(widget):
    widget.click(*center(widget.session))
    widget.box(5, 5, 60, 60)
    data, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    with Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    plain = widget.session.frame(0).astype(int)
    assert pixels.shape == plain.shape and np.abs(pixels - plain).max() > 50


def test_arguments(samples, model, tmp_path, tiny_config):
    tiny_config.dataset.data_path = str(make_davis(tmp_path / "davis"))
    tiny_config.dataset.corrections = str(tmp_path / "c.jsonl")
    Path(tiny_config.dataset.corrections).touch()
    widget = PromptDebugger(tiny_config, video="b")
    assert widget.session.size == SIZE and "this configuration" in widget.recipes
    assert (
        widget.corrections == tiny_config.dataset.corrections and widget.session.image_size == 128
    )
    for video in (9, "z"):
        with pytest.raises(DataError) as error:
            widget.open_video(video)
        assert (error.value.key, error.value.value) == ("video", video)
    with pytest.raises(DataError) as error:
        PromptDebugger(samples, model, recipes={"a": DatasetConfig()}).dice("other")
    assert (error.value.key, error.value.value) == ("recipe", "other")


def test_settings_of_the_model_are_restored(session, model):
    max_points = model.multimask_max_pt_num
    session.box(1, 0, (3, 3, 40, 40))
    assert model.multimask_max_pt_num == max_points and not torch.is_inference_mode_enabled()


NOTEBOOK = """
import torch
torch.set_num_threads(1)
from sam2kit.data.build import open_source
from sam2kit.widgets.annotator import PromptDebugger
debugger = PromptDebugger({samples!r}, run_dir={run_dir!r})
debugger
"""


@pytest.mark.browser
def test_view_in_jupyterlab(lab, tmp_path):
    notebook = lab.open(
        "prompt_debugger", NOTEBOOK.format(samples=str(SAMPLES), run_dir=str(tmp_path))
    )
    root = notebook.wait(".sam2kit-debugger[data-ready='true']")
    canvas = root.locator("canvas")
    centers = notebook.kernel(
        "(lambda s, c: [[int(v) for v in c(m)] for m in s.truth(0).values()])("
        "debugger.session, __import__('sam2kit.prompts.geometry', fromlist=['']).mask_center)"
    )
    (x, y), (u, v) = centers
    size = {"width": 160, "height": 128}
    box = canvas.bounding_box()

    def at(column, row):
        shares = (column + 0.5) / size["width"], (row + 0.5) / size["height"]
        return {"x": shares[0] * box["width"], "y": shares[1] * box["height"]}

    def colored(column, row):
        """Return whether the canvas differs from the frame at this pixel."""
        shown = notebook.pixel(canvas, (column + 0.5) / 160, (row + 0.5) / 128)
        plain = notebook.kernel(f"debugger.session.frame(0)[{row}, {column}].tolist()")
        return max(abs(a - b) for a, b in zip(shown, plain, strict=True)) > 30

    def act(action):
        notebook.after(root, action)
        return notebook.kernel(
            "[debugger.error, [[list(map(list, m.points)), list(m.labels), m.box and list(m.box)] "
            "for m in debugger.session.prompts.values()]]"
        )

    def button(name):
        return act(lambda: root.locator(f"[data-name='{name}']").click())

    aside = (x + 6, y + 5)  # on the object, but not covered by the drawn click
    assert not colored(*aside)
    # A click on the object, then a click off it.
    assert act(lambda: canvas.click(position=at(x, y))) == ["", [[[[x, y]], [1], None]]]
    assert colored(*aside) and root.locator(".candidates img").count() == 3
    error, ((points, labels, _),) = act(lambda: canvas.click(position=at(u, v), button="right"))
    assert (error, points, labels) == ("", [[x, y], [u, v]], [1, 0])
    assert notebook.page.locator(".lm-Menu:visible").count() == 0  # no context menu
    red, _, blue = notebook.pixel(canvas, (u + 0.5) / 160, (v + 0.5) / 128 + 4 / 512)
    assert red > 150 > blue  # the negative click's disc
    # Undo both clicks: the canvas shows the plain frame.
    assert button("undo")[1] == [[[[x, y]], [1], None]]
    assert button("undo")[1] == [] and not colored(*aside)
    # Drag a box.
    corners = at(x - 20, y - 15), at(x + 20, y + 15)
    mouse = notebook.page.mouse
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    mouse.move(box["x"] + corners[0]["x"], box["y"] + corners[0]["y"])
    mouse.down()
    mouse.move(box["x"] + corners[1]["x"], box["y"] + corners[1]["y"], steps=3)
    assert act(mouse.up) == ["", [[[], [], [x - 20, y - 15, x + 20, y + 15]]]]
    assert colored(*aside)
    # Propagate and show another frame. The widget handles keys, JupyterLab does not.
    root.locator("[data-name='propagate']").click()
    notebook.until("e => e.querySelector('.status').textContent === 'tracked 8 frames'", root)
    assert notebook.kernel("len(debugger.session.tracked)") == 8
    act(lambda: root.press("ArrowRight"))
    assert notebook.kernel("debugger.frame") == 1
    assert root.locator(".position").inner_text().startswith("frame 1 / 7")
    row, column = notebook.kernel(
        "[int(v[len(v) // 2]) for v in debugger.session.mask(1, 1).nonzero()]"
    )
    plain = notebook.kernel(f"debugger.session.frame(1)[{row}, {column}].tolist()")
    shown = notebook.pixel(canvas, (column + 0.5) / 160, (row + 0.5) / 128)
    assert max(abs(a - b) for a, b in zip(shown, plain, strict=True)) > 30
    assert notebook.page.locator(".jp-Cell").count() == 1
    # Save the prompts and append a correction.
    button("save")
    saved = json.loads((tmp_path / "prompts.json").read_text())["prompts"]
    assert [entry["box"] for entry in saved] == [[x - 20, y - 15, x + 20, y + 15]]
    button("append")
    line = json.loads((tmp_path / "corrections.jsonl").read_text())
    assert (line["frame_index"], [o["id"] for o in line["objects"]]) == (1, [1, 2])
    # Errors are shown in the widget.
    root.locator("[data-name='add']").click()
    button("propagate")
    notebook.until("e => !e.querySelector('[data-name=propagate]').disabled", root)
    act(lambda: root.press("ArrowLeft"))
    error, _ = button("truth")
    assert "mask of object 3" in error
    # The repaint that `after` saw may still have been the one of the arrow key.
    notebook.until("e => e.innerText.includes('mask of object 3')", root)
