"""Training: the files of a run, its logs, and errors before the first step."""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from data_helpers import make_davis
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from tracker_helpers import BREAK_CONVENTION

from sam2kit.config.loading import load_config, override_config, resolve_config_precision
from sam2kit.config.schema import Config, OptimizerConfig, SchedulerConfig
from sam2kit.data import build_validation_source
from sam2kit.evaluation.evaluate import AFTER, BEFORE, COPY, ZEROED, evaluate_checkpoint
from sam2kit.models.checkpoints import create_sam2_model, load_run, load_weights, read_run_config
from sam2kit.training import trainer as train_module
from sam2kit.training.module import SAM2LightningModule, step_generator
from sam2kit.training.optim import build_optimizer, learning_rate_factor, parameter_groups
from sam2kit.training.resume import resolve_monitor
from sam2kit.training.trainer import FitResult, fit
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import CheckpointError, ConfigError
from sam2kit.utils.paths import file_name, new_run_dir, open_run_dir


@pytest.fixture
def config(tiny_config, tmp_path) -> Config:
    """Two steps per epoch on generated clips."""
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.synthetic_videos = 4
    tiny_config.dataset.batch_size = 2
    tiny_config.valdataset.synthetic_videos = 2
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.max_epochs = 1
    tiny_config.trainer.log_every_n_steps = 1
    tiny_config.output_dir = str(tmp_path / "outputs")
    return tiny_config


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> tuple[Path, list[FitResult]]:
    """The output directory of the run that tests share, and its result once it has been trained."""
    return tmp_path_factory.mktemp("outputs"), []


@pytest.fixture
def run(config, outputs, tmp_path) -> FitResult:
    """A run of ``config``, copied for each test, because training takes longer than a copy."""
    folder, results = outputs
    if not results:
        results.append(fit(replace(config, output_dir=str(folder))))
    run_dir = tmp_path / "outputs" / results[0].run_dir.relative_to(folder)
    shutil.copytree(results[0].run_dir, run_dir)
    best, last = run_dir / "best.ckpt", run_dir / "last.ckpt"
    return replace(results[0], run_dir=run_dir, best_checkpoint=best, last_checkpoint=last)


def test_run_writes_all_files_to_a_dated_directory(outputs, run, config):
    assert outputs[1][0].best_checkpoint == outputs[1][0].run_dir / "best.ckpt"
    config.output_dir = str(outputs[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d", "/".join(run.run_dir.parts[-2:]))
    names = {p.name for p in run.run_dir.iterdir()}
    assert {"config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "train.log"} <= names
    assert any((run.run_dir / "tensorboard").glob("events.*"))
    assert not run.interrupted
    assert load_config(run.run_dir / "config.yaml") == resolve_monitor(
        resolve_config_precision(config)
    )
    log = (run.run_dir / "train.log").read_text()
    assert "step 2/2" in log and "memory_attention" in log
    assert re.search(r"Validating on \d+ videos?: \w", log)
    assert re.search(r"epoch 0 validation val_loss \d+\.\d{3} val_iou \d\.\d{3}\n", log)


def test_every_term_is_logged(run):
    with open(run.run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    terms = {"loss", "loss_bce", "loss_dice", "loss_iou", "loss_temporal"}
    expected = terms | {f"val_{t}" for t in terms} | {"val_iou", "learning_rate"}
    for key in expected:
        values = [float(row[key]) for row in rows if row[key]]
        assert values and all(v == v for v in values), key
    assert expected <= run.metrics.keys()


def test_checkpoint_contains_its_configuration(outputs, run, config):
    config.output_dir = str(outputs[0])
    stored, model = load_run(run.best_checkpoint)
    assert stored == resolve_monitor(resolve_config_precision(config))
    start = create_sam2_model(config).state_dict()
    tuned = model.state_dict()
    moved = {k.split(".")[0] for k in tuned if not torch.equal(tuned[k], start[k])}
    assert moved <= {
        "memory_attention",
        "memory_encoder",
        "maskmem_tpos_enc",
        "no_obj_ptr",
        "no_obj_embed_spatial",
        "no_mem_embed",
        "no_mem_pos_enc",
    }
    assert {"memory_attention", "memory_encoder", "maskmem_tpos_enc"} <= moved


def test_evaluate_scores_trackers_side_by_side(run, tmp_path):
    evaluation = evaluate_checkpoint(run.best_checkpoint, [], tmp_path / "evaluation")
    assert list(evaluation.scores) == [AFTER, BEFORE, ZEROED, COPY]
    files = {p.name for p in (tmp_path / "evaluation").iterdir()}
    assert {"metrics.json", "overlay.png", "overlay.gif", "config.yaml", "overlays"} <= files
    metrics = evaluation.metrics
    videos = [v["trackers"][COPY] for v in metrics["videos"].values()]
    per_object = [o["J"] for v in videos for o in v["objects"].values()]
    assert metrics["trackers"][COPY]["scored_objects"] == len(per_object)
    assert metrics["trackers"][COPY]["J"] == pytest.approx(sum(per_object) / len(per_object))


def test_tracking_as_in_training_gives_the_validation_score(run, tmp_path, monkeypatch):
    """The same videos, prompts and weights, once as clips and once frame by frame."""
    names = ("pil_bicubic", "memory_in_bfloat16", "reencode_prompted", "binarize_prompted")
    for name in (*names, "choose_by_stability"):
        BREAK_CONVENTION[name](monkeypatch)
    no_pictures = ["evaluation.pictures=false"]
    evaluation = evaluate_checkpoint(run.best_checkpoint, no_pictures, tmp_path / "evaluation")
    score = evaluation.metrics["trackers"][AFTER]["J"]
    assert score == pytest.approx(run.metrics["val_iou"], abs=1e-3)


def test_evaluation_without_the_initial_checkpoint(config, tmp_path, run):
    config.model.checkpoint = str(run.best_checkpoint)
    second = fit(config, tmp_path / "second")
    run.best_checkpoint.unlink()
    no_pictures = ["evaluation.pictures=false"]
    evaluation = evaluate_checkpoint(second.best_checkpoint, no_pictures, tmp_path / "evaluation")
    assert list(evaluation.scores) == [AFTER, ZEROED, COPY]


def test_checkpoint_of_another_size_is_rejected(run, config):
    config.model.size = "s"  # a size that was chosen; the default would follow the run
    config.model.checkpoint = str(run.best_checkpoint)
    with pytest.raises(CheckpointError, match="set model.size=nano"):
        fit(config)


def test_the_same_seed_gives_the_same_run(run, config, tmp_path):
    assert fit(config, tmp_path / "b").metrics == run.metrics


def test_training_resumes_from_a_checkpoint(run, config, tmp_path):
    longer = override_config(config, ["trainer.max_epochs=2"])
    longer.trainer.resume_from = str(run.last_checkpoint)
    second = fit(longer, tmp_path / "b")
    with open(second.run_dir / "metrics.csv", newline="") as file:
        assert min(int(row["step"]) for row in csv.DictReader(file)) >= 2
    assert _epochs(second) == 2
    longer.trainer.resume_from = str(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="trainer.resume_from.*none.ckpt"):
        fit(longer, tmp_path / "d")


def test_last_step_is_validated_even_within_an_epoch(config, tmp_path):
    config.dataset.synthetic_videos = 8
    config.trainer.max_steps = 3
    result = fit(config, tmp_path / "run")
    assert "val_loss" in result.metrics and result.best_checkpoint.name == "best.ckpt"
    assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 3


def test_early_stopping_is_off_by_default(config, tmp_path, monkeypatch):
    config.trainer.max_epochs = 4
    config.dataset.image_size, config.dataset.video_clip_length = 32, 2
    config.optimizer.lr = 1e-12  # the validation loss cannot fall
    assert _epochs(fit(config, tmp_path / "a")) == 4
    config.trainer.early_stopping_patience = 1
    assert _epochs(fit(config, tmp_path / "b")) < 4


def _epochs(result) -> int:
    return torch.load(result.last_checkpoint, weights_only=True)["epoch"] + 1


def test_interrupt_saves_a_checkpoint_and_restores_handlers(config, tmp_path, monkeypatch):
    config.trainer.max_epochs = 50
    before = signal.getsignal(signal.SIGINT)
    step = train_module.SAM2LightningModule.training_step

    def interrupt_in_second_step(self, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(train_module.SAM2LightningModule, "training_step", interrupt_in_second_step)
    result = fit(config, tmp_path / "run")
    assert result.interrupted and result.last_checkpoint.exists()
    assert signal.getsignal(signal.SIGINT) is before
    load_weights(create_sam2_model(config), str(result.last_checkpoint))


def test_debug_run_is_marked(config, tmp_path):
    config.debug = True
    result = fit(config, tmp_path / "run")
    assert "DEBUG RUN" in (result.run_dir / "train.log").read_text()
    assert yaml.safe_load((result.run_dir / "config.yaml").read_text())["debug"] is True


@pytest.mark.parametrize("logger", ["wandb", "swanlab"])
def test_other_loggers_work_offline(config, tmp_path, monkeypatch, logger):
    pytest.importorskip(logger)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    config.trainer.logger = logger
    result = fit(config, tmp_path / "run")
    folder = result.run_dir / {"wandb": "wandb", "swanlab": "swanlog"}[logger]
    assert any(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_a_logger_without_a_login(config, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(*args, **keywords):
        raise wandb.errors.UsageError("No API key configured")

    monkeypatch.setattr(wandb, "init", refuse)
    config.trainer.logger = "wandb"
    with pytest.raises(ConfigError, match="No API key configured.*wandb login.*WANDB_MODE=offline"):
        fit(config)


def test_a_frozen_random_model_is_warned_of(run, config, tmp_path):
    log = (run.run_dir / "train.log").read_text()
    assert "model.checkpoint=random and image_encoder" in log
    config.model.trainable_modules = ["*"]
    log = (fit(config, tmp_path / "whole").run_dir / "train.log").read_text()
    assert "model.checkpoint=random" not in log


def test_failure_before_the_first_step_is_raised(config, monkeypatch):
    def fail(self):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(train_module.SAM2LightningModule, "configure_optimizers", fail)
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        fit(config)


def test_use_wandb_overrides_the_logger(config):
    config.use_wandb = True
    assert config.logger == "wandb"


@pytest.mark.parametrize("logger", ["wandb", "swanlab"])
def test_logger_that_is_not_installed(config, monkeypatch, logger):
    monkeypatch.setitem(sys.modules, logger, None)
    monkeypatch.setitem(sys.modules, f"{logger}.integration.pytorch_lightning", None)
    config.trainer.logger = logger
    with pytest.raises(ConfigError) as error:
        fit(config)
    assert (error.value.key, error.value.value) == ("trainer.logger", logger)
    assert f"pip install 'sam2kit[{logger}]'" in error.value.hint


def test_run_directories_of_one_second_differ(tmp_path):
    assert len({new_run_dir(tmp_path) for _ in range(5)}) == 5


def test_loss_without_trained_modules_is_rejected(config, tmp_path):
    config.dataset.video_clip_length = 1
    config.trainer.audit = "off"
    with pytest.raises(ConfigError, match="no trainable parameter") as error:
        fit(config, tmp_path / "run")
    assert error.value.key == "model.trainable_modules"


def test_file_names_of_videos_stay_in_the_directory():
    assert file_name("My ünïque video-1") == "My ünïque video-1"
    names = ["../a", "/a", "_a", "..", "x" * 300, "x" * 301, "a/b", "a\nb", "\udcff"]
    files = [file_name(name) for name in names]
    assert len(set(files)) == len(names) and all(0 < len(f) < 80 for f in files)
    assert not any(set("/\n") & set(f) or f.startswith(".") for f in files)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_device_is_rejected(config, tmp_path):
    config.trainer.accelerator = "gpu"
    with pytest.raises(ConfigError, match="must be a device available on this machine") as error:
        fit(config, tmp_path / "run")
    assert (error.value.key, error.value.value) == ("trainer.accelerator", "gpu")
    with pytest.raises(
        ConfigError, match="trainer.accelerator='gpu' must be a device available on this"
    ):
        pick_device("gpu")


def test_run_directory_without_write_access_is_rejected(config, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    config.output_dir = str(file)
    for run_dir, path in ((None, file), (file / "inside", file / "inside")):
        with pytest.raises(ConfigError) as error:
            fit(config, run_dir)
        assert (error.value.key, error.value.value) == ("output_dir", str(path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="no write permission"):
        open_run_dir(tmp_path, tmp_path)


def test_parameter_groups_are_disjoint_complete_and_spare_biases(tiny_config):
    model = create_sam2_model(tiny_config)
    config = OptimizerConfig(weight_decay=0.1)
    plain, decayed = sorted(parameter_groups(model, config), key=lambda g: g["weight_decay"])
    ids = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters() if p.requires_grad}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(p): n for n, p in model.named_parameters()}
    for p in plain["params"]:
        assert names[id(p)].endswith("bias") or p.squeeze().ndim < 2
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ConfigError) as error:
        parameter_groups(model, config)
    assert error.value.key == "model.trainable_modules"


def test_learning_rate_has_a_warm_up_and_a_cosine(tiny_config):
    factor = learning_rate_factor(SchedulerConfig(warmup_steps=4, min_lr_ratio=0.1), 24)
    assert [factor(s) for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert factor(14) == pytest.approx(0.1 + 0.9 * 0.5)
    assert factor(24) == factor(100) == pytest.approx(0.1)
    constant = learning_rate_factor(SchedulerConfig(name="constant"), 24)
    assert constant(0) == constant(24) == 1.0
    optimizer = build_optimizer(create_sam2_model(tiny_config), OptimizerConfig())
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.defaults["lr"] == 1e-4


def test_random_numbers_depend_on_seed_step_and_rank_only():
    def draw(*key):
        return torch.rand(3, generator=step_generator(*key)).tolist()

    assert draw(1, 2, 0) == draw(1, 2, 0)
    assert len({tuple(draw(*k)) for k in [(1, 2, 0), (1, 3, 0), (1, 2, 1), (2, 2, 0)]}) == 4


@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_strategy_is_passed_to_lightning(config, run, strategy, monkeypatch, tmp_path):
    strategies = []

    def record(module):
        strategies.append(type(module.trainer.strategy))

    monkeypatch.setattr(SAM2LightningModule, "on_train_start", record)
    config.trainer.strategy = strategy
    result = fit(config, tmp_path / strategy)
    assert strategies == [{"auto": SingleDeviceStrategy, "ddp": DDPStrategy}[strategy]]
    assert not torch.distributed.is_initialized()
    first, second = (
        torch.load(r.last_checkpoint, weights_only=True)["state_dict"] for r in (run, result)
    )
    assert first.keys() == second.keys()
    for name, weights in first.items():
        torch.testing.assert_close(second[name], weights)


def test_a_single_video_is_detected_split_and_evaluated(tiny_config, tmp_path):
    make_davis(tmp_path / "data", {"only": 25}, annotated=lambda t: t % 3 == 0)
    tiny_config.dataset.data_path = str(tmp_path / "data")
    tiny_config.dataset.clips_per_video = 2
    tiny_config.trainer.accelerator, tiny_config.trainer.max_epochs = "cpu", 1
    result = fit(tiny_config, tmp_path / "run")
    config = load_config(result.run_dir / "config.yaml")
    assert (config.dataset.type, config.dataset.time_split) == ("video", [18, 20, 25])
    assert read_run_config(result.last_checkpoint).dataset.time_split == [18, 20, 25]
    assert "dataset.time_split=[18, 20, 25]" in (result.run_dir / "train.log").read_text()
    # More frames do not move the split, and the run resumes as it began.
    make_davis(tmp_path / "data", {"only": 26}, annotated=lambda t: t % 3 == 0)
    assert build_validation_source(config).num_frames(0) == 5
    config.trainer.max_epochs = 2
    assert fit(config, result.run_dir, resume=True).metrics.keys() >= {"val_loss"}
    tiny_config.trainer.max_epochs = 2
    with pytest.raises(ConfigError, match="time_split"):
        fit(tiny_config, result.run_dir, resume=True)
