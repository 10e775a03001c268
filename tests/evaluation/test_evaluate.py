"""Evaluating whole videos: what is written, going on when interrupted, other people's masks."""

from __future__ import annotations

import csv
import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import SIZE, make_davis, save_frame, save_palette, square

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.evaluation import statistics
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


def test_masks_are_kept_and_scored_as_they_are(config, runs, tmp_path):
    evaluation = evaluate(config, runs, tmp_path / "out")
    write_results(evaluation)
    source, files = evaluation.source, evaluation.files
    for tracker in evaluation.trackers:
        for i, video in enumerate(tracker.videos):
            for t in range(source.num_frames(i)):
                found, truth = files.masks(tracker.tracker, video.name, t), source.read_masks(i, t)
                expected = [iou(found[o], truth[o]) for o in video.object_ids]
                assert video.J[t] == pytest.approx(np.array(expected))
            assert not video.scored[0].any() and video.scored[1:].all()
    copied = evaluation.trackers[1].videos[0]
    assert copied.J[:, 0] == pytest.approx([1, 3 / 5, 1 / 3, 1 / 7])  # two pixels of eight a frame
    assert (copied.J[:, 1] == 1).all()
    # The folder of masks is one that anybody's results can be: the same scores again.
    masks = tmp_path / "out" / "masks" / COPY
    again = score_predictions(source, masks, CONVENTIONS["prompted"])
    assert np.array_equal(again.videos[1].J, evaluation.trackers[1].videos[1].J)


def test_everything_is_written(config, runs, tmp_path):
    write_results(evaluate(config, runs, tmp_path))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["schema_version"] == 2 and metrics["convention"]["name"] == "prompted"
    assert metrics["tracker"] == AFTER and list(metrics["trackers"]) == [AFTER, COPY]
    assert metrics["protocol"]["protocol"] == "mask" and metrics["seed"] == config.seed
    assert set(metrics["videos"]) == {"a", "b"}
    assert set(metrics["videos"]["a"]["objects"]) == {"1", "2"}
    difference = metrics["trackers"][AFTER]["J&F"] - metrics["trackers"][COPY]["J&F"]
    assert metrics["differences"][COPY]["mean"] == pytest.approx(difference)
    low, high = metrics["trackers"][AFTER]["J&F_interval"]
    assert low <= metrics["trackers"][AFTER]["J&F"] <= high
    with (tmp_path / "objects.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 4
    coco = json.loads((tmp_path / "coco" / f"{COPY}.json").read_text())
    assert len(coco["images"]) == 9 and len(coco["annotations"]) == 18
    assert (tmp_path / "sav" / AFTER / "a.json").exists()
    files = {"a.png", "a.mp4", "b.png", "b.mp4"}
    assert {p.name for p in (tmp_path / "overlays").iterdir()} == files
    assert AFTER in (tmp_path / "report.html").read_text()
    assert (tmp_path / "overlay.gif").exists() and (tmp_path / "overlay.png").exists()


def test_each_interval_and_difference_is_drawn_once(config, tmp_path, monkeypatch):
    draws = []
    monkeypatch.setattr(
        statistics,
        "bootstrap_interval",
        lambda groups, generator: draws.append(generator.bit_generator.state) or (0.0, 1.0),
    )
    evaluation = evaluate(config, [TrackerRun(name, None) for name in "abcd"], tmp_path)
    write_results(evaluation)
    assert len(draws) == 7  # four trackers, three differences; the seed starts each of them
    start = np.random.default_rng(config.seed).bit_generator.state
    assert all(state == start for state in draws)
    with pytest.raises(FrozenInstanceError):
        evaluation.trackers = []


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(config, runs, tmp_path, monkeypatch):
    config.evaluation.protocol, config.evaluation.clicks = "clicks", 2
    config.evaluation.noise, config.evaluation.noise_levels = 0.1, [0.2]
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
    assert {i for i, _ in frames} == {1}  # the video that was done is not tracked again
    write_results(evaluation)
    for file in sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")):
        if (tmp_path / "whole" / file).is_file() and file.suffix != ".html":  # numbers, no markup
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
def test_what_was_done_in_another_way_is_not_mixed_in(config, tmp_path, monkeypatch, change):
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


def test_masks_that_no_evaluation_wrote_are_not_deleted(config, runs, tmp_path):
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


def test_other_weights_are_another_run(config):
    model = build_sam2_model(config)
    before = TrackerRun("x", model).identity
    assert TrackerRun("x", model, zero_memory=True).identity != before
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert TrackerRun("x", model).identity != before


def test_robustness_and_calibration_stand_in_the_result(config, runs, tmp_path):
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
        """Says the truth, 1.5 too low, and far lower off the object."""

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


def test_thresholds_change_the_masks(config):
    source = VideoDataset(config.valdataset.data_path)
    assert (
        np.nanmin(TrackerRun("x", None, mask_threshold=10.5).score(source, 0, [1, 2], config).J)
        == 0
    )
    model = build_sam2_model(config)
    scores = TrackerRun("x", model, object_threshold=1e9).score(source, 0, [1, 2], config)
    assert not scores.predicted_present.any()


def test_calibrating_on_what_is_reported_is_refused(config, runs, tmp_path):
    config.dataset.data_path = config.valdataset.data_path
    config.evaluation.calibration_videos = 1
    with pytest.raises(ConfigError, match="'a' is among the videos"):
        evaluate(config, runs, tmp_path)


def test_bad_names_and_options_are_told_before_tracking(config, runs, tmp_path):
    config.evaluation.tracker = {"max_cond": 3}
    with pytest.raises(ConfigError, match="max_cond"):
        evaluate(config, runs, tmp_path)
    config.evaluation.tracker = {"pil_bicubic": False}
    with pytest.raises(ConfigError, match="pil_bicubic=False is not supported any more"):
        evaluate(config, runs, tmp_path)


def test_other_checkpoints_stand_beside_the_tuned_one(config, tmp_path):
    from sam2kit.models.checkpoints import save_weights

    save_weights(build_sam2_model(config), tmp_path / "mine.pt")
    config.evaluation.compare = {"shipped nano": "nano"}
    found = checkpoint_runs(config, str(tmp_path / "mine.pt"), has_start=True)
    assert [c.name for c in found] == [AFTER, BEFORE, ZEROED, COPY, "shipped nano"]
    assert found[0].model is found[2].model and found[4].model.image_size == 128
    config.evaluation.compare = {COPY: "nano"}
    with pytest.raises(ConfigError, match="first mask copied"):
        checkpoint_runs(config, str(tmp_path / "mine.pt"), has_start=False)


def test_a_video_without_objects_is_left_out_and_none_at_all_is_refused(config, tmp_path):
    root = Path(config.valdataset.data_path)
    for t in range(4):
        save_palette(root / "Annotations" / "a" / f"{t:05d}.png", np.zeros(SIZE, np.uint8))
    copied = [TrackerRun(COPY, None)]
    assert [v.name for v in evaluate(config, copied, tmp_path).trackers[0].videos] == ["b"]
    for t in range(5):
        save_palette(root / "Annotations" / "b" / f"{t:05d}.png", np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="no frame to score"):
        evaluate(config, copied, tmp_path)


def test_an_object_that_comes_late_counts_from_its_prompt_on(config, tmp_path):
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
    assert scores.J[4, 0] == pytest.approx(3 / 5)  # copied anew from frame 3


@pytest.mark.skipif(not DAVIS.is_dir(), reason="needs DAVIS and the OSVOS masks")
def test_the_command_scores_osvos_as_the_official_package_does(tmp_path, capsys):
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


def test_predictions_of_which_no_frame_counts_are_refused(tmp_path):
    root = tmp_path / "stills"
    save_frame(root / "JPEGImages" / "v" / "0.jpg", 10)
    save_palette(root / "Annotations" / "v" / "0.png", np.eye(*SIZE, dtype=np.uint8))
    overrides = [f"valdataset.data_path='{root}'", "dataset.type=video"]
    with pytest.raises(DataError, match="no frame to score.*evaluation.convention"):
        evaluate_predictions(root / "Annotations", overrides, tmp_path / "out")


def test_a_name_to_compare_holds_a_letter(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--model-checkpoint", "nano", "--compare", "1=nano"])
    assert "with a letter in NAME" in capsys.readouterr().err


def test_the_protocol_is_the_configurations(config, monkeypatch):
    seen = []
    draw = PromptProtocol._draw
    monkeypatch.setattr(
        PromptProtocol, "_draw", lambda self, *a: seen.append(self) or draw(self, *a)
    )
    config.evaluation.protocol, config.evaluation.noise = "box", 0.1
    model = build_sam2_model(config)
    source = VideoDataset(config.valdataset.data_path)
    list(TrackerRun("x", model).track(source, 0, config, noise=0.4))
    list(TrackerRun(COPY, None).track(source, 0, config))
    assert {(p.kind, p.noise.level) for p in seen} == {("box", 0.4), ("mask", 0.0)}


def test_weights_alone_are_evaluated_too(config, tmp_path):
    out = tmp_path / "out"
    overrides = [f"valdataset.data_path='{config.valdataset.data_path}'", "dataset.image_size=64"]
    split = tmp_path / "one.txt"
    split.write_text("a")
    evaluation = evaluate_checkpoint(
        "nano", [*overrides, f"valdataset.split='{split}'", "trainer.accelerator=cpu"], out
    )
    assert list(evaluation.scores) == [AFTER, ZEROED, COPY]
    assert load_config(out / "config.yaml").model.size == "nano"
