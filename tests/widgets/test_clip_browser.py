"""Test the clip browser: masks and J, messages to the view, and the view in JupyterLab."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import traitlets
from data_helpers import SIZE, compressed, make_davis, save_json, save_palette, square
from PIL import Image

from sam2kit.data.sources.base import FrameRange, VideoSource
from sam2kit.data.sources.video_decoder import FrameFolder
from sam2kit.data.writers import MaskWriter
from sam2kit.evaluation.scores import CONVENTIONS, VideoScorer
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name
from sam2kit.viz import overlays
from sam2kit.widgets.clip_browser import ClipBrowser
from sam2kit.widgets.layers import VideoLayers, label_planes, open_results

SHARED = Path(__file__).parents[3] / "shared"


class ArraySource(VideoSource):
    """Provide videos by name from arrays: frames ``[H,W,3]``, and masks by object or None."""

    def __init__(self, **videos) -> None:
        self.videos = list(videos.values())
        self.names = list(videos)

    def num_frames(self, i):
        return len(self.videos[i])

    def read_frame(self, i, t):
        return self.videos[i][t][0]

    def read_masks(self, i, t):
        return self.videos[i][t][1]


def grey(size=SIZE, value=100):
    return np.full((*size, 3), value, np.uint8)


def write_results(folder: Path, num_frames: int = 6, video: str = "a", objects=(1, 2)) -> Path:
    """Write the ground truth masks of :func:`make_davis` for some of its objects."""
    for t in range(num_frames):
        ids = np.zeros(SIZE, np.uint8)
        for o in objects:
            ids[square(0, 2 * t % 24) if o == 1 else square(12, 20)] = o
        save_palette(folder / video / f"{t:05d}.png", ids)
    return folder


def answers(browser: ClipBrowser, **message) -> list[tuple[dict, list[bytes]]]:
    """Send a message as the view does, and return the messages that the widget sends back."""
    sent: list = []
    browser.send = lambda content, buffers=None: sent.append((content, buffers))
    browser._handle_custom_msg(message, [])
    return sent


def ask_frame(browser: ClipBrowser, t: int, *layers: str):
    message = {"type": "frame", "key": "k", "video": browser.video, "t": t, "layers": layers}
    ((content, buffers),) = answers(browser, **message)
    json.dumps(content)
    frame = np.array(Image.open(io.BytesIO(buffers[0])))
    return content, frame, [np.array(Image.open(io.BytesIO(b))) for b in buffers[1:]]


@pytest.fixture
def browser(tmp_path) -> ClipBrowser:
    """Open two annotated videos and two trackers: ``full`` with both objects, ``half`` with one."""
    runs = {"full": write_results(tmp_path / "full")}
    runs["half"] = write_results(tmp_path / "half", objects=(1,))
    return ClipBrowser(make_davis(tmp_path / "data"), predictions=runs)


def test_initial_layers_are_ground_truth_and_first_tracker(browser):
    assert browser.layers == ["truth", "full", "half"] and browser.videos == ["a", "b"]
    assert (browser.left, browser.right, browser.num_frames) == ("truth", "full", 6)


def test_frame_is_sent_with_the_masks_of_the_requested_layers(browser):
    content, frame, planes = ask_frame(browser, 3, "truth", "half")
    assert content["t"] == 3 and content["key"] == "k" and list(content["size"]) == list(SIZE)
    assert frame.shape == (*SIZE, 3) and abs(int(frame.mean()) - 30) <= 2
    assert [p["layer"] for p in content["planes"]] == ["truth", "half"]
    assert browser.objects == ["1", "2"]
    assert np.array_equal(planes[0] == 1, square(0, 6)) and (planes[0] == 2).any()
    assert np.array_equal(planes[1], square(0, 6))


def test_j_equals_the_scores(browser):
    scores = browser.scores("half")
    scorer = VideoScorer("a", CONVENTIONS["all_frames"], [1, 2])
    for t in range(6):
        truth = browser.source.read_masks(0, t)
        scorer.add(t, truth, {1: truth[1]})
    assert np.array_equal(np.stack(list(scores.values()), 1), scorer.result().J)
    assert scores[1].tolist() == [1] * 6 and scores[2].tolist() == [0] * 6


def test_j_excludes_void_and_is_1_for_two_empty_masks(tmp_path):
    root = make_davis(tmp_path / "data", {"a": 3})
    for t, ids in enumerate((np.zeros(SIZE), 255 * square(0, 0, 4), square(0, 0, 8))):
        save_palette(root / "Annotations" / "a" / f"{t:05d}.png", ids)
        save_palette(tmp_path / "run" / "a" / f"{t:05d}.png", square(0, 0, (0, 4, 4)[t]))
    scores = ClipBrowser(root, predictions={"run": tmp_path / "run"}).scores("run")
    assert scores[1].tolist() == [1, 1, 0.25]


def test_j_is_sent_in_parts(browser):
    sent = []
    while (first := sent[-1]["until"] if sent else 0) < 6:
        ((part, _),) = answers(browser, type="curves", video=0, first=first)
        sent.append(json.loads(json.dumps(part)))
    assert sum((p["J"]["half"]["1"] for p in sent), []) == [0] * 6  # position 1, object 2
    assert sum((p["counted"]["full"] for p in sent), []) == [True] * 6
    ((whole, _),) = answers(browser, type="curves", video=0, first=0)
    assert whole["until"] == 6 and whole["annotated"] == [True] * 6


def test_unannotated_frames_are_marked(tmp_path):
    root = make_davis(tmp_path / "data", {"a": 4}, annotated=lambda t: t % 2 == 0)
    browser = ClipBrowser(root, predictions={"run": write_results(tmp_path / "run", 4)})
    assert ask_frame(browser, 1, "truth", "run")[0]["missing"] == ["truth"]
    scores = browser.scores("run")
    assert np.isnan(scores[1]).tolist() == [False, True, False, True]
    ((part, _),) = answers(browser, type="curves", video=0, first=0)
    assert part["annotated"] == [True, False, True, False]


def test_frame_without_mask_file_is_marked_and_has_no_j(browser, tmp_path):
    (tmp_path / "half" / "a" / "00002.png").unlink()
    assert ask_frame(browser, 2, "half")[0]["missing"] == ["half"]
    assert np.isnan(browser.scores("half")[1]).tolist() == [False] * 2 + [True] + [False] * 3


def test_unreadable_files_are_reported_with_their_frame(browser, tmp_path):
    save_palette(tmp_path / "half" / "a" / "00002.png", np.ones((5, 5)))
    (tmp_path / "data" / "JPEGImages" / "a" / "00003.jpg").write_bytes(b"no image")
    content, frame, planes = ask_frame(browser, 2, "truth", "half")
    assert "5 rows and 5 columns" in content["faults"][0] and len(planes) == 1
    assert "00003.jpg" in ask_frame(browser, 3, "truth")[0]["faults"][0]
    assert not ask_frame(browser, 4, "truth")[0]["faults"]
    first = 0
    for _ in range(4):  # at most one part per frame before the damaged one
        ((part, _),) = answers(browser, type="curves", video=0, first=first)
        first = part["until"]
        if part["fault"]:
            break
    assert "00002.png" in part["fault"] and first == 2
    assert Image.open(io.BytesIO(browser.snapshot())).width > 300


def test_pixel_values_have_one_meaning_in_all_videos(tmp_path):
    """As in an evaluation: 255 is void if the tracker's other masks have object numbers."""
    for video, values in (("a", (1, 2)), ("b", (255, 255))):
        ids = np.zeros(SIZE, np.uint8)
        ids[square(0, 0)], ids[square(12, 20)] = values
        (tmp_path / "run" / video).mkdir(parents=True)
        Image.fromarray(ids).save(tmp_path / "run" / video / "00000.png")
    masks = {1: square(0, 0), 2: square(12, 20)}
    source = ArraySource(**{name: [(grey(), masks)] for name in "ab"})
    for first in "ab":
        browser = ClipBrowser(source, first, predictions={"run": tmp_path / "run"})
        read = browser.video_layers.masks("run", 0, SIZE)
        assert set(read) == ({1, 2} if first == "a" else set())


def test_video_without_predictions_is_rejected_and_the_current_one_remains(browser):
    with pytest.raises(DataError, match="'full'.* video 'b'"):
        browser.show_video("b")
    assert browser.video == 0
    answers(browser, type="open", video=1)
    assert "the video 'b'" in browser.error and browser.video == 0


def test_another_video_begins_with_its_first_frame(tmp_path):
    small, large = grey((8, 8)), grey((1080, 1920))
    masks = {"x": np.ones((8, 8), bool)}
    source = ArraySource(a=[(small, masks)] * 3, b=[(large, {"y": np.zeros((1080, 1920), bool)})])
    browser = ClipBrowser(source)
    browser.frame, browser.hidden = 2, [0]
    ask_frame(browser, 2, "truth")
    assert not answers(browser, type="open", video=1)
    assert (browser.video, browser.frame, browser.hidden, browser.num_frames) == (1, 0, [], 1)
    content, frame, _ = ask_frame(browser, 0, "truth")
    assert frame.shape[:2] == (540, 960) and list(content["size"]) == [1080, 1920]
    assert browser.objects == ["y"]


def test_each_video_plays_at_its_rate():
    source = ArraySource(**dict.fromkeys("abc", [(grey(), {})]))
    source.frame_rate = [12.0, 240.0, 240.0].__getitem__
    browser = ClipBrowser(source)
    assert browser.fps == 12
    browser.show_video(1)
    assert browser.fps == 120  # the maximum
    browser.fps = 5
    browser.show_video(2)
    assert browser.fps == 5  # set by the user
    browser.show_video(0)
    assert browser.fps == 12
    browser = ClipBrowser(source, fps=3)
    browser.show_video(1)
    assert browser.fps == 3


def test_frames_of_a_part_have_the_numbers_of_the_file(monkeypatch):
    part = FrameRange(ArraySource(a=[(grey(), {})] * 9), 6, 9)
    browser, texts = ClipBrowser(part), []
    assert browser.num_frames == 3 and browser.numbers == [6, 7, 8]
    sheet = overlays.contact_sheet
    monkeypatch.setattr(
        overlays, "contact_sheet", lambda *args: texts.extend(args[4]) or sheet(*args)
    )
    browser.frame = 1
    browser.snapshot()
    headings = [text.splitlines()[0] for text in texts]
    assert headings == ["frame 6", "frame 7 (shown)", "frame 8"]
    assert ClipBrowser(part.source).numbers == []


@pytest.mark.parametrize("video", ["c", 2, -1])
def test_unknown_video(browser, video):
    with pytest.raises(DataError, match="0 to 1") as error:
        browser.show_video(video)
    assert (error.value.key, error.value.value) == ("video", video)


def test_traits_reject_invalid_values(browser):
    for name, value in {"frame": 6, "left": "other", "opacity": 2.0}.items():
        with pytest.raises(traitlets.TraitError):
            setattr(browser, name, value)


def test_missing_directory_and_reserved_name(tmp_path):
    with pytest.raises(DataError) as error:
        open_results({"run": tmp_path / "nowhere"})
    assert error.value.key == "predictions['run']"
    assert error.value.value == str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="'truth' is .*reserved") as error:
        open_results({"truth": tmp_path})
    assert error.value.key == "predictions"


@pytest.fixture
def evaluated(tmp_path) -> Path:
    """Write the files of an evaluation of two trackers; the video has special characters."""
    run, video = tmp_path / "run", "one/ünï"
    masks = [{1: square(0, 2 * t), "two": square(2, 0, 20)} for t in range(2)]
    for tracker in ("after training", "copy, first"):
        writer = MaskWriter(None, video, [1, "two"])
        scorer = VideoScorer(video, CONVENTIONS["prompted"], [1, "two"])
        for t, truth in enumerate(masks):
            predicted = truth if tracker == "copy, first" else {1: truth[1]}
            scorer.add(t, truth, predicted)
            writer.add(f"{t:05d}", predicted, SIZE)
        scores = {"made_of": {}, "scores": scorer.result().to_dict()}
        for kind, document in (("scores", scores), ("sav", writer.sav())):
            save_json(run / kind / file_name(tracker) / f"{file_name(video)}.json", document)
    content = {"trackers": {"after training": {}, "copy, first": {}, "without masks": {}}}
    save_json(run / "metrics.json", content)
    return run


def test_trackers_and_stored_scores_of_an_evaluation(evaluated, monkeypatch):
    masks = {1: square(0, 0), "two": square(2, 0, 20)}
    source = ArraySource(**{"one/ünï": [(grey(), masks)] * 2})
    browser = ClipBrowser(source, predictions={"run": evaluated})
    assert browser.layers == ["truth", "run, after training", "run, copy, first"]
    planes = ask_frame(browser, 1, "run, copy, first")[2]  # two, since the masks overlap
    assert np.array_equal(planes[0] == 1, square(0, 2))
    assert np.array_equal(planes[1] == 2, square(2, 0, 20))
    monkeypatch.setattr(VideoLayers, "measure", lambda *_: pytest.fail("measured again"))
    scores = browser.scores("run, after training")
    assert {o: row.tolist() for o, row in scores.items()} == {1: [1, 1], "two": [0, 0]}
    (evaluated / "metrics.json").unlink()  # as in an interrupted evaluation
    names = [r.name for r in open_results({"run": evaluated})]
    assert names == ["run, after training", f"run, {file_name('copy, first')}"]
    with pytest.raises(DataError, match="2 frames.*'one/ünï' has 1"):
        ClipBrowser(ArraySource(**{"one/ünï": [(grey(), {})]}), predictions={"run": evaluated})


def test_label_planes_with_overlaps_and_more_than_255_objects():
    whole, part = np.ones((4, 4), bool), np.eye(4, dtype=bool)
    (one, two) = label_planes({0: whole, 1: part})
    assert one[0] == two[0] == 0 and (one[1] == 1).all() and np.array_equal(two[1] == 2, part)
    rows = {n: np.arange(400).reshape(20, 20) == n for n in range(300)}
    (first, second) = label_planes(rows)
    assert (first[0], first[1].max(), second[0]) == (0, 255, 1)
    assert np.argwhere(second[1] == 300 - 255).tolist() == [[14, 19]]


def test_unannotated_source_with_one_frame(tmp_path):
    folder = make_davis(tmp_path, {"a": 1}) / "JPEGImages" / "a"
    browser = ClipBrowser(FrameFolder(folder))
    assert browser.layers == [] and browser.left == browser.right == ""
    content, _, planes = ask_frame(browser, 0)
    assert not planes and not content["missing"]
    assert Image.open(io.BytesIO(browser.snapshot())).height > 50
    results = ClipBrowser(FrameFolder(folder), predictions={"run": write_results(tmp_path, 1)})
    assert results.layers == ["run"]
    ask_frame(results, 0, "run")
    assert results.objects == ["1", "2"] and np.isnan(results.scores("run")[1]).all()


def write_prompts(path: Path, *entries: dict, size=(48, 64)) -> Path:
    content = {"version": 1, "image_size": size, "prompts": list(entries)}
    path.write_text(json.dumps(content))
    return path


def test_prompts_of_a_file_are_scaled_to_the_frames(browser, tmp_path):
    data = tmp_path / "data"
    head = {"video": "a", "object_id": 2, "frame_index": 1}
    click = head | {"kind": "point", "points": [[10, 20]], "labels": [1]}
    box = head | {"kind": "box", "box": [0, 0, 63, 47]}
    mask = head | {"object_id": 7, "kind": "mask", "mask": compressed(square(8, 16, 8, (48, 64)))}
    path = write_prompts(tmp_path / "prompts.json", click, box, mask)
    browser = ClipBrowser(data, prompts=path)
    assert browser.objects == ["2", "7"]
    marks = {m["object"] * 10 + len(m.get("points", [])): m for m in browser.marks}
    assert np.allclose(marks[1]["points"], [[4.75, 9.75]], atol=1e-3)
    assert np.allclose(marks[2]["points"], [[-0.25, -0.25], [31.25, 23.25]], atol=1e-3)
    outline = np.array(marks[10]["outline"][0])
    assert marks[10]["frame"] == 1 and outline.min(0).tolist() == [7.75, 3.75]
    browser.show_video("b")
    assert not browser.marks
    other = write_prompts(path, head | {"video": "c", "kind": "box", "box": [0, 0, 1, 1]})
    with pytest.raises(DataError, match="no prompts for"):
        ClipBrowser(data, prompts=other)


def test_prompts_of_a_list(tmp_path):
    data = make_davis(tmp_path, {"a": 2})
    labels = torch.ones(1, 1, dtype=torch.int32)
    prompt = Prompt(0, torch.tensor([1]), points=torch.tensor([[[24.0, 16.0]]]), labels=labels)
    (mark,) = ClipBrowser(data, prompts=[prompt]).marks
    assert mark == {"frame": 0, "object": 1, "points": [[24.0, 16.0]], "labels": [1]}
    with pytest.raises(DataError) as error:
        ClipBrowser(data, prompts=[prompt], object_ids=["one"])
    assert (error.value.key, error.value.value) == ("object_ids", ["one"])


def test_static_image_shows_the_current_state(browser):
    def count_colored_pixels():
        image = np.array(Image.open(io.BytesIO(browser.snapshot())).convert("RGB"))
        return int(((image.max(2).astype(int) - image.min(2)) > 60).sum())

    both = count_colored_pixels()
    assert both > 3000
    browser.hidden = [1]
    assert count_colored_pixels() < 0.7 * both
    browser.show_masks = False
    assert count_colored_pixels() == 0
    bundle = browser._repr_mimebundle_()[0]
    assert "image/png" in bundle and "application/vnd.jupyter.widget-view+json" in bundle


@pytest.mark.skipif(not (SHARED / "davis").is_dir(), reason="shared/davis is missing")
def test_j_equals_the_official_evaluation():
    reference = json.loads((SHARED / "davis" / "osvos_reference.json").read_text())
    runs = {"osvos": SHARED / "davis" / "Predictions" / "osvos"}
    browser = ClipBrowser(SHARED / "davis", "car-shadow", predictions=runs)
    J = browser.scores("osvos")[1]
    assert np.abs(J - reference["sequences"]["car-shadow"]["J"]).max() < 5.001e-7


@pytest.mark.skipif(not (SHARED / "video").is_dir(), reason="shared/video is missing")
def test_a_video_file():
    browser = ClipBrowser(SHARED / "video" / "juggle.mp4")
    assert browser.num_frames > 200 and browser.fps > 20 and browser.layers == []
    _, frame, _ = ask_frame(browser, browser.num_frames - 1)
    whole = browser.source.read_frame(0, browser.num_frames - 1)
    small = cv2.resize(whole, frame.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(frame.astype(int) - small).mean() < 6


@pytest.mark.browser
def test_view_in_jupyterlab(lab, browser, tmp_path):
    runs = {name: str(tmp_path / name) for name in ("full", "half")}
    book = lab.open(
        "browser",
        "from sam2kit.widgets.clip_browser import ClipBrowser",
        f"browser = ClipBrowser({str(tmp_path / 'data')!r}, predictions={runs!r}, fps=2)\nbrowser",
    )
    root = book.wait(".sam2kit-clip[data-ready='true']")
    canvas = root.locator("canvas")

    def kernel_has(expression, value):
        # A view shows a change before the kernel has received it.
        deadline = time.monotonic() + 60
        while book.kernel(expression) != value and time.monotonic() < deadline:
            book.page.wait_for_timeout(50)
        assert book.kernel(expression) == value

    def shows(t):
        book.until(f"e => e.dataset.frame === '{t}' && e.dataset.playing !== 'true'", root)
        kernel_has("browser.frame", t)
        assert root.locator(".position").inner_text() == f"frame {t} of 0–5"
        assert abs(book.pixel(canvas, 0.1, 0.9)[0] - 10 * t) <= 3  # frame t is grey with value 10 t

    def saturation():  # at a pixel of the second object; 0 is grey
        red, green, blue = book.pixel(canvas, 0.75, 0.66)
        return max(red, green, blue) - min(red, green, blue)

    shows(0)
    root.press("ArrowRight")
    shows(1)
    root.locator("input.frames").fill("4")
    shows(4)
    root.press("Home")
    shows(0)
    root.press(" ")
    book.until("e => e.dataset.playing === 'true'", root)
    shows(5)  # playback stops at the last frame

    opaque = saturation()
    assert opaque > 60
    book.after(root, lambda: root.press("2"))
    kernel_has("browser.hidden", [1])
    assert saturation() < 5
    book.after(root, lambda: root.press("2"))
    kernel_has("browser.hidden", [])
    assert saturation() == opaque
    book.after(root, lambda: root.get_by_title("Mask opacity").fill("0.2"))
    kernel_has("browser.opacity", 0.2)
    assert 5 < saturation() < 0.7 * opaque
    book.after(root, lambda: root.press("m"))
    kernel_has("browser.show_masks", False)
    assert saturation() < 5
    root.press("m")

    root.get_by_title("Layer on the left side").select_option("full")
    root.get_by_title("Layer on the right side").select_option("half")
    book.until("e => e.querySelector('.legend').textContent.includes('half: J 0.50')", root)
    book.until("e => e.dataset.measured === '6'", root)
    kernel_has("[browser.left, browser.right]", ["full", "half"])
    book.until('e => e.dataset.layers === \'["full","half"]\'', root)
    assert saturation() < 5  # the right layer does not contain the second object
    box = canvas.bounding_box()
    middle = box["y"] + box["height"] / 2
    book.page.mouse.move(box["x"] + 0.5 * box["width"], middle)
    book.page.mouse.down()
    book.after(root, lambda: book.page.mouse.move(box["x"] + 0.9 * box["width"], middle))
    book.page.mouse.up()
    kernel_has("abs(browser.swipe - 0.9) < 0.01", True)
    assert saturation() > 5

    root.press("+")
    book.until("e => Number(e.dataset.zoom) > 1", root)
    book.page.mouse.wheel(0, -300)
    book.until("e => Number(e.dataset.zoom) > 1.3", root)
    root.press("f")
    book.until("e => e.dataset.zoom === '1.00'", root)
    root.press("?")
    assert "first, last frame" in root.locator(".help").inner_text()
    root.press("Escape")
    assert root.locator(".help").is_hidden()
    root.locator("input.frames").press("ArrowLeft")  # the slider has the focus
    shows(4)
    root.press("ArrowRight")
    shows(5)

    chart = root.locator(".chart")
    size = chart.bounding_box()
    chart.click(position={"x": 0.41 * size["width"], "y": size["height"] / 2})
    shows(2)

    root.get_by_title("Video a").select_option("b")
    book.until("e => e.querySelector('.error').textContent.includes(\"video 'b'\")", root)
    kernel_has("browser.video", 0)
