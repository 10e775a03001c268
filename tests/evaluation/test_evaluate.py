"""Test evaluations of whole videos: their files, resuming, and masks of other trackers."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import SIZE, make_davis, make_textured, save_frame, save_palette, square
from loguru import logger

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config
from sam2kit.data.fingerprint import FrameHasher
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.evaluation import scored_split, statistics
from sam2kit.evaluation.evaluate import (
    AFTER,
    BEFORE,
    CALIBRATED,
    COPY,
    ZEROED,
    checkpoint_runs,
    evaluate,
    evaluate_checkpoint,
    evaluate_predictions,
)
from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.predictions import score_predictions
from sam2kit.evaluation.prompt_protocols import PromptProtocol
from sam2kit.evaluation.report import Evaluation, write_results
from sam2kit.evaluation.scores import CONVENTIONS
from sam2kit.evaluation.tracker_runs import ResultFiles, TrackerRun, calibrate
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.utils.errors import ConfigError, DataError

DAVIS = Path(__file__).parents[3] / "shared" / "davis"


@pytest.fixture
def config(tiny_config, tmp_path):
    make_davis(tmp_path / "val", {"a": 4, "b": 5})
    tiny_config.dataset.type = "video"
    tiny_config.dataset.data_path = str(make_davis(tmp_path / "train", {"c": 3, "d": 3}))
    tiny_config.valdataset.data_path = str(tmp_path / "val")
    tiny_config.trainer.accelerator = "cpu"
    return tiny_config


@pytest.fixture
def runs(config):
    return [TrackerRun(AFTER, build_sam2_model(config)), TrackerRun(COPY, None)]


def test_saved_masks_have_the_reported_scores(config, runs, tmp_path):
    evaluation = evaluate(config, runs, tmp_path / "out")
    write_results(evaluation)
    source, files = evaluation.source, evaluation.files
    for tracker in evaluation.trackers:
        for i, video in enumerate(tracker.videos):
            for t in range(source.num_frames(i)):
                saved, truth = files.masks(tracker.tracker, video.name, t), source.read_masks(i, t)
                expected = [iou(saved[o], truth[o]) for o in video.object_ids]
                assert video.J[t] == pytest.approx(np.array(expected))
            assert not video.scored[0].any() and video.scored[1:].all()
    copied = evaluation.trackers[1].videos[0]
    # The object is 8 pixels wide and moves by 2 pixels per frame.
    assert copied.J[:, 0] == pytest.approx([1, 3 / 5, 1 / 3, 1 / 7])
    assert (copied.J[:, 1] == 1).all()
    # The folder of masks can be scored like the results of any tracker, with equal scores.
    masks = tmp_path / "out" / "masks" / COPY
    rescored = score_predictions(source, masks, CONVENTIONS["prompted"])
    assert np.array_equal(rescored.videos[1].J, evaluation.trackers[1].videos[1].J)


def test_all_result_files_are_written(config, runs, tmp_path):
    write_results(evaluate(config, runs, tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["schema_version"] == 2 and metrics["convention"]["name"] == "prompted"
    assert metrics["tracker"] == AFTER and list(metrics["trackers"]) == [AFTER, COPY]
    assert metrics["protocol"]["protocol"] == "mask" and metrics["seed"] == config.seed
    assert set(metrics["videos"]) == {"a", "b"}
    assert set(metrics["videos"]["a"]["objects"]) == {"1", "2"}
    difference = metrics["trackers"][AFTER]["J&F"] - metrics["trackers"][COPY]["J&F"]
    assert metrics["differences"][COPY]["mean"] == pytest.approx(difference)
    assert metrics["trackers"][AFTER]["J&F_interval"] == [None, None]  # of two videos
    with (tmp_path / "objects.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 4
    coco = json.loads((tmp_path / "coco" / f"{COPY}.json").read_text())
    assert len(coco["images"]) == 9 and len(coco["annotations"]) == 18
    assert (tmp_path / "sav" / AFTER / "a.json").exists()
    files = {f"{video}.{ending}" for video in "ab" for ending in ("png", "pdf", "mp4")}
    assert {p.name for p in (tmp_path / "overlays").iterdir()} == files
    assert AFTER in (tmp_path / "report.html").read_text()
    assert (tmp_path / "overlay.gif").exists() and (tmp_path / "overlay.png").exists()


def test_each_interval_and_difference_is_computed_once(config, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        statistics,
        "mean_interval",
        lambda groups, bounded: calls.append(bounded) or (0.0, 1.0),
    )
    evaluation = evaluate(config, [TrackerRun(name, None) for name in "abcd"], tmp_path)
    write_results(evaluation)
    assert calls == [True] * 4 + [False] * 3  # four trackers and three differences
    with pytest.raises(FrozenInstanceError):
        evaluation.trackers = []


def test_an_interrupted_evaluation_resumes_with_equal_results(config, runs, tmp_path, monkeypatch):
    config.evaluation.protocol, config.evaluation.clicks = "clicks", 2
    config.evaluation.noise, config.evaluation.noise_levels = 0.1, [0.2]
    monkeypatch.setattr(scored_split, "describe", lambda source: [])  # reads frames to hash them
    write_results(evaluate(config, runs, tmp_path / "whole"))
    read, frames = VideoDataset.read_frame, []

    def interrupted(self, i, t):
        frames.append((i, t))
        if frames[-1] == (1, 3):
            raise KeyboardInterrupt
        return read(self, i, t)

    monkeypatch.setattr(VideoDataset, "read_frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, runs, tmp_path / "parts")
    assert not (tmp_path / "parts" / "metrics.json").exists()
    frames.clear()
    monkeypatch.setattr(
        VideoDataset, "read_frame", lambda self, i, t: frames.append((i, t)) or read(self, i, t)
    )
    evaluation = evaluate(config, runs, tmp_path / "parts")
    assert {i for i, _ in frames} == {1}  # the completed video is not tracked again
    write_results(evaluation)
    # Compare the files with results; the page also names the folder.
    for file in sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")):
        if (tmp_path / "whole" / file).is_file() and file.suffix != ".html":
            assert (tmp_path / "parts" / file).read_bytes() == (
                tmp_path / "whole" / file
            ).read_bytes(), file


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": "box"},
        {"noise": 0.3},
        {"convention": "all_frames"},
        {"reprompt_every": 2},
        {"tracker": {"max_cond_frames": 1}},
        {},
    ],
    ids=str,
)
def test_scores_of_other_settings_are_stale(config, tmp_path, monkeypatch, change):
    copied = TrackerRun(COPY, None)
    source = VideoDataset(config.valdataset.data_path)
    ResultFiles(tmp_path, config).scores(copied, source, 0, [1, 2])
    for key, value in change.items():
        setattr(config.evaluation, key, value)
    tracked = []
    score = TrackerRun.score
    monkeypatch.setattr(
        TrackerRun, "score", lambda self, *a, **k: tracked.append(a) or score(self, *a, **k)
    )
    ResultFiles(tmp_path, config).scores(copied, source, 0, [1, 2])
    assert bool(tracked) == bool(change)


def test_scores_of_other_frames_or_masks_are_stale(config, tmp_path, monkeypatch):
    copied = TrackerRun(COPY, None)
    root = Path(config.valdataset.data_path)
    tracked = []
    score = TrackerRun.score
    monkeypatch.setattr(
        TrackerRun, "score", lambda self, *a, **k: tracked.append(a) or score(self, *a, **k)
    )

    def again():
        tracked.clear()
        source = VideoDataset(root)
        ResultFiles(tmp_path / "out", config).scores(copied, source, 0, [1, 2])
        return bool(tracked)

    assert again() and not again()
    frames, masks = (sorted((root / k / "a").iterdir()) for k in ("JPEGImages", "Annotations"))
    os.utime(frames[0], (1, 1))  # copied: other time stamps, the same content
    assert not again()
    for first, second in (frames[1:3], masks[1:3]):
        first.rename(root / "x")
        second.rename(first)
        (root / "x").rename(second)
        assert again() and not again()


def test_masks_that_an_evaluation_did_not_write_are_not_deleted(config, runs, tmp_path):
    mine = tmp_path / "out" / "masks" / AFTER / "a" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    evaluate(config, runs, tmp_path / "out")
    assert mine.read_bytes() == b"mine"


def test_a_video_whose_masks_were_deleted_is_tracked_again(config, runs, tmp_path):
    evaluate(config, runs[:1], tmp_path)
    (file,) = (tmp_path / "sav").rglob("a.json")
    content = file.read_bytes()
    file.unlink()
    evaluate(config, runs[:1], tmp_path)
    assert file.read_bytes() == content


def test_the_identity_depends_on_the_weights(config):
    model = build_sam2_model(config)
    original = TrackerRun("x", model).identity
    assert TrackerRun("x", model, zero_memory=True).identity != original
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert TrackerRun("x", model).identity != original


def test_the_result_has_robustness_and_calibration(config, runs, tmp_path):
    config.evaluation.protocol = "box"
    config.evaluation.noise_levels = [0.5, 0.1]
    config.evaluation.calibration_videos = 1
    evaluation = evaluate(config, runs, tmp_path)
    metrics = evaluation.metrics
    assert metrics["robustness"][AFTER]["noise"] == [0.1, 0.5]
    assert all(0 <= x <= 1 for x in metrics["robustness"][AFTER]["J&F"])
    assert COPY not in metrics["robustness"]
    chosen = metrics["calibration"]
    assert chosen["videos"] == ["c"] and -4 <= chosen["mask_threshold"] <= 4
    assert list(metrics["trackers"]) == [AFTER, COPY, CALIBRATED]


def test_calibration_finds_the_shift_of_the_logits(config):
    class Shifted(TrackerRun):
        """Predict the ground truth with logits of -1 inside the object and -3 outside."""

        def track(self, source, i, config, noise=None):
            for frame in TrackerRun(COPY, None).track(source, i, config):
                tracks = frame.tracks
                truth = np.stack([frame.truth[o] for o in frame.objects])
                tracks.mask_logits = torch.from_numpy(np.where(truth, -1.0, -3.0)).float()
                tracks.object_score = torch.ones(len(truth))
                yield frame

    source = VideoDataset(config.dataset.data_path)
    mask, present = calibrate(Shifted("shifted", None), source, [0, 1], config)
    assert -3 <= mask < -1 and present == 0


@pytest.mark.parametrize(("convention", "expected"), [("prompted", -2.75), ("davis2017", -1.25)])
def test_calibration_treats_void_pixels_as_the_scores_do(config, tmp_path, convention, expected):
    class Uncertain(TrackerRun):
        """Predict logits of -2.5 in void pixels and in half of the object, -1 in the other half."""

        def track(self, source, i, config, noise=None):
            for frame in TrackerRun(COPY, None).track(source, i, config):
                logits = np.where(frame.void | square(0, 0), -2.5, -9.0)
                logits[square(0, 0) & square(0, 4)] = -1.0
                frame.tracks.mask_logits = torch.from_numpy(logits[None]).float()
                frame.tracks.object_score = torch.ones(1)
                yield frame

    for t in range(4):
        ids = np.where(square(8, 8, 16), 255, square(0, 0))
        save_frame(tmp_path / "JPEGImages" / "v" / f"{t:05d}.jpg", 0)
        save_palette(tmp_path / "Annotations" / "v" / f"{t:05d}.png", ids)
    config.evaluation.convention = convention
    source = VideoDataset(tmp_path)
    assert calibrate(Uncertain("uncertain", None), source, [0], config) == (expected, 0)


def test_thresholds_change_the_masks(config):
    source = VideoDataset(config.valdataset.data_path)
    assert (
        np.nanmin(TrackerRun("x", None, mask_threshold=10.5).score(source, 0, [1, 2], config).J)
        == 0
    )
    model = build_sam2_model(config)
    scores = TrackerRun("x", model, object_threshold=1e9).score(source, 0, [1, 2], config)
    assert not scores.predicted_present.any()


def test_calibrating_on_validation_videos_is_rejected(config, runs, tmp_path):
    config.dataset.data_path = config.valdataset.data_path
    config.evaluation.calibration_videos = 1
    with pytest.raises(ConfigError, match="'a'") as error:
        evaluate(config, runs, tmp_path)
    assert error.value.key == "evaluation.calibration_videos"
    assert "valdataset.split" in error.value.hint


def test_calibration_videos_are_recognised_by_their_frames(config, runs, tmp_path, monkeypatch):
    """Other datasets have videos of the same names, and copies may have other names."""
    config.dataset.data_path = str(make_textured(tmp_path / "one", {"a": 4, "b": 4}))
    data = make_textured(tmp_path / "two", {"c": 4, "d": 4})
    for folder in (data / "JPEGImages", data / "Annotations"):
        (folder / "c").rename(folder / "a")
    config.valdataset.data_path, config.evaluation.calibration_videos = str(data), 1
    hashed, digest = [], FrameHasher.__call__
    monkeypatch.setattr(
        FrameHasher, "__call__", lambda self, *at: hashed.append(at) or digest(self, *at)
    )
    evaluation = evaluate(config, runs, tmp_path / "out")
    assert evaluation.metrics["calibration"]["videos"] == ["a"]
    assert len(set(hashed)) == len(hashed) > 0  # decoding a frame may take long
    for folder in ("JPEGImages", "Annotations"):
        shutil.copytree(tmp_path / "one" / folder / "a", data / folder / "copy")
    with pytest.raises(ConfigError, match="'a'.*'copy'") as error:
        evaluate(config, runs, tmp_path / "again")
    assert error.value.key == "evaluation.calibration_videos"


def test_unknown_tracker_options_are_rejected(config, runs, tmp_path):
    config.evaluation.tracker = {"max_cond": 3}
    with pytest.raises(ConfigError, match="max_cond") as error:
        evaluate(config, runs, tmp_path)
    assert error.value.key == "evaluation.tracker"
    assert error.value.value == {"max_cond": 3} and error.value.hint
    config.evaluation.tracker = {"pil_bicubic": False}
    with pytest.raises(ConfigError, match="pil_bicubic=False is no longer supported") as error:
        evaluate(config, runs, tmp_path)
    assert error.value.key == "evaluation.tracker"


def test_other_checkpoints_are_compared(config, tmp_path):
    from sam2kit.models.checkpoints import save_weights

    save_weights(build_sam2_model(config), tmp_path / "mine.pt")
    config.evaluation.compare = {"shipped nano": "nano"}
    runs = checkpoint_runs(config, str(tmp_path / "mine.pt"), has_start=True)
    assert [run.name for run in runs] == [AFTER, BEFORE, ZEROED, COPY, "shipped nano"]
    assert runs[0].model is runs[2].model and runs[4].model.image_size == 192
    config.evaluation.compare = {COPY: "nano"}
    with pytest.raises(ConfigError) as error:
        checkpoint_runs(config, str(tmp_path / "mine.pt"), has_start=False)
    assert (error.value.key, error.value.value) == ("evaluation.compare", COPY)


def test_videos_without_objects_are_skipped_and_data_without_any_is_rejected(config, tmp_path):
    root = Path(config.valdataset.data_path)
    for t in range(4):
        save_palette(root / "Annotations" / "a" / f"{t:05d}.png", np.zeros(SIZE, np.uint8))
    copied = [TrackerRun(COPY, None)]
    assert [v.name for v in evaluate(config, copied, tmp_path).trackers[0].videos] == ["b"]
    for t in range(5):
        save_palette(root / "Annotations" / "b" / f"{t:05d}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="no frame of the videos is scored"):
        evaluate(config, copied, tmp_path)


def test_an_object_that_appears_later_is_scored_after_its_prompt(config, tmp_path):
    root = tmp_path / "late"
    for t in range(5):
        save_frame(root / "JPEGImages" / "v" / f"{t}.jpg", 10 * t)
        ids = np.zeros(SIZE, np.uint8)
        ids[square(0, 2 * t)] = 1
        if t >= 2:
            ids[square(12, 20)] = 9
        save_palette(root / "Annotations" / "v" / f"{t}.png", ids)
    config.valdataset.data_path = str(root)
    config.evaluation.reprompt_every = 3
    scores = evaluate(config, [TrackerRun(COPY, None)], tmp_path).trackers[0].videos[0]
    assert scores.scored.T.tolist() == [[False, True, True, False, True], [False] * 3 + [True] * 2]
    assert scores.J[4, 0] == pytest.approx(3 / 5)  # copied again from frame 3


@pytest.mark.skipif(not DAVIS.is_dir(), reason="needs DAVIS and the OSVOS masks")
def test_the_command_gives_osvos_the_scores_of_the_official_package(tmp_path, capsys):
    folder = DAVIS / "Predictions" / "osvos"
    reference = json.loads((DAVIS / "osvos_reference.json").read_text())
    names = [p.name for p in folder.iterdir() if p.is_dir()][:2]
    (tmp_path / "split.txt").write_text("\n".join(names))
    argv = ["evaluate", "--predictions", str(folder), "--data-path", str(DAVIS)]
    split = [f"valdataset.split='{tmp_path / 'split.txt'}'", "dataset.type=video"]
    assert main([*argv, "--output-dir", str(tmp_path / "out"), *split]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["convention"]["name"] == "davis2016" and metrics["tracker"] == "osvos"
    for name in names:
        sequence = reference["sequences"][name]
        for score in ("J", "F"):
            assert metrics["videos"][name][score] == pytest.approx(
                sequence[f"{score}_mean"], abs=1e-6
            )


def test_predictions_are_scored_under_a_named_convention(config, tmp_path):
    overrides = [f"valdataset.data_path='{config.valdataset.data_path}'", "dataset.type=video"]
    folder = Path(config.valdataset.data_path) / "Annotations"
    evaluation = evaluate_predictions(folder, overrides, tmp_path / "out")
    assert isinstance(evaluation, Evaluation) and evaluation.scores == {"Annotations": 1.0}
    named = [*overrides, "evaluation.convention=all_frames"]
    evaluation = evaluate_predictions(folder, named, tmp_path / "out")
    assert evaluation.metrics["convention"]["name"] == "all_frames"
    assert evaluation.metrics["protocol"] is None


def test_predictions_without_a_scored_frame_are_rejected(tmp_path):
    root = tmp_path / "stills"
    save_frame(root / "JPEGImages" / "v" / "0.jpg", 10)
    save_palette(root / "Annotations" / "v" / "0.png", np.eye(*SIZE, dtype=np.uint8))
    overrides = [f"valdataset.data_path='{root}'", "dataset.type=video"]
    with pytest.raises(DataError, match="no frame of the videos is scored") as error:
        evaluate_predictions(root / "Annotations", overrides, tmp_path / "out")
    assert "evaluation.convention" in error.value.hint


def test_a_name_to_compare_needs_a_letter(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model-checkpoint", "nano", "--compare", "1=nano"])
    assert "with a letter in NAME" in capsys.readouterr().err


def test_the_protocol_comes_from_the_configuration(config, monkeypatch):
    protocols = []
    prompt = PromptProtocol.prompt
    monkeypatch.setattr(
        PromptProtocol, "prompt", lambda self, *a: protocols.append(self) or prompt(self, *a)
    )
    config.evaluation.protocol, config.evaluation.noise = "box", 0.1
    model = build_sam2_model(config)
    source = VideoDataset(config.valdataset.data_path)
    list(TrackerRun("x", model).track(source, 0, config, noise=0.4))
    list(TrackerRun(COPY, None).track(source, 0, config))
    assert {(p.kind, p.noise.level) for p in protocols} == {("box", 0.4), ("mask", 0.0)}


def test_weights_without_a_run_can_be_evaluated(config, tmp_path):
    out = tmp_path / "out"
    overrides = [f"valdataset.data_path='{config.valdataset.data_path}'", "dataset.image_size=64"]
    split = tmp_path / "one.txt"
    split.write_text("a")
    evaluation = evaluate_checkpoint(
        "nano", [*overrides, f"valdataset.split='{split}'", "trainer.accelerator=cpu"], out
    )
    assert list(evaluation.scores) == ["nano", "memory zeroed", COPY]  # nothing was tuned
    assert load_config(out / "config.yaml").model.size == "nano"


def test_videos_with_one_annotated_frame_are_reported_before_tracking(config, runs, tmp_path):
    for t in range(1, 4):
        (tmp_path / f"val/Annotations/a/{t:05d}.png").unlink()
    lines: list[str] = []
    sink = logger.add(lambda m: lines.append(m.record["message"]), level="WARNING")
    evaluate(config, runs[1:], tmp_path / "out")
    logger.remove(sink)
    assert any("1 of 2 validation videos" in line for line in lines)
    for t in range(1, 5):
        (tmp_path / f"val/Annotations/b/{t:05d}.png").unlink()
    with pytest.raises(DataError, match="only the prompted frame is annotated") as error:
        evaluate(config, runs, tmp_path / "other")
    assert error.value.key == "valdataset.data_path"
