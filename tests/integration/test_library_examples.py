"""The examples of docs/library.md are short and run in sequence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sam2kit import (
    Config,
    ConfigError,
    SAM2LightningDataModule,
    SAM2LightningModule,
    SAM2TrainingLoss,
    create_sam2_model,
    fit,
    load_model,
)
from sam2kit.data import SyntheticDataset

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "library.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def names(temporary_cache, tmp_path_factory):
    """Run the examples like the cells of one notebook; yield the names that they define."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "data_samples").symlink_to(ROOT / "data_samples")
    defined: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number, example in enumerate(EXAMPLES, 1):
            exec(compile(example, f"docs/library.md, example {number}", "exec"), defined)
        yield defined


def test_examples_are_shorter_than_20_lines():
    assert len(EXAMPLES) == 9
    assert all(len(example.splitlines()) < 20 for example in EXAMPLES)


def test_model_tracks_a_clip(names):
    batch, output = names["batch"], names["output"]
    assert batch.frames.shape == (2, 4, 3, 192, 192)
    assert output.mask_logits.shape == (4, batch.num_objects, 48, 48)
    assert output.tracked.any(0).all()


def test_training_on_arrays_writes_checkpoints_and_metrics(names):
    result = names["result"]
    assert result.best_checkpoint.is_file() and result.last_checkpoint.is_file()
    assert 0 <= result.metrics["val_iou"] <= 1
    assert not result.interrupted


def test_custom_loss_and_trainer_log_and_save(names):
    trainer, module = names["trainer"], names["module"]
    assert trainer.global_step == 2
    assert {"loss", "focal", "val_loss", "val_focal", "val_iou"} <= set(trainer.callback_metrics)
    assert module.loss is names["my_loss"]
    metrics = list(Path("outputs/own").rglob("metrics.csv"))
    assert len(metrics) == 1 and "focal" in metrics[0].read_text().splitlines()[0]
    weights = module.model.state_dict()
    assert all(bool((weights[k] == v).all()) for k, v in names["model"].state_dict().items())


def test_scores_in_memory_and_on_disk_agree(names):
    assert [mask.shape for mask in names["tracked"]] == [(64, 64)] * 6
    in_memory = names["scorer"].result().objects()[1]
    on_disk = names["scores"].videos[0].objects()[1]
    assert in_memory["J"] > 0.5
    # Ground truth of one object is scored as in DAVIS 2016, which here uses the same frames.
    assert on_disk["J"] == pytest.approx(in_memory["J"])


class TestArguments:
    """Statements of the page about optional arguments."""

    def test_model_from_single_values(self):
        config = Config()
        model = create_sam2_model(
            config, size="nano", image_size=64, trainable_modules=["memory_encoder"], seed=1
        )
        assert config == Config()
        assert model.image_size == 64
        trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
        assert trained == {"memory_encoder"}
        same_seed, other_seed = (
            create_sam2_model(size="nano", image_size=64, seed=seed).mask_downsample.weight
            for seed in (1, 2)
        )
        weights = model.mask_downsample.weight
        assert weights.equal(same_seed) and not weights.equal(other_seed)

    def test_model_from_a_checkpoint_has_its_size(self):
        _, loaded = load_model("nano")
        model = create_sam2_model(checkpoint="nano")
        assert model.image_size == loaded.image_size
        state = loaded.state_dict()
        assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
        with pytest.raises(ConfigError, match="image_size"):  # not a multiple of 32
            create_sam2_model(checkpoint="nano", image_size=100)

    def test_custom_sources(self, toy_config):
        source = SyntheticDataset(4, 2, 32, 1, seed=0)
        data = SAM2LightningDataModule(toy_config, train_source=source)
        train, val = data.train_clips.source.names, data.val_clips.source.names
        assert len(val) == 1 and set(train) | set(val) == set(source.names)
        assert not set(train) & set(val)
        data = SAM2LightningDataModule(toy_config, train_source=source, val_source=source)
        assert data.train_clips.source is data.val_clips.source is source
        with pytest.raises(ValueError, match="train_source"):
            SAM2LightningDataModule(toy_config, val_source=source)

    def test_fit_uses_callbacks_and_a_loss(self, toy_config, tmp_path):
        class Count(Callback):
            steps = 0

            def on_train_batch_end(self, *_):
                self.steps += 1

        def loss(output, batch, all_devices):
            return {"loss": output.mask_logits.square().mean(), "own": torch.tensor(1.0)}

        toy_config.trainer.max_steps, count = 2, Count()
        result = fit(toy_config, str(tmp_path / "run"), callbacks=[count], loss=loss)
        assert count.steps == 2
        assert result.metrics["own"] == result.metrics["val_own"] == 1

    def test_weights_only_checkpoint_of_a_trainer_loads(self, toy_config, tmp_path):
        checkpoint = ModelCheckpoint(tmp_path, "weights", save_weights_only=True)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        trainer = Trainer(max_steps=1, accelerator="cpu", callbacks=[checkpoint], **quiet)
        module = SAM2LightningModule(toy_config, loss=SAM2TrainingLoss())
        trainer.fit(module, datamodule=SAM2LightningDataModule(toy_config))
        config, model = load_model(tmp_path / "weights.ckpt")
        assert config.model == toy_config.model
        state = module.model.state_dict()
        assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())

    def test_callbacks_and_loss_need_one_device(self, toy_config, tmp_path):
        toy_config.trainer.devices = "2"
        for arguments in ({"callbacks": [Callback()]}, {"loss": lambda *_: {}}):
            with pytest.raises(ConfigError, match="trainer.devices=1"):
                fit(toy_config, tmp_path / "run", **arguments)
