"""The metric that selects the best checkpoint and stops early."""

from __future__ import annotations

import csv

import pytest
import torch
from data_helpers import make_davis, make_textured

from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data import VideoDataset
from sam2kit.data.sources.base import FrameRange
from sam2kit.evaluation import evaluate_checkpoint, jf_scorer
from sam2kit.models.sam2 import SAM2Model, build_sam2_model
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.resume import resolve_monitor
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError, DataError


@pytest.fixture
def config(toy_config) -> Config:
    """One step per epoch, four epochs."""
    toy_config.dataset.synthetic_videos = 2
    toy_config.dataset.batch_size = 2
    toy_config.trainer.max_epochs = 4
    return toy_config


class Scores:
    """Scorer that returns the given values one after the other."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.calls: list[tuple[bool, int]] = []

    def __call__(self, model, source) -> float:
        assert isinstance(model, SAM2Model)
        self.calls.append((model.training, len(source)))
        return self.values[len(self.calls) - 1]


def epoch_of(path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def column(result, name: str) -> list[float]:
    with (result.run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_val_jf_selects_the_highest_score(config, tmp_path):
    config.trainer.monitor = "val_jf"
    scorer = Scores(0.2, 0.5, 0.4, 0.3)
    result = fit(config, tmp_path / "run", scorer=scorer)
    assert column(result, "val_jf") == pytest.approx(scorer.values)
    assert epoch_of(result.best_checkpoint) == 1
    assert scorer.calls == [(False, 1)] * 4
    assert result.metrics["val_jf"] == pytest.approx(0.3)


def test_early_stopping_follows_the_monitor(config, tmp_path):
    config.trainer.monitor, config.trainer.early_stopping_patience = "val_jf", 2
    scorer = Scores(0.2, 0.1, 0.1, 0.3)
    result = fit(config, tmp_path / "run", scorer=scorer)
    assert len(scorer.calls) == 3 and epoch_of(result.best_checkpoint) == 0


def test_val_iou_selects_the_highest_iou(config, tmp_path, monkeypatch):
    values = iter([0.1, 0.9, 0.5, 0.2])
    monkeypatch.setattr(
        SAM2LightningModule,
        "on_validation_epoch_end",
        lambda self: self.log_dict({"val_loss": 1 - (v := next(values)), "val_iou": v}),
    )
    config.trainer.monitor = "val_iou"
    assert epoch_of(fit(config, tmp_path / "run").best_checkpoint) == 1


def test_val_jf_with_an_average_of_the_weights_scores_the_average(config, tmp_path):
    config.trainer.monitor, config.trainer.ema_decay = "val_jf", 0.5
    config.trainer.max_epochs = 2
    states = []

    def scorer(model, source) -> float:
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return float(len(states)) / 10

    result = fit(config, tmp_path / "run", scorer=scorer)
    saved = torch.load(result.best_checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[f"model.{name}"], value) for name, value in states[-1].items())


def test_a_run_with_val_jf_resumes_bit_for_bit(config, tmp_path):
    make_textured(tmp_path / "data", {f"v{n}": 4 for n in range(4)})
    config.dataset.type, config.dataset.data_path = "video", str(tmp_path / "data")
    config.trainer.monitor, config.trainer.max_epochs = "val_jf", 3
    config.scheduler.name = "constant"  # does not depend on the number of epochs
    whole = fit(config, tmp_path / "whole", scorer=jf_scorer(config))
    config.trainer.max_epochs = 1
    fit(config, tmp_path / "run", scorer=jf_scorer(config))
    config.trainer.max_epochs, config.trainer.monitor = 3, "auto"  # the run keeps its metric
    with pytest.raises(ConfigError) as error:
        fit(config, tmp_path / "run", resume=True)
    assert (error.value.key, error.value.value) == ("trainer.monitor", "val_jf")
    scorer = jf_scorer(config, tmp_path / "run")
    resumed = fit(config, tmp_path / "run", resume=True, scorer=scorer)
    states = [torch.load(r.last_checkpoint, weights_only=True) for r in (whole, resumed)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    assert column(whole, "val_jf") == column(resumed, "val_jf")
    assert epoch_of(whole.best_checkpoint) == epoch_of(resumed.best_checkpoint)


def test_val_jf_is_the_score_of_an_evaluation(config, tmp_path):
    make_textured(tmp_path / "data", {f"v{n}": 4 for n in range(4)})
    config.dataset.type, config.dataset.data_path = "video", str(tmp_path / "data")
    config.trainer.monitor, config.trainer.max_epochs = "val_jf", 1
    result = fit(config, tmp_path / "run", scorer=jf_scorer(config))
    evaluation = evaluate_checkpoint(
        result.best_checkpoint, ["evaluation.pictures=false"], tmp_path / "out"
    )
    assert evaluation.scores["after training"] == pytest.approx(result.metrics["val_jf"])


def test_val_jf_keeps_its_budget(config, tmp_path, monkeypatch):
    source = VideoDataset(make_textured(tmp_path, {f"v{n}": 6 for n in range(5)}))
    config.trainer.monitor = "val_jf"
    config.trainer.jf_videos, config.trainer.jf_frames = 2, 3
    frames = []
    read = VideoDataset.read_frame
    monkeypatch.setattr(
        VideoDataset, "read_frame", lambda self, i, t: frames.append((i, t)) or read(self, i, t)
    )
    model = build_sam2_model(config).eval()
    scorer = jf_scorer(config)
    assert scorer is not None and 0 <= scorer(model, source) <= 1
    assert set(frames) == {(i, t) for i in (0, 4) for t in range(3)}
    with pytest.raises(DataError) as error:
        scorer(model, FrameRange(source, 0, 1))
    assert error.value.key == "trainer.jf_frames"
    config.trainer.monitor = "val_iou"
    assert jf_scorer(config) is None


def test_val_jf_needs_a_scorer_and_one_device(config, tmp_path):
    config.trainer.monitor = "val_jf"
    with pytest.raises(ConfigError) as error:
        fit(config, tmp_path / "run")
    assert (error.value.key, error.value.value) == ("trainer.monitor", "val_jf")
    config.trainer.devices = "2"
    with pytest.raises(ConfigError) as error:
        fit(config, tmp_path / "run", scorer=Scores())
    assert error.value.key == "trainer.devices"


def test_a_monitor_without_a_value_is_an_error(config, tmp_path, monkeypatch):
    config.trainer.monitor = "val_iou"
    monkeypatch.setattr("sam2kit.training.module.tracked_iou", lambda output, batch: [])
    with pytest.raises(DataError) as error:
        fit(config, tmp_path / "run")
    assert (error.value.key, error.value.value) == ("trainer.monitor", "val_iou")
    assert epoch_of(tmp_path / "run" / "last.ckpt") == 0


def test_videos_without_a_frame_to_score_are_rejected_before_training(config, tmp_path):
    """Of the frames that val_jf tracks, only the prompted one is annotated."""
    data = make_davis(tmp_path / "data", dict.fromkeys("abc", 13), annotated=lambda t: t % 6 == 0)
    config.dataset.type, config.dataset.data_path = "video", str(data)
    config.trainer.monitor, config.trainer.jf_frames = "val_jf", 5
    with pytest.raises(DataError) as error:
        fit(config, tmp_path / "run", scorer=jf_scorer(config))
    assert (error.value.key, error.value.value) == ("trainer.jf_frames", 5)
    assert not (tmp_path / "run").exists()
    config.trainer.jf_frames = 7
    jf_scorer(config).check(VideoDataset(data))


def test_an_epoch_that_cannot_be_scored_is_saved(config, tmp_path):
    config.trainer.monitor, config.trainer.early_stopping_patience = "val_jf", 2
    config.trainer.average_with_start, config.scheduler.name = 0.5, "constant"
    config.model.checkpoint, config.trainer.max_epochs = "nano", 2

    def scorer(model, source):
        raise DataError("no frame", key="trainer.jf_frames", hint="increase it")

    with pytest.raises(DataError) as error:
        fit(config, tmp_path / "run", scorer=scorer)
    assert error.value.key == "trainer.jf_frames"
    assert epoch_of(tmp_path / "run" / "last.ckpt") == 0
    resumed = fit(config, tmp_path / "run", resume=True, scorer=Scores(0.1))
    assert epoch_of(resumed.last_checkpoint) == 1
    config.trainer.monitor = "val_loss"
    whole = fit(config, tmp_path / "whole")
    states = [torch.load(r.last_checkpoint, weights_only=True) for r in (whole, resumed)]
    for name, value in states[0]["current_model_state"].items():
        assert torch.equal(value, states[1]["current_model_state"][name]), name


def test_a_changed_metric_keeps_the_better_checkpoint(config, tmp_path, monkeypatch, messages):
    """The first run selects epoch 0 by val_jf. By val_iou, epoch 2 is worse and epoch 3 better."""
    ious = [0.4, 0.6, 0.3, 0.5]
    monkeypatch.setattr(
        SAM2LightningModule,
        "on_validation_epoch_end",
        lambda self: self.log_dict({"val_loss": 1.0, "val_iou": ious[self.current_epoch]}),
    )
    config.trainer.monitor, config.trainer.max_epochs = "val_jf", 2
    run = tmp_path / "run"
    assert epoch_of(fit(config, run, scorer=Scores(0.9, 0.8)).best_checkpoint) == 0
    config.trainer.monitor, config.trainer.max_epochs = "val_iou", 3
    result = fit(config, run, resume=True)
    assert result.best_checkpoint == run / "best.ckpt" and epoch_of(run / "best.ckpt") == 0
    assert any("val_iou 0.400" in m and m.startswith("INFO") for m in messages)
    config.trainer.max_epochs = 4  # the metric has not changed again
    fit(config, run, resume=True)
    assert epoch_of(run / "best.ckpt") == 3
    # The value of another metric is unknown.
    config.trainer.monitor, config.trainer.max_epochs = "val_jf", 5
    ious.append(0.1)
    fit(config, run, resume=True, scorer=Scores(0.1))
    assert epoch_of(run / "best.ckpt") == 4
    assert any("val_jf of best.ckpt is unknown" in m for m in messages if "WARNING" in m)


def test_clips_of_one_frame_have_no_val_iou():
    with pytest.raises(ConfigError) as error:
        load_config(None, ["trainer.monitor=val_iou", "dataset.video_clip_length=1"])
    assert error.value.key == "trainer.monitor"


@pytest.mark.parametrize(
    ("overrides", "monitor"),
    [
        ([], "val_iou"),  # from the released weights
        (["model=nano", "model.checkpoint=nano", "recipe=official"], "val_iou"),
        (["model.checkpoint=random"], "val_loss"),
        (["dataset.video_clip_length=1"], "val_loss"),
        (["trainer.monitor=val_jf", "model.checkpoint=random"], "val_jf"),
    ],
)
def test_fine_tuning_selects_by_val_iou(overrides, monitor):
    assert resolve_monitor(load_config(None, overrides)).trainer.monitor == monitor


def test_a_run_keeps_its_monitor(config, tmp_path):
    config.trainer.max_epochs = 1
    first = fit(config, tmp_path / "run")
    assert load_config(first.run_dir / "config.yaml").trainer.monitor == "val_loss"
    config.trainer.resume_from, config.model.checkpoint = str(first.last_checkpoint), "nano"
    assert resolve_monitor(config).trainer.monitor == "val_loss"
