"""Training stops at a non-finite loss or gradient, and the step can be replayed."""

from __future__ import annotations

import math

import pytest
import torch

from sam2kit.cli.main import main
from sam2kit.models.checkpoints import create_sam2_model, load_run
from sam2kit.training import module as engine
from sam2kit.training.nonfinite_replay import replay
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError, TrainingError


@pytest.fixture
def config(toy_config):
    toy_config.dataset.synthetic_videos = 6
    toy_config.dataset.batch_size = 2
    toy_config.dataset.video_clip_length = 3
    toy_config.trainer.max_epochs = 2
    toy_config.scheduler.name = "constant"
    return toy_config


def test_too_high_learning_rate_stops_and_can_be_replayed(config, tmp_path, capsys):
    config.optimizer.lr = 1e30
    with pytest.raises(TrainingError, match="in step 1, on clips of ") as error:
        fit(config, tmp_path)
    assert "replay.pt" in error.value.hint and "optimizer.lr" in error.value.hint
    result = replay(tmp_path / "replay.pt")
    damaged = torch.load(tmp_path / "replay.pt", weights_only=True)
    damaged["step_to_replay"]["batch"]["masks"] = torch.zeros(1)
    torch.save(damaged, tmp_path / "damaged.pt")
    with pytest.raises(CheckpointError) as error:
        replay(tmp_path / "damaged.pt")
    assert error.value.hint
    assert len(result.videos) == 2 and not math.isfinite(result.gradients["memory_attention"])
    assert result.first is not None and result.first.startswith("memory_")
    assert main(["replay", str(tmp_path / "replay.pt")]) == 0
    output = capsys.readouterr().out
    assert result.first in output and "| loss_dice" in output and result.fault in output


def test_non_finite_gradient_does_not_reach_the_weights(config, tmp_path, monkeypatch):
    """The loss is finite; the replay runs without the hook and has finite gradients."""
    calls = []

    def with_a_fault(config):
        model = create_sam2_model(config)
        calls.append({k: v.clone() for k, v in model.state_dict().items()})
        weight = next(model.memory_encoder.parameters())
        weight.register_hook(lambda gradient: gradient * float("inf"))
        return model

    monkeypatch.setattr(engine, "create_sam2_model", with_a_fault)
    with pytest.raises(TrainingError, match="the gradient of memory_encoder is not finite"):
        fit(config, tmp_path)
    result = replay(tmp_path / "replay.pt")
    assert result.first is None and result.gradients["memory_encoder"] > 0
    assert 0 < result.terms["loss"] < 100 and "output: none" in str(result)
    _, model = load_run(tmp_path / "replay.pt")
    assert all(torch.equal(v, calls[0][k]) for k, v in model.state_dict().items())


def test_replay_repeats_the_step_exactly(config, tmp_path, monkeypatch):
    """Same prompts, dropout and weights: the same loss to the last bit."""
    config.dataset.prompt_types = ["point", "box"]
    config.model.memory_dropout = 0.3
    losses = []
    score = engine.SAM2LightningModule.track_and_score

    def watched(self, batch, step, rank=None, all_devices=False):
        output, terms = score(self, batch, step, rank)
        losses.append(terms["loss"].item())
        if rank is None and step == 2:
            terms["loss"] = terms["loss"] * float("inf")
        return output, terms

    monkeypatch.setattr(engine.SAM2LightningModule, "track_and_score", watched)
    with pytest.raises(TrainingError, match="the loss is inf in step 2"):
        fit(config, tmp_path)
    assert replay(tmp_path / "replay.pt").terms["loss"] == losses[2] == losses[-1]


def test_other_files_are_rejected(tmp_path, capsys):
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="contains no step to replay"):
        replay(tmp_path / "a.pt")
    assert main(["replay", str(tmp_path / "none.pt")]) == 2
    assert "none.pt: no such file" in capsys.readouterr().err
