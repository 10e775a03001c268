"""Failures of the machine during training: memory, DataLoader workers, disk and loggers."""

import errno
import os
import signal

import pytest
import torch

from sam2kit.config.loading import override_config
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.training import planner
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.failures import actionable_errors
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import TrainingError


@pytest.fixture
def config(toy_config):
    toy_config.dataset.synthetic_videos = 6
    toy_config.trainer.max_epochs = 1
    return toy_config


def fail_with(monkeypatch, error):
    """Let the first training step raise ``error``."""

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
def test_out_of_memory_reports_the_plan(config, tmp_path, monkeypatch, error):
    fail_with(monkeypatch, error)
    if not isinstance(error, torch.OutOfMemoryError):  # one plan that measures steps is enough
        monkeypatch.setattr(planner, "_cost", lambda *_: (1e9, 1.0, 0.0))
    with pytest.raises(TrainingError, match="out of memory") as raised:
        fit(config, tmp_path / "run")
    assert "GB" in raised.value.hint and "--resume auto" in raised.value.hint


@pytest.mark.parametrize(
    "text", ["[unbound_buffer.cc:81] Timed out waiting 1800000ms", "NCCL communicator was aborted"]
)
def test_lost_rank_is_reported_with_the_waiting_one(config, tmp_path, monkeypatch, text):
    monkeypatch.setenv("RANK", "3")
    data = SAM2LightningDataModule(config)
    with pytest.raises(TrainingError, match="rank 3 lost another rank") as raised:
        with actionable_errors(config, data, tmp_path):
            raise RuntimeError(text)
    assert "--resume auto" in raised.value.hint


def test_dead_loader_process_reports_the_frame(config, tmp_path, monkeypatch):
    read = ClipDataset._read

    def die(self, i, window, *arguments):
        if self.training and self.source.name(i).endswith("3"):
            self._record_position(i, window[0])
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, i, window, *arguments)

    monkeypatch.setattr(ClipDataset, "_read", die)
    config = override_config(config, ["dataset.num_workers=1"])
    with pytest.raises(
        TrainingError, match=r"DataLoader worker died .*reading .*3.*frame"
    ) as raised:
        fit(config, tmp_path / "run")
    assert "dataset.num_workers" in raised.value.hint


def test_full_disk_is_reported(config, tmp_path, monkeypatch):
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device", "metrics.csv"))
    with pytest.raises(TrainingError, match="metrics.csv.* full") as raised:
        fit(config, tmp_path / "run")
    assert "--resume auto" in raised.value.hint


def test_other_errors_are_not_changed(config, tmp_path, monkeypatch):
    fail_with(monkeypatch, OSError(errno.EIO, "Input/output error", "x.png"))
    with pytest.raises(OSError, match="x.png"):
        fit(config, tmp_path / "run")


def test_unreachable_wandb_does_not_stop_training(config, tmp_path, monkeypatch):
    """Nothing listens on that port, so the log is written offline."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "5")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config.trainer.logger = "wandb"
    result = fit(config, tmp_path / "run")
    assert "val_loss" in result.metrics and list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert "does not answer" in (tmp_path / "run" / "train.log").read_text()


def test_failing_logger_is_warned_about_once(config, tmp_path, monkeypatch):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    pytest.importorskip("wandb")

    def fail(*args, **kwargs):
        raise ConnectionError("gone")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(loggers.WandbLogger, "log_metrics", fail)
    config.trainer.logger, config.trainer.log_every_n_steps = "wandb", 1
    assert "val_loss" in fit(config, tmp_path / "run").metrics
    assert (tmp_path / "run" / "train.log").read_text().count("wandb failed (gone)") == 1
