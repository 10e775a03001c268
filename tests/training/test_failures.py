"""What goes wrong around a training."""

import errno
import os
import signal

import pytest
import torch

from sam2kit.config.loading import override_config
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import TrainingError


@pytest.fixture
def config(toy_config):
    toy_config.dataset.synthetic_videos = 6
    toy_config.trainer.max_epochs = 1
    return toy_config


def fail_with(monkeypatch, error):
    """In the first step."""

    def fail(*args):
        raise error

    monkeypatch.setattr(SAM2LightningModule, "training_step", fail)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError("x"),
    ],
)
def test_out_of_memory_tells_what_a_step_takes(config, tmp_path, monkeypatch, error):
    fail_with(monkeypatch, error)
    with pytest.raises(TrainingError, match=r"(?s)out of memory.*[MG]B.*--resume auto"):
        fit(config, tmp_path / "run")


def test_a_loader_process_that_dies_names_the_frame(config, tmp_path, monkeypatch):
    read = ClipDataset._read

    def die(self, i, window, stored, masks):
        if self.training and self.source.name(i).endswith("3"):
            self._note(i, window[0])
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, i, window, stored, masks)

    monkeypatch.setattr(ClipDataset, "_read", die)
    config = override_config(config, ["dataset.num_workers=1"])
    with pytest.raises(TrainingError, match=r"loader process ended .*it was reading .*3.*frame"):
        fit(config, tmp_path / "run")


def test_a_full_disk_is_told(config, tmp_path, monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "metrics.csv"))
    with pytest.raises(TrainingError, match="metrics.csv: the disk is full"):
        fit(config, tmp_path / "run")


def test_other_errors_stay_what_they_are(config, tmp_path, monkeypatch):
    fail_with(monkeypatch, OSError(errno.EIO, "Input/output error", "x.png"))
    with pytest.raises(OSError, match="x.png"):
        fit(config, tmp_path / "run")


def test_an_unreachable_wandb_stops_nothing(config, tmp_path, monkeypatch):
    """Nothing listens there; the log is kept offline."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config.trainer.logger = "wandb"
    result = fit(config, tmp_path / "run")
    assert "val_loss" in result.metrics and list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert "does not answer" in (tmp_path / "run" / "train.log").read_text()


def test_a_log_that_fails_midway_is_told_once(config, tmp_path, monkeypatch):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    pytest.importorskip("wandb")

    def fail(*args, **kwargs):
        raise ConnectionError("gone")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(loggers.WandbLogger, "log_metrics", fail)
    config.trainer.logger, config.trainer.log_every_n_steps = "wandb", 1
    assert "val_loss" in fit(config, tmp_path / "run").metrics
    assert (tmp_path / "run" / "train.log").read_text().count("does not take the log (gone)") == 1
