"""Test averaged weights and the warnings that a training run gives about its data and its loss."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import moving_clip
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from loguru import logger
from torch.utils.data import DataLoader

from sam2kit.data.clip import collate
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.sources.base import VideoSource
from sam2kit.models.checkpoints import create_sam2_model, load_run
from sam2kit.models.lora import merged_state
from sam2kit.training import trainer as trainer_module
from sam2kit.training.callbacks import AverageWeights, LogProgress
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.losses import NO_OBJ_SCORE
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError


def test_progress_is_logged_once_per_step_with_accumulated_gradients():
    progress, steps = LogProgress(every_n_steps=10), []
    sink = logger.add(lambda line: steps.append(int(re.search(r"step (\d+)/20", line)[1])))
    values = {"loss": 1.0, "learning_rate": 1e-3}
    trainer = SimpleNamespace(
        global_step=0, estimated_stepping_batches=20, current_epoch=0, callback_metrics=values
    )
    try:
        progress.on_train_start(trainer, None)
        for batch in range(20 * 8):
            trainer.global_step = (batch + 1) // 8
            progress.on_train_batch_end(trainer, None, None, None, batch)
    finally:
        logger.remove(sink)
    assert steps == [1, 10, 20]


def test_averaged_weights_equal_lightnings(toy_config, tmp_path, monkeypatch):
    toy_config.trainer.ema_decay, toy_config.trainer.max_epochs = 0.7, 2
    toy_config.dataset.synthetic_videos, toy_config.trainer.accumulate_grad_batches = 5, 2
    states = []
    for number, callback in enumerate(
        [AverageWeights, lambda decay: EMAWeightAveraging(decay=decay)]
    ):
        monkeypatch.setattr(trainer_module, "AverageWeights", callback)
        result = fit(toy_config, tmp_path / str(number))
        states.append(torch.load(result.last_checkpoint, weights_only=True))
    actual, expected = states
    assert actual["callbacks"].keys() == expected["callbacks"].keys()
    assert torch.equal(
        actual["averaging_state"]["n_averaged"], expected["averaging_state"]["n_averaged"]
    )
    moved = 0
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(actual["state_dict"][name], value, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(value, expected["current_model_state"][name])
    assert moved > 0


@pytest.fixture
def start(toy_config, tmp_path) -> Path:
    """Weights to start from: random ones, which model.checkpoint=random may not be."""
    path = tmp_path / "start.pt"
    torch.manual_seed(0)
    torch.save({"model": create_sam2_model(toy_config).state_dict()}, path)
    toy_config.model.checkpoint = str(path)
    toy_config.trainer.max_epochs, toy_config.dataset.synthetic_videos = 2, 3
    toy_config.optimizer.lr = 1e-3
    return path


def test_average_with_the_start_is_validated_and_saved(toy_config, tmp_path, start):
    toy_config.trainer.monitor = "val_jf"
    usual = fit(toy_config, tmp_path / "usual", scorer=lambda model, source: 0.5)
    seen = []

    def scorer(model, source) -> float:
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return len(seen) / 10

    toy_config.trainer.average_with_start = 0.25
    result = fit(toy_config, tmp_path / "averaged", scorer=scorer)
    saved = torch.load(result.last_checkpoint, weights_only=True)
    expected = torch.load(usual.last_checkpoint, weights_only=True)["state_dict"]
    starting = torch.load(start, weights_only=True)["model"]
    # Training itself is unchanged.
    assert all(torch.equal(saved["current_model_state"][k], v) for k, v in expected.items())
    moved = 0
    for name, weight in starting.items():
        trained = expected[f"model.{name}"]
        average = torch.lerp(trained, weight, 0.25) if weight.is_floating_point() else weight
        torch.testing.assert_close(saved["state_dict"][f"model.{name}"], average)
        moved += not torch.equal(trained, weight)
    assert moved > 0
    assert all(torch.equal(saved["state_dict"][f"model.{k}"], v) for k, v in seen[-1].items())
    _, model = load_run(result.best_checkpoint)
    assert all(torch.equal(seen[-1][k], v) for k, v in model.state_dict().items())


def test_average_with_the_start_averages_the_product_of_lora(toy_config, tmp_path, start):
    toy_config.model.lora_modules = ["memory_attention"]
    toy_config.trainer.max_epochs = 1
    trained = fit(toy_config, tmp_path / "usual").last_checkpoint
    toy_config.trainer.average_with_start = 0.25
    averaged = fit(toy_config, tmp_path / "averaged").last_checkpoint
    starting = torch.load(start, weights_only=True)["model"]
    one, other = (merged_state(load_run(path)[1]) for path in (trained, averaged))
    moved = 0
    for name, weight in starting.items():
        torch.testing.assert_close(other[name], torch.lerp(one[name], weight, 0.25))
        moved += not torch.equal(one[name], weight)
    assert moved > 0
    # LoRA of the starting checkpoint is merged, so the new LoRA starts at zero.
    toy_config.model.checkpoint, toy_config.optimizer.lr = str(trained), 1e-9
    again = merged_state(load_run(fit(toy_config, tmp_path / "again").last_checkpoint)[1])
    assert all(torch.allclose(again[name], weight, atol=1e-5) for name, weight in one.items())


def test_average_with_the_start_resumes_exactly(toy_config, tmp_path, start):
    toy_config.trainer.average_with_start, toy_config.scheduler.name = 0.5, "constant"
    whole = fit(toy_config, tmp_path / "whole")
    toy_config.trainer.max_epochs = 1
    fit(toy_config, tmp_path / "parts")
    toy_config.trainer.max_epochs = 2
    resumed = fit(toy_config, tmp_path / "parts", resume=True)
    one, two = (torch.load(r.last_checkpoint, weights_only=True) for r in (whole, resumed))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    # Another file under the same name is not where this run started.
    content = torch.load(start, weights_only=True)
    torch.save({"model": {k: v + 0.5 for k, v in content["model"].items()}}, start)
    toy_config.trainer.max_epochs = 3
    with pytest.raises(CheckpointError) as error:
        fit(toy_config, tmp_path / "parts", resume=True)
    assert error.value.key == "trainer.average_with_start" and error.value.hint


class Annotated(VideoSource):
    """A video with masks on some frames."""

    names = ["a"]

    def __init__(self, frames: set[int]) -> None:
        self.frames, self.clip = frames, moving_clip(1, num_frames=12, size=32)

    def num_frames(self, i):
        return 12

    def read_frame(self, i, t):
        return self.clip.frames[t].permute(1, 2, 0).numpy()

    def read_masks(self, i, t):
        return {1: self.clip.masks[t, 0].numpy()} if t in self.frames else None


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [
        (set(range(12)), 1, True),
        ({0, 5, 10}, 1, False),
        ({0, 5, 10}, 5, True),
        ({0, 4, 5, 10}, 1, True),
    ],
)
def test_temporal_loss_without_neighbouring_masks(toy_config, warnings, frames, stride, expected):
    toy_config.dataset.frame_stride, toy_config.dataset.video_clip_length = stride, 4
    source = Annotated(frames)
    assert ClipDataset(source, toy_config.dataset, True, 0).has_neighbours() == expected
    data = SAM2LightningDataModule(toy_config, train_source=source, val_source=source)
    data.check_videos()
    assert any("loss.temporal=0.1 has no effect" in m for m in warnings) != expected
    toy_config.loss.temporal = 0.0
    warnings.clear()
    SAM2LightningDataModule(toy_config, train_source=source, val_source=source).check_videos()
    assert not any("loss.temporal" in m for m in warnings)


@pytest.mark.parametrize("augment", [True, False])
def test_augmentation_that_is_switched_off_is_reported(toy_config, warnings, augment):
    toy_config.dataset.augment = augment
    SAM2LightningDataModule(toy_config).check_videos()
    assert not warnings
    toy_config.augmentation.thermal, toy_config.augmentation.flip = 1.0, 0.0
    SAM2LightningDataModule(toy_config).check_videos()
    words = ("augmentation.thermal=1.0", "augmentation.flip=0.0", "dataset.augment=true")
    assert len(warnings) == (0 if augment else 1)
    assert augment or all(word in warnings[0] for word in words)


def test_generated_videos_have_neighbouring_masks(toy_config, warnings):
    SAM2LightningDataModule(toy_config).check_videos()
    assert not warnings


def validate(config, module) -> None:
    batch = collate([moving_clip(2, num_frames=3, size=32)])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    loader = DataLoader([batch], batch_size=None)
    Trainer(accelerator="cpu", **quiet).validate(module, loader, verbose=False)


@pytest.mark.parametrize(("score", "expected"), [(0.0, 1), (1.0, 0)])
def test_withheld_masks_of_visible_objects_are_warned_of(toy_config, warnings, score, expected):
    """A mask that the model withholds gets no gradient without loss.object_score."""
    toy_config.model.object_score_bias = -3.0
    toy_config.loss.object_score = score
    module = SAM2LightningModule(toy_config)
    for _ in range(2):
        validate(toy_config, module)
    assert len([m for m in warnings if "loss.object_score" in m]) == expected
    batch = collate([moving_clip(2, num_frames=3, size=32)])
    output, terms = module.track_and_score(batch, 0)
    assert (output.mask_logits[1:] == NO_OBJ_SCORE).all()
    gradients = torch.autograd.grad(
        terms["loss"], list(module.model.memory_attention.parameters()), allow_unused=True
    )
    assert any(g is not None and g.any() for g in gradients) == bool(score)


def test_shown_masks_are_not_warned_of(toy_config, warnings):
    toy_config.model.object_score_bias = 3.0
    validate(toy_config, SAM2LightningModule(toy_config))
    assert not warnings


def test_memory_is_pinned_only_for_cuda(toy_config):
    data = SAM2LightningDataModule(toy_config)
    assert not data.train_dataloader().pin_memory and not data.val_dataloader().pin_memory
    for kind, expected in (("cpu", False), ("cuda", True)):

        class Strategy:
            root_device = torch.device(kind)

        class Owner:
            strategy, global_rank = Strategy(), 0

        data.trainer = Owner()
        assert data.train_dataloader().pin_memory == expected
        assert data.val_dataloader().pin_memory == expected


def test_batch_remembers_its_copy_in_main_memory():
    batch = collate([moving_clip(2)])
    assert batch.on_host() is batch and batch.to("cpu").host is None
    moved = batch.to("meta")
    assert moved.host is batch and moved.on_host() is batch
    assert replace(moved, masks=moved.masks).host is None
    moved.masks.zero_()  # a batch that was changed on its device is not the one in main memory
    with pytest.raises(NotImplementedError):
        moved.on_host()  # a meta tensor has no content to copy
