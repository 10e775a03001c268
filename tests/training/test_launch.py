"""Training on several devices: shards of the clips, and two ranks on the CPU."""

import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import papermill
import psutil
import pytest
import torch

from sam2kit.config.loading import load_config, save_config
from sam2kit.data.build import build_datasets
from sam2kit.data.loader import EpochSampler
from sam2kit.training import launch
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError, TrainingError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_config):
    """Two ranks on the CPU; two epochs of two steps with two clips per rank, of seven clips."""
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.synthetic_videos = 7
    tiny_config.dataset.batch_size = 2
    tiny_config.dataset.image_size = 32
    tiny_config.dataset.video_clip_length = 2
    tiny_config.valdataset.synthetic_videos = 1
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.devices = "2"
    tiny_config.trainer.max_epochs = 2
    tiny_config.trainer.log_every_n_steps = 1
    tiny_config.trainer.checkpoint_minutes = 0
    return tiny_config


def test_every_rank_has_a_shard_of_equal_size(config):
    clips, _ = build_datasets(config)
    clips.set_epoch(3)
    whole = list(EpochSampler(clips, True, 5))
    shards = [EpochSampler(clips, True, 5, share=(rank, 3)) for rank in range(3)]
    assert {len(shard) for shard in shards} == {len(list(shard)) for shard in shards} == {3}
    together = [clip for clips in zip(*shards, strict=True) for clip in clips]
    assert together[:7] == whole and together[7:] == whole[:2]
    assert list(EpochSampler(clips, True, 5, (3, 2), (1, 3))) == list(shards[1])[2:]


def test_rank_that_waited_too_long_is_named(config, tmp_path, monkeypatch):
    line = "[rank1]:[E1130] [PG 0 Rank 1] Watchdog caught collective operation timeout: WorkNCCL"
    command = [sys.executable, "-c", f"import sys; print({line!r}); sys.exit(1)"]
    monkeypatch.setattr(
        launch,
        "start",
        lambda *_, **options: subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, stdout=options["stdout"]
        ),
    )
    with pytest.raises(TrainingError, match="rank 1 waited too long"):
        launch.train_on_devices(config, tmp_path, 2)


def test_external_torchrun_needs_a_run_directory(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(ConfigError) as error:
        fit(config)
    assert error.value.key == "--run-dir"


def steps_in(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get("loss")]


@pytest.mark.slow
def test_two_ranks_train_one_model_and_resume(config, tmp_path, capfd):
    config.scheduler.name = "constant"  # a cosine over three steps would have other learning rates
    result = fit(config, tmp_path / "run")
    assert steps_in(result.run_dir) == [0, 1, 2, 3] and "val_iou" in result.metrics
    assert (tmp_path / "run" / "train.log").read_text().count("Run directory") == 1
    assert "epoch 1 step 4/4" in capfd.readouterr().out
    whole = torch.load(result.last_checkpoint, weights_only=True)
    assert whole["SAM2LightningDataModule"]["devices"] == 2
    config.trainer.max_steps = 3  # within the second epoch
    fit(config, tmp_path / "parts")
    config.trainer.max_steps = -1
    parts = fit(config, tmp_path / "parts", resume=True)
    again = torch.load(parts.last_checkpoint, weights_only=True)
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(again["state_dict"][name], tensor, rtol=1e-5, atol=1e-6)


def losses_in(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row.get("loss")]


def validations_in(run_dir):
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val_loss")]
    return [{k: v for k, v in row.items() if k.startswith("val_")} for row in rows]


@pytest.mark.parametrize("launcher", ["fit", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_ranks_equal_one_with_twice_the_batch_size(config, tmp_path, launcher):
    """Clips have different numbers of objects, so the mean of the ranks' means would be wrong."""
    config.dataset.synthetic_videos = 8
    config.dataset.video_clip_length = 3
    config.dataset.prompt_types = ["mask", "box", "point"]
    config.dataset.box_noise = config.dataset.mask_noise = 0.1
    config.trainer.audit = "off"
    config.optimizer.lr = 1e-3
    clips, _ = build_datasets(config)
    assert len({len(clips[i].object_ids) for i in range(8)}) > 1
    config.dataset.batch_size = 2
    # Three batches on two devices; the repeated batch of one device does not count.
    config.valdataset.synthetic_videos, config.valdataset.batch_size = 5, 2
    save_config(config, tmp_path / "two.yaml")
    if launcher == "fit":
        fit(config, tmp_path / "two")
        assert not list(Path(tempfile.gettempdir()).glob("torchelastic_*"))
    else:
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        command = ["sam2kit", "train", "--config", str(tmp_path / "two.yaml")]
        command += ["--run-dir", str(tmp_path / "two")]
        subprocess.run([sys.executable, "-m", *torchrun, "-m", *command], check=True)
    config.dataset.batch_size, config.trainer.devices = 4, "1"
    fit(config, tmp_path / "one")
    # Adam turns a gradient that is only rounding error into a full step of 1e-3 for a few weights.
    compare_runs(tmp_path / "one", tmp_path / "two", weights=3e-4)
    assert len(validations_in(tmp_path / "two")) == 2


def compare_runs(one, two, weights=1e-5):
    """Losses and scores within 1e-4, weights within a share of the whole vector's norm."""
    assert losses_in(two) == pytest.approx(losses_in(one), rel=1e-4)
    states = [
        torch.load(run / "last.ckpt", weights_only=True)["state_dict"].values()
        for run in (one, two)
    ]
    whole = [torch.cat([v.flatten() for v in state]) for state in states]
    assert (whole[1] - whole[0]).norm() < weights * whole[0].norm()
    for a, b in zip(validations_in(one), validations_in(two), strict=True):
        for name in ("val_loss", "val_iou"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=1e-4, abs=1e-9)


def test_validation_batches(config):
    config.valdataset.synthetic_videos, config.valdataset.batch_size = 5, 2
    assert SAM2LightningDataModule(config, 2).val_batches == [[0, 1], [2, 3], [4]]
    config.trainer.limit_val_batches = 2
    assert SAM2LightningDataModule(config, 2).val_batches == [[0, 1], [2, 3]]


@pytest.mark.slow
def test_validation_on_two_devices_equals_one_device_exactly(config, tmp_path):
    config.valdataset.synthetic_videos, config.valdataset.batch_size = 5, 2
    config.trainer.max_epochs = config.trainer.limit_train_batches = 1
    config.trainer.audit = "off"
    config.optimizer.lr = 1e-30  # too small to change any weight
    for devices in ("1", "2"):
        config.trainer.devices = devices
        fit(config, tmp_path / devices)
    one, two = (validations_in(tmp_path / devices) for devices in "12")
    assert one and one == two


@pytest.mark.slow
@pytest.mark.parametrize("where", ["command line", "torchrun", "two machines", "03_train"])
def test_quick_start_on_two_devices(tmp_path, where):
    """One epoch of the quick start, with half of its batch size on each of two ranks."""
    overrides = ["trainer.max_epochs=1", "features.cache=off", "trainer.audit=off"]
    whole, half = [*overrides, "dataset.batch_size=10"], [*overrides, "trainer.devices=2"]
    config_file = ROOT / "configs" / "quickstart.yaml"
    fit(load_config(config_file, whole), tmp_path / "one")
    train = ["sam2kit", "train", "--config", str(config_file), "--run-dir", str(tmp_path / "two")]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    if where == "command line":
        command = [sys.executable, "-m", *train, "--strategy", "ddp", *half]
        subprocess.run(command, check=True, cwd=ROOT)
    elif where == "torchrun":
        torchrun += ["--standalone", "--nproc-per-node=2", "-m"]
        subprocess.run([*torchrun, *train, *half], check=True, cwd=ROOT)
    elif where == "two machines":
        torchrun += ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1"]
        options = [*train, *overrides, "trainer.num_nodes=2"]
        launchers = [
            subprocess.Popen(
                [*torchrun, "--master-port=29400", f"--node-rank={n}", "-m", *options], cwd=ROOT
            )
            for n in range(2)
        ]
        assert [process.wait(600) for process in launchers] == [0, 0]
    else:
        papermill.execute_notebook(
            ROOT / "notebooks" / "03_train.ipynb",
            tmp_path / "out.ipynb",
            {"run_dir": str(tmp_path / "two"), "overrides": half},
            cwd=ROOT,
        )
    compare_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "settings, key, text",
    [
        ({"WORLD_SIZE": "3"}, "trainer.devices", "torchrun started 3 .* requires 4"),
        ({}, "trainer.num_nodes", "2 nodes"),
    ],
)
def test_inconsistent_numbers_of_processes_are_rejected(
    config, tmp_path, monkeypatch, settings, key, text
):
    if settings:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
        monkeypatch.setenv("WORLD_SIZE", settings["WORLD_SIZE"])
    config.trainer.num_nodes = 2
    with pytest.raises(ConfigError, match=text) as error:
        fit(config, tmp_path / "run")
    assert error.value.key == key


@pytest.mark.slow
def test_failed_rank_is_reported(config, tmp_path):
    config.optimizer.lr = 1e-3
    config.model.checkpoint = str(tmp_path / "none.pt")
    with pytest.raises(TrainingError, match="2 devices failed .*none.pt"):
        fit(config, tmp_path / "run")


def processes_of(folder):
    """Return the processes with the directory in their command line."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or []):
            processes.append(process)
    return processes


@pytest.fixture
def started(config, tmp_path):
    """Start a long training on two devices, and wait for its first steps."""
    config.trainer.max_epochs = 10000
    save_config(config, tmp_path / "config.yaml")
    code = (
        "import signal, sys; from pathlib import Path; from sam2kit import fit, load_config\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "folder = Path(sys.argv[1])\n"
        "print(fit(load_config(folder / 'config.yaml'), folder / 'run').interrupted)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    for _ in range(1200):
        if (tmp_path / "run" / "last.ckpt").exists():
            break
        time.sleep(0.1)
    assert len(processes_of(tmp_path)) >= 4  # the process itself, torchrun and two ranks
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("signal_all", [False, True])
def test_interrupt_stops_all_ranks_after_the_same_step(started, tmp_path, number, signal_all):
    """A cluster manager may signal all processes instead of the launcher only."""
    for process in processes_of(tmp_path) if signal_all else [started]:
        process.send_signal(number)
    output, _ = started.communicate(timeout=120)
    assert signal_all or (output.strip().endswith("True") and started.returncode == 0)
    assert "Best checkpoint" in (tmp_path / "run" / "train.log").read_text()  # the last line
    assert (tmp_path / "run" / "last.ckpt").exists() and not processes_of(tmp_path)


@pytest.mark.slow
def test_killed_launcher_leaves_no_process(started, tmp_path):
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    for _ in range(100):
        if not processes_of(tmp_path):
            return
        time.sleep(0.1)
    raise AssertionError(processes_of(tmp_path))
