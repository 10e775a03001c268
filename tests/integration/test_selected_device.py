"""Every command uses the device that ``trainer.devices`` selects."""

from __future__ import annotations

import pytest
import torch
from data_helpers import make_textured

from sam2kit import PromptDebugger, plan_training, track_video
from sam2kit.evaluation.evaluate import checkpoint_runs
from sam2kit.models import feature_precompute
from sam2kit.training.gradient_audit import audit_config
from sam2kit.utils.errors import ConfigError


def track(config, folder):
    box = [{"kind": "box", "object_id": 1, "frame_index": 0, "box": [2, 8, 12, 18]}]
    video = make_textured(folder / "davis", {"a": 2}) / "JPEGImages" / "a"
    track_video(video, box, "nano", folder / "out", devices=config.trainer.devices)


COMMANDS = {
    "audit": lambda config, folder: audit_config(config),
    "plan": lambda config, folder: plan_training(config),
    "features": lambda config, folder: feature_precompute.fill(config),
    "evaluate": lambda config, folder: checkpoint_runs(config, "nano", has_start=False),
    "annotate": lambda config, folder: PromptDebugger(config),
    "track": track,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_uses_the_selected_device(command, toy_config, tmp_path, monkeypatch):
    """This machine seems to have one GPU, so a command that selects the fourth one fails."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    toy_config.trainer.accelerator, toy_config.trainer.devices = "auto", "3,"
    toy_config.features.cache, toy_config.features.folder = "on", str(tmp_path / "features")
    with pytest.raises(ConfigError) as error:
        COMMANDS[command](toy_config, tmp_path)
    assert (error.value.key, error.value.value) == ("trainer.devices", "3,")
