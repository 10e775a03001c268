"""A resumed run equals an uninterrupted run bit for bit."""

from __future__ import annotations

import csv
import os
import resource
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from data_helpers import make_davis
from loguru import logger

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config, override_config, save_config
from sam2kit.config.schema import Config
from sam2kit.data.build import build_datasets
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.loader import create_dataloader
from sam2kit.data.splits import read_splits
from sam2kit.models import checkpoint_io as checkpoint_files
from sam2kit.models.checkpoint_io import fault_in, keep_copy, kept_copies, write_checkpoint
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.training import module as training_module
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.loggers import RunMetrics, last_values
from sam2kit.training.resume import check_resume, latest_valid_checkpoint
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def config(toy_config, tmp_path, monkeypatch):
    """Two epochs of four batches, the last one smaller, with dropout and every kind of prompt."""
    toy_config.dataset.synthetic_videos = 7
    toy_config.dataset.batch_size = 2
    toy_config.dataset.augment = True
    toy_config.dataset.prompt_types = ["mask", "box", "point"]
    toy_config.trainer.max_epochs = 2
    toy_config.trainer.early_stopping_patience = 9
    toy_config.trainer.log_every_n_steps = 1
    toy_config.scheduler.warmup_steps = 3
    toy_config.optimizer.lr = 1e-3
    toy_config.output_dir = str(tmp_path / "outputs")

    def with_dropout(config):
        model = create_sam2_model(config)
        for module in model.memory_attention.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.2
        return model

    monkeypatch.setattr(training_module, "create_sam2_model", with_dropout)
    return toy_config


@pytest.fixture
def steps(monkeypatch):
    """Record each step as (global batch, sum over its frames), and stop at a given one."""

    class Steps(list):
        stop_in = None  # interrupt in this batch, counted from 0 over all epochs
        signal = signal.SIGINT

    seen = Steps()
    step = training_module.SAM2LightningModule.training_step

    def watched(self, batch, batch_idx):
        number = self.trainer.fit_loop.total_batch_idx
        seen.append((number, int(batch.frames.sum())))
        if number == seen.stop_in:
            seen.stop_in = None
            os.kill(os.getpid(), seen.signal)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(training_module.SAM2LightningModule, "training_step", watched)
    return seen


def state(result):
    return torch.load(result.last_checkpoint, weights_only=True)


def assert_same(first, second):
    """Weights, the optimizer's state and the schedule, bit for bit."""
    for key in ("state_dict", "current_model_state"):
        if key in first:
            assert first[key].keys() == second[key].keys()
            different = [k for k in first[key] if not torch.equal(first[key][k], second[key][k])]
            assert not different, f"{key}: {different[:3]} of {len(different)}"
    one, two = first["optimizer_states"][0], second["optimizer_states"][0]
    assert len(one["param_groups"]) == 2 and one["param_groups"] == two["param_groups"]
    for i, moments in one["state"].items():
        assert all(torch.equal(v, two["state"][i][k]) for k, v in moments.items())
    assert first["lr_schedulers"] == second["lr_schedulers"]
    assert first["global_step"] == second["global_step"]


def rows(result, key="loss"):
    if not (result.run_dir / "metrics.csv").exists():  # stopped before the first value
        return []
    with open(result.run_dir / "metrics.csv", newline="") as file:
        return [(int(row["step"]), row[key]) for row in csv.DictReader(file) if row.get(key)]


def resume(config, first, tmp_path, name="resumed", overrides=()):
    config = override_config(config, list(overrides))
    config.trainer.resume_from = str(first.last_checkpoint)
    return fit(config, tmp_path / name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Uninterrupted runs, each trained once per set of overrides: (result, recorded steps)."""
    made = {}

    def run(config, steps, overrides=()):
        same = [o for o in overrides if "num_workers" not in o and "check_val" not in o]
        key = tuple(o for o in same if "audit" not in o)
        if key not in made:
            result = fit(override_config(config, list(key)), tmp_path_factory.mktemp("whole"))
            made[key] = (result, list(steps))
            steps.clear()
        return made[key]

    return run


@pytest.mark.parametrize(
    "stop_in, overrides",
    [
        pytest.param(1, [], marks=pytest.mark.slow),
        (1, ["dataset.num_workers=2"]),
        pytest.param(1, ["trainer.max_steps=6"], marks=pytest.mark.slow),
        (3, []),  # the last batch of the first epoch
        (3, ["trainer.max_steps=6"]),
        pytest.param(3, ["trainer.check_val_every_n_epoch=2"], marks=pytest.mark.slow),
        pytest.param(4, ["dataset.num_workers=2", "trainer.max_steps=6"], marks=pytest.mark.slow),
        (5, ["trainer.check_val_every_n_epoch=2", "trainer.audit=stop"]),
        (0, ["trainer.accumulate_grad_batches=2"]),  # before the first step
        (2, ["trainer.accumulate_grad_batches=2"]),  # within an accumulation
        (2, ["trainer.limit_train_batches=3", "trainer.check_val_every_n_epoch=2"]),
        (5, ["trainer.ema_decay=0.9"]),
        (5, ["dataset.correction_clicks=2", "model.lora_modules=[memory_attention]"]),
        pytest.param(
            6,
            ["trainer.ema_decay=0.9", "trainer.accumulate_grad_batches=2"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_stopped_run_resumes_exactly(config, steps, runs, tmp_path, stop_in, overrides):
    whole, undisturbed = runs(config, steps, overrides)
    config = override_config(config, overrides)
    steps.stop_in = stop_in
    first = fit(config, tmp_path / "first")
    assert first.interrupted and steps == undisturbed[: stop_in + 1]
    second = resume(config, first, tmp_path)
    assert not second.interrupted
    assert set(steps) == set(undisturbed)
    assert_same(state(whole), state(second))
    done = state(first)["global_step"]
    assert rows(whole) == [r for r in rows(first) if r[0] < done] + rows(second)


def test_run_with_generated_clips_resumes_exactly(config, steps, tmp_path):
    videos = make_davis(tmp_path / "videos", dict.fromkeys("abcde", 4))
    source = ["dataset.type=video", f"dataset.data_path={videos}", "dataset.num_workers=2"]
    config = override_config(config, [*source, "dataset.replay=0.5"])
    whole, undisturbed = fit(config, tmp_path / "whole"), list(steps)
    assert len(undisturbed) == 8  # two epochs of four clips of videos and four generated ones
    steps.clear()
    steps.stop_in = 5
    first = fit(config, tmp_path / "first")
    with pytest.raises(ConfigError, match=r"replay is 0\.3 and was 0\.5"):
        resume(config, first, tmp_path, "other", ["dataset.replay=0.3"])
    assert_same(state(whole), state(resume(config, first, tmp_path)))
    assert set(steps) == set(undisturbed)
    assert state(whole)["SAM2LightningDataModule"]["digest"] != "generated"


class Killed(Exception):
    """Simulates a kill: nothing is saved after it is raised."""


@pytest.mark.parametrize(
    "killed_in, overrides",
    [
        (2, []),
        (4, []),  # the first step of the second epoch
        (6, ["dataset.num_workers=2", "trainer.ema_decay=0.9"]),
        (7, []),  # the last step of the run
        (7, ["trainer.accumulate_grad_batches=2"]),
    ],
)
def test_killed_run_resumes_within_its_epoch(
    config, steps, runs, tmp_path, monkeypatch, killed_in, overrides
):
    whole, undisturbed = runs(config, steps, overrides)
    config = override_config(config, [*overrides, "trainer.checkpoint_minutes=0"])
    seen, forward = [], training_module.SAM2LightningModule.forward

    def dies(self, *arguments):
        if self.training:
            seen.append(1)
            if len(seen) == killed_in + 1:
                raise Killed
        return forward(self, *arguments)

    monkeypatch.setattr(training_module.SAM2LightningModule, "forward", dies)
    with pytest.raises(Killed):
        fit(config, tmp_path / "run")
    assert not list(tmp_path.rglob("*.part*"))
    steps.clear()
    second = fit(config, tmp_path / "run", resume=True)
    every = config.trainer.accumulate_grad_batches
    assert steps == undisturbed[killed_in - killed_in % every :]
    assert_same(state(whole), state(second))
    for key in ("loss", "val_loss", "val_iou"):
        assert rows(second, key) == rows(whole, key)


def test_resuming_a_complete_run_changes_nothing(config, steps, tmp_path):
    config.trainer.max_epochs = 1
    first = fit(config, tmp_path / "run", resume=True)  # there is no checkpoint yet
    before = first.last_checkpoint.read_bytes()
    steps.clear()
    again = fit(config, tmp_path / "run", resume=True)
    assert not steps and again.last_checkpoint.read_bytes() == before
    assert again.best_checkpoint == first.best_checkpoint and not again.interrupted
    assert again.metrics["val_iou"] == pytest.approx(first.metrics["val_iou"])


def test_run_that_stopped_early_is_complete(config, steps, tmp_path):
    config = override_config(
        config, ["trainer.early_stopping_patience=1", "trainer.max_epochs=9", "optimizer.lr=1e-12"]
    )
    first = fit(config, tmp_path / "run")
    assert len(steps) < 36
    steps.clear()
    with pytest.raises(ConfigError, match="stopped early") as error:
        resume(config, first, tmp_path)
    assert (error.value.key, error.value.value) == ("trainer.early_stopping_patience", 1)
    assert fit(config, tmp_path / "run", resume=True).run_dir == first.run_dir and not steps


def test_another_number_of_devices_is_rejected(config, tmp_path, stopped):
    with pytest.raises(ConfigError, match="size is 1, .* give 2") as error:
        resume(config, stopped, tmp_path, overrides=["trainer.devices=2"])
    assert (error.value.key, error.value.value) == ("trainer.devices", "2")


def test_run_can_stop_repeatedly_with_changing_loaders(config, steps, runs, tmp_path):
    whole, undisturbed = runs(config, steps)
    for stop_in, workers in ((0, 2), (2, 0), (5, 2), (None, 0)):
        steps.stop_in, config.dataset.num_workers = stop_in, workers
        result = fit(config, tmp_path / f"until-{stop_in}")
        config.trainer.resume_from = str(result.last_checkpoint)
    assert steps == undisturbed
    assert_same(state(whole), state(result))


def test_best_checkpoint_can_be_resumed(config, steps, runs, tmp_path):
    overrides = ["scheduler.name=constant"]
    whole, _ = runs(config, steps, overrides)
    first = fit(override_config(config, [*overrides, "trainer.max_epochs=1"]), tmp_path / "first")
    longer = override_config(config, overrides)
    longer.trainer.resume_from = str(first.best_checkpoint)
    assert_same(state(whole), state(fit(longer, tmp_path / "second")))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_epoch_draws_new_clips(config, steps, tmp_path, workers):
    config.dataset.num_workers = workers
    fit(config, tmp_path / "run")
    assert len({frames for _, frames in steps}) == 8  # no batch comes twice
    clips, _ = build_datasets(config)
    expected = []
    for epoch in range(2):
        clips.set_epoch(epoch)
        loader = create_dataloader(clips, config.dataset, True, config.seed)
        expected += [int(batch.frames.sum()) for batch in loader]
    assert [frames for _, frames in steps] == expected


def test_resume_in_the_same_directory(config, steps, runs, tmp_path):
    whole, _ = runs(config, steps)
    steps.stop_in = 5
    first = fit(config, tmp_path / "run")
    before = best_score(state(first))
    with open(first.run_dir / "metrics.csv", "a") as file:  # as if the run had been killed later
        file.write(",".join("9999" if k == "step" else "1" for k in _header(first)) + "\n")
    second = resume(config, first, tmp_path, "run")
    assert rows(second) == rows(whole)
    validations = rows(second, "val_loss")
    assert validations == rows(whole, "val_loss")  # none in the middle of an epoch
    lowest = min(float(loss) for _, loss in validations)
    stored = torch.load(second.run_dir / "best.ckpt", weights_only=True)
    assert float(best_score(stored)["best_model_score"]) == pytest.approx(lowest)
    assert lowest <= float(before["best_model_score"])
    assert (second.run_dir / "train.log").read_text().count("Run directory") == 2


def _header(result):
    return (result.run_dir / "metrics.csv").read_text().splitlines()[0].split(",")


def best_score(content):
    """Return the state of the callback that saves the best checkpoint."""
    callbacks = content["callbacks"].items()
    (best,) = [c for k, c in callbacks if k.startswith("ModelCheckpoint") and "val_loss" in k]
    return best


def test_earlier_best_checkpoint_is_not_overwritten(config, steps, tmp_path):
    steps.stop_in = 5
    first = fit(config, tmp_path / "run")
    content = state(first)
    best = best_score(content)
    best["best_model_score"] = torch.tensor(0.0)
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], torch.tensor(0.0))
    torch.save(content, first.last_checkpoint)
    before = (first.run_dir / "best.ckpt").read_bytes()
    second = resume(config, first, tmp_path, "run")
    assert second.best_checkpoint.read_bytes() == before


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped"), {}


@pytest.fixture
def stopped(config, steps, stopped_once, tmp_path):
    """A run that was stopped after two steps, copied for each test."""
    folder, made = stopped_once
    if not made:
        steps.stop_in = 1
        made["result"] = fit(config, folder)
    shutil.copytree(folder, tmp_path / "stopped")
    return replace(
        made["result"],
        run_dir=tmp_path / "stopped",
        last_checkpoint=tmp_path / "stopped" / "last.ckpt",
    )


@pytest.mark.parametrize(
    "overrides, named",
    [
        (["model.size=t"], "model.size is 't' and was 'nano'"),
        (["dataset.image_size=64"], "dataset.image_size is 64 and was 32"),
        (["model.trainable_modules=[memory_encoder]"], "model.trainable_modules is"),
        (["optimizer.lr=1"], "optimizer.lr is 1.0 and was 0.001"),
        (["dataset.batch_size=1", "seed=1"], "batch_size is 1 and was 2; seed is 1 and was 42"),
        (["trainer.accumulate_grad_batches=2"], "accumulate_grad_batches is 2 and was 1"),
        (["trainer.ema_decay=0.5"], "ema_decay is 0.5 and was None"),
    ],
)
def test_changed_configuration_is_rejected(config, tmp_path, stopped, overrides, named):
    with pytest.raises(ConfigError) as error:
        resume(config, stopped, tmp_path, "other", overrides)
    assert error.value.key == "trainer.resume_from" and named in str(error.value)
    assert error.value.value == str(stopped.last_checkpoint)
    assert f"--config {stopped.run_dir / 'config.yaml'}" in error.value.hint
    assert not (tmp_path / "other").exists()


def test_other_videos_are_rejected(config, tmp_path, stopped, monkeypatch):
    monkeypatch.setattr(ClipDataset, "videos", "10 videos, 30 frames, 12345678")
    with pytest.raises(DataError, match="7 videos, 14 frames.*10 videos, 30 frames") as error:
        resume(config, stopped, tmp_path)
    assert error.value.key == "trainer.resume_from"


def test_complete_run_is_rejected(config, tmp_path):
    config.trainer.max_epochs = 1
    complete = fit(config, tmp_path / "run")
    with pytest.raises(ConfigError, match="epochs: 1, steps: 4") as error:
        resume(config, complete, tmp_path)
    assert (error.value.key, error.value.value) == ("trainer.max_epochs", 1)
    limits = ["trainer.max_epochs=2", "trainer.max_steps=4"]
    with pytest.raises(ConfigError) as error:
        resume(config, complete, tmp_path, "again", limits)
    assert (error.value.key, error.value.value) == ("trainer.max_steps", 4)


def test_run_is_not_overwritten_but_can_be_resumed(config, tmp_path, stopped, capsys):
    again = ["train", "--config", str(stopped.run_dir / "config.yaml"), "--run-dir"]
    assert main([*again, str(stopped.run_dir)]) == 2
    assert f"--run-dir {stopped.run_dir} --resume auto" in capsys.readouterr().err
    assert main([*again, str(tmp_path / "b"), f"trainer.resume_from={stopped.run_dir}"]) == 2
    message = capsys.readouterr().err
    assert "is a directory; pass " in message and "last.ckpt" in message
    override = f"trainer.resume_from={stopped.last_checkpoint}"
    assert main([*again, str(stopped.run_dir), override]) == 0
    assert state(stopped)["global_step"] == 8


def test_checkpoint_that_is_not_of_a_run_is_rejected(config, tmp_path, stopped):
    content = state(stopped)
    del content["SAM2LightningDataModule"]
    torch.save(content, stopped.last_checkpoint)
    with pytest.raises(CheckpointError, match="last.ckpt") as error:
        resume(config, stopped, tmp_path)
    assert "--model-checkpoint" in error.value.hint
    torch.save({"model": {}}, stopped.last_checkpoint)
    with pytest.raises(CheckpointError, match="contains no sam2kit config") as error:
        resume(config, stopped, tmp_path)
    assert error.value.key == "trainer.resume_from"


def damage(path):
    """Flip one bit in the middle of the tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_last_checkpoint_falls_back_to_the_best(config, tmp_path, runs, steps):
    constant = ["scheduler.name=constant"]  # a cosine depends on the number of steps
    whole, _ = runs(config, steps, constant)
    folder = tmp_path / "run"
    config = override_config(config, constant)
    fit(override_config(config, ["trainer.max_epochs=1"]), folder)
    damage(folder / "last.ckpt")
    log = []
    sink = logger.add(log.append, level="WARNING")
    again = fit(config, folder, resume=True)
    logger.remove(sink)
    assert any("last.ckpt is damaged" in line for line in log)
    assert_same(state(whole), state(again))
    assert rows(again) == rows(whole)


def test_sigterm_stops_after_the_step_and_the_run_resumes(config, tmp_path, runs, steps):
    """Clusters send it before they reclaim a machine; previous handlers are restored afterwards."""
    whole, _ = runs(config, steps)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    steps.stop_in, steps.signal = 2, signal.SIGTERM
    first = fit(config, tmp_path / "run")
    assert first.interrupted and state(first)["global_step"] == 3
    assert before == {number: signal.getsignal(number) for number in before}
    assert_same(state(whole), state(fit(config, tmp_path / "run", resume=True)))


def test_copies_are_pruned_and_replace_a_damaged_checkpoint(config, tmp_path):
    """One copy is written before the third of four steps of an epoch, one at its end."""
    settings = ["trainer.checkpoint_steps=2", "trainer.keep_checkpoints=2"]
    config = override_config(config, [*settings, "trainer.checkpoint_minutes=null"])
    result = fit(config, tmp_path / "run")
    whole = torch.load(result.last_checkpoint, weights_only=True)
    last, older = kept_copies(tmp_path / "run")
    steps = [torch.load(p, weights_only=True)["global_step"] for p in (last, older)]
    assert steps == [int(p.stem.partition("-")[2]) for p in (last, older)]
    assert steps[0] == whole["global_step"] > steps[1]
    with open(
        result.last_checkpoint, "r+b"
    ) as file:  # this also damages the newest copy, a hard link
        file.seek(os.path.getsize(result.last_checkpoint) // 2)
        file.write(b"\0" * 100 + b"\1" * 100)
    assert latest_valid_checkpoint(tmp_path / "run") == older
    fit(config, tmp_path / "run", resume=True)
    again = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert again["global_step"] == whole["global_step"]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, again["state_dict"][name]), name
    assert kept_copies(tmp_path / "run") == [last, older] and fault_in(last) is None


def test_only_own_copies_are_pruned(tmp_path):
    for name in ("step-final.ckpt", "step-3.ckpt", "step-99999999-mine.ckpt"):
        (tmp_path / name).write_text("mine")
    write_checkpoint({"step": 1}, tmp_path / "last.ckpt")
    for step in (1, 2):
        keep_copy(tmp_path / "last.ckpt", step, 1)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == [
        "step-00000002.ckpt",
        "step-3.ckpt",
        "step-99999999-mine.ckpt",
        "step-final.ckpt",
    ]


def test_copies_of_later_steps_are_deleted(tmp_path):
    for step in (1, 2, 3, 2):
        write_checkpoint({"step": step}, tmp_path / "last.ckpt")
        keep_copy(tmp_path / "last.ckpt", step, 2)
    assert [p.name for p in kept_copies(tmp_path)] == ["step-00000002.ckpt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "step-00000002.ckpt"]


def test_file_that_fails_verification_does_not_replace(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"step": 1}, path)
    monkeypatch.setattr(checkpoint_files, "fault_in", lambda path: "data/0")
    with pytest.raises(CheckpointError, match="last.ckpt.*data/0"):
        write_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and len([*tmp_path.iterdir()]) == 1


def test_no_new_run_if_all_checkpoints_are_damaged(config, tmp_path):
    for name in ("last.ckpt", "best.ckpt"):
        (tmp_path / name).write_bytes(b"PK" + bytes(100))
    with pytest.raises(CheckpointError, match="No valid checkpoint.*last.ckpt.*best.ckpt"):
        fit(config, tmp_path, resume=True)


def test_one_command_starts_and_resumes_a_run(tiny_config, tmp_path, capsys):
    save_config(tiny_config, tmp_path / "mine.yaml")
    command = ["train", "--config", str(tmp_path / "mine.yaml"), "--resume", "auto"]
    small = ["dataset.type=synthetic", "dataset.synthetic_videos=2", "dataset.image_size=32"]
    command += [*small, "valdataset.synthetic_videos=1", "--accelerator", "cpu"]
    assert main([*command, "--max-epochs", "1"]) == 2
    assert "add --run-dir DIR" in capsys.readouterr().err
    command += ["--run-dir", str(tmp_path / "run")]
    for epochs in (1, 2, 2):  # start, resume, nothing left to train
        assert main([*command, "--max-epochs", str(epochs)]) == 0
        content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
        assert content["SAM2LightningDataModule"]["epoch"] == epochs - 1
    assert "Nothing left to train" in capsys.readouterr().err


def test_run_that_took_its_size_from_a_checkpoint_resumes(toy_config, tmp_path):
    """The same configuration, such as the trial.yaml of a sweep, starts and resumes a run."""
    toy_config.model = replace(Config().model, checkpoint="nano")  # the size is the default
    toy_config.dataset.synthetic_videos = toy_config.trainer.max_steps = 1
    save_config(toy_config, tmp_path / "trial.yaml")
    for steps in (1, 2):
        config = load_config(tmp_path / "trial.yaml", [f"trainer.max_steps={steps}"])
        assert config.model.size == "t"
        result = fit(config, tmp_path / "run", resume=True)
        assert torch.load(result.last_checkpoint, weights_only=True)["global_step"] == steps
    # Another starting model is an error that names it.
    config.model.checkpoint, config.trainer.max_steps = "nano-1", 3
    with pytest.raises(ConfigError, match="model.checkpoint is 'nano-1' and was 'nano'"):
        fit(config, tmp_path / "run", resume=True)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    write_checkpoint({"x": torch.zeros(10)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="last.ckpt: cannot be written"):
            write_checkpoint({"x": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]


def files(folder):
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name != "run.lock"
    }


def test_moved_run_keeps_its_best_checkpoint(toy_config, tmp_path):
    """Lightning forgets the best score if the absolute path of the directory has changed."""
    toy_config.trainer.max_epochs = 1
    toy_config.dataset.synthetic_videos = 2
    first = fit(toy_config, tmp_path / "first")
    content = state(first)
    best = best_score(content)
    assert best["best_model_path"] == "best.ckpt" and best["dirpath"] == "."
    assert not [k for k in best["best_k_models"] if "/" in k]
    # A score that no later epoch reaches.
    best["best_model_score"] = best["kth_value"] = torch.tensor(-1e9)
    best["best_k_models"] = {"best.ckpt": torch.tensor(-1e9)}
    torch.save(content, first.last_checkpoint)
    first.run_dir.rename(tmp_path / "moved")
    expected = (tmp_path / "moved" / "best.ckpt").read_bytes()
    toy_config.trainer.max_epochs = 2
    second = fit(toy_config, tmp_path / "moved", resume=True)
    assert (tmp_path / "moved" / "best.ckpt").read_bytes() == expected
    assert second.best_checkpoint == tmp_path / "moved" / "best.ckpt"
    assert load_config(tmp_path / "moved" / "config.yaml").trainer.resume_from is None
    # A run that starts from another run's checkpoint has its own best one.
    toy_config.trainer.max_epochs = 3
    third = resume(toy_config, second, tmp_path, "third")
    assert third.best_checkpoint == tmp_path / "third" / "best.ckpt"
    assert third.best_checkpoint.read_bytes() != expected


def test_directory_with_a_run_is_rejected_unless_it_is_resumed(toy_config, tmp_path):
    toy_config.trainer.max_epochs = 1
    toy_config.dataset.synthetic_videos = 2
    result = fit(toy_config, tmp_path / "run")
    before = files(result.run_dir)
    with pytest.raises(ConfigError, match="already contains a run") as error:
        fit(toy_config, result.run_dir)
    assert "resume" in error.value.hint and files(result.run_dir) == before


@pytest.mark.parametrize("cut", ["9,0.5", "0.5,\0\0", '"', "x," * 20])
def test_cut_row_of_metrics_is_dropped(toy_config, tmp_path, cut):
    logger = RunMetrics(tmp_path)
    for step in range(3):
        logger.log_metrics({"loss": 1.0 - step / 10, "val_loss": 0.5}, step)
    logger.save()
    whole = (tmp_path / "metrics.csv").read_text()
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(cut)
    assert last_values(tmp_path) == {"loss": 0.8, "val_loss": 0.5}
    resumed = RunMetrics(tmp_path, steps=3)
    assert resumed.experiment and (tmp_path / "metrics.csv").read_text() == whole.replace("\r", "")


def test_history_survives_a_kill_while_it_is_rewritten(tmp_path, monkeypatch):
    logger = RunMetrics(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("csv.DictWriter.writerows", killed)
    with pytest.raises(KeyboardInterrupt):
        _ = RunMetrics(tmp_path, steps=1).experiment
    assert (tmp_path / "metrics.csv").read_bytes() == before
    # Nor is it lost when the first value of another metric adds a column.
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({"val_loss": 1.0}, 1)
        logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_resume_with_exchanged_frames_is_rejected(toy_config, tmp_path):
    data = make_davis(tmp_path / "data")
    toy_config.dataset.type, toy_config.dataset.data_path = "video", str(data)
    toy_config.trainer.max_steps = 1
    first = fit(toy_config, tmp_path / "run")
    toy_config.trainer.max_steps = 2
    trained = read_splits(first.run_dir).train[0].name
    frames = sorted((data / "JPEGImages" / trained).iterdir())
    frames[1].rename(data / "x")
    frames[2].rename(frames[1])
    (data / "x").rename(frames[2])
    with pytest.raises(DataError, match="frames or masks") as error:
        fit(toy_config, first.run_dir, resume=True)
    assert error.value.key == "trainer.resume_from" and error.value.hint
    # Versions that compared no video of a mixture with generated ones stored this instead.
    content = state(first)
    content["SAM2LightningDataModule"]["digest"] = "generated"
    torch.save(content, first.last_checkpoint)
    toy_config.trainer.resume_from = str(first.last_checkpoint)
    assert check_resume(toy_config, SAM2LightningDataModule(toy_config).state_dict()) == 1
