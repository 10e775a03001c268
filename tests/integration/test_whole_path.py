"""From a raw video to a tuned model, in the annotator and on the command line, without a detour."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from browser_helpers import View
from data_helpers import make_davis
from PIL import Image

from sam2kit import Annotator
from sam2kit.cli.main import main
from sam2kit.data.build import open_source
from sam2kit.prompts.geometry import mask_center
from sam2kit.viz.video_writer import save_mp4

SAMPLES = Path(__file__).parents[1] / "blobs"
QUICK = ["trainer.max_steps=2", "dataset.num_workers=0", "trainer.accelerator=cpu"]
CLIP = "train_000"


def back_and_forth(num_frames: int) -> list[int]:
    """Return the frames of an 8-frame clip that is played forwards and backwards."""
    period = [*range(8), *range(6, 0, -1)]
    return [period[t % len(period)] for t in range(num_frames)]


@pytest.fixture
def film(lab) -> Path:
    """An MP4 without masks, in a folder of its own below the root of JupyterLab."""
    folder = lab.root / "films"
    folder.mkdir()
    frames = sorted((SAMPLES / "JPEGImages" / CLIP).iterdir())
    save_mp4(folder / "film.mp4", [np.array(Image.open(frames[t])) for t in back_and_forth(28)])
    return folder


def other_film(folder: Path) -> Path:
    frames = sorted((SAMPLES / "JPEGImages" / "train_001").iterdir())[:4]
    save_mp4(folder / "new.mp4", [np.array(Image.open(frame)) for frame in frames])
    return folder / "new.mp4"


def centers(t: int) -> list[tuple[int, int]]:
    """Return the centre of each object on a frame of the video, x before y."""
    source = open_source(SAMPLES)
    masks = source.read_masks(source.names.index(CLIP), back_and_forth(t + 1)[-1])
    return [mask_center(mask) for _, mask in sorted(masks.items())]


def shown_command(view: View) -> list[str]:
    """Press *Make training set* and return the arguments of the command that the widget shows."""
    if view.button("close-report").is_visible():
        view.act(view.button("close-report").click)
    view.button("training-set").click()
    view.until("e => e.querySelector('.report').textContent.includes('sam2kit train')")
    command = view.root.locator(".report code").last.inner_text()
    program, *arguments = shlex.split(command)
    assert program == "sam2kit"
    return arguments


def track(view: View, tracked: int) -> None:
    view.root.press("t")
    view.counts("tracked", tracked)
    view.until("e => e.dataset.running === 'false'")


def evaluate(run_dir: Path) -> dict:
    """Score a run beside the model before training, and return the scores of each tracker."""
    folder = run_dir / "evaluation"
    assert main(["evaluate", "--model-checkpoint", str(run_dir), "--output-dir", str(folder)]) == 0
    assert (folder / "report.html").is_file()
    return json.loads((folder / "metrics.json").read_text())["trackers"]


@pytest.mark.browser
def test_from_a_raw_video_to_a_tuned_model(lab, film, tmp_path, monkeypatch, capsys):
    start = time.monotonic()
    monkeypatch.chdir(lab.root)
    nano = ["--model-checkpoint", "nano", "--run-dir", "outputs/films"]
    assert main(["annotate", "films", *nano, "--no-lab"]) == 0
    notebook = Path(capsys.readouterr().out.strip())

    # Open the annotator, click two objects, track.
    view = View(lab.show(notebook.relative_to(lab.root).as_posix()))
    (first, second) = centers(0)
    view.click(*first)
    view.act(lambda: view.button("add").click())
    view.click(*second)
    view.counts("prompted", 1)
    track(view, 28)

    # Correct a frame, track again, accept every second frame, make the training set, train.
    view.root.locator(".frame-slider").fill("8")
    view.until("e => e.dataset.frame === '8'")
    view.click(*centers(8)[1])
    view.counts("corrected", 1)
    track(view, 28)
    view.button("every").fill("2")
    view.button("accept-all").click()
    view.counts("accepted", 14)
    command = shown_command(view)
    assert command[:2] == ["train", "--data-path"] and command[3:] == [
        *("--model-checkpoint", "nano"),
        *("--image-size", "192", "dataset.clips_per_video=40"),
    ]
    tuned = lab.root / "outputs" / "tuned"
    assert main([*command, "--run-dir", str(tuned), *QUICK]) == 0
    before = evaluate(tuned)["before training"]
    assert 0 < before["J&F"] <= 1

    # Open the tuned model, correct another frame, add to the training set, train again.
    view.button("model").fill("outputs/tuned")
    view.button("model").press("Enter")
    view.kernel_has("str(annotator._model_text)", "outputs/tuned")
    view.until("e => !e.querySelector('.status').textContent.includes('opening')")
    view.root.locator(".frame-slider").fill("13")
    view.until("e => e.dataset.frame === '13'")
    view.click(*centers(13)[0])
    view.counts("corrected", 2)
    view.press("a")
    view.counts("accepted", 15)
    command = shown_command(view)
    report = view.root.locator(".report").inner_text()
    assert "1 frame added" in report and "14 unchanged" in report
    again = lab.root / "outputs" / "again"
    assert command[4] == "outputs/tuned"
    assert main([*command, "--run-dir", str(again), *QUICK]) == 0
    assert "before training" in evaluate(again)

    # Use the result on another video.
    box = ["--box", "10,10,60,60", "--model-checkpoint", str(again), "--output-dir", "outputs/new"]
    assert main(["track", str(other_film(lab.root)), *box]) == 0
    assert len(list((lab.root / "outputs" / "new" / "masks").glob("*/*.png"))) == 4
    print(f"the whole path took {time.monotonic() - start:.0f} s")


@pytest.mark.parametrize("kind", ["corrections", "masks on every fifth frame"])
def test_sparse_annotations_train_the_memory(tmp_path, kind, capsys):
    """Every clip has an annotated frame after the prompted one, so the audit finds gradients."""
    argv = ["--run-dir", str(tmp_path / "run"), "--model-checkpoint", "nano", "--image-size", "64"]
    if kind == "corrections":
        for name, clip in (("a", CLIP), ("b", "train_001")):
            frames = sorted((SAMPLES / "JPEGImages" / clip).iterdir())
            pictures = [np.array(Image.open(frames[t])) for t in back_and_forth(21)]
            (tmp_path / "films").mkdir(exist_ok=True)
            save_mp4(tmp_path / "films" / f"{name}.mp4", pictures)
        annotator = Annotator(tmp_path / "films", "nano", run_dir=tmp_path / "by_hand")
        for video in annotator.source.names:
            annotator.open_video(video)
            for t in (0, 10, 20):
                annotator.go(t)
                annotator.box(40, 30, 100, 90)
                annotator.append()
        argv.append(f"dataset.corrections='{tmp_path / 'by_hand' / 'corrections.jsonl'}'")
        data = tmp_path / "films"
    else:
        data = make_davis(tmp_path / "davis", {"a": 16, "b": 16}, annotated=lambda t: t % 5 == 0)
    assert main(["train", "--data-path", str(data), *argv, *QUICK]) == 0
    assert (tmp_path / "run" / "best.ckpt").exists()


def test_training_on_films_without_masks_names_the_choices(tmp_path, capsys):
    save_mp4(tmp_path / "a.mp4", [np.full((32, 32, 3), 20 * t, np.uint8) for t in range(6)])
    argv = ["train", "--data-path", str(tmp_path), "--model-checkpoint", "nano", "--run-dir"]
    assert main([*argv, str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert "annotate" in message and "dataset.synthetic_objects" in message
    assert not (tmp_path / "run").exists()
