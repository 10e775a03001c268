"""Training as a cluster job: submitit's local executor, and the script for SLURM."""

import os
import signal
import stat
import subprocess
import sys
import time

import psutil
import pytest
import torch

pytest.importorskip("submitit")

from sam2kit.cli.main import main
from sam2kit.config.loading import save_config
from sam2kit.training import slurm
from sam2kit.training.slurm import TrainingJob, submit
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError


@pytest.fixture
def config(toy_config, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    toy_config.dataset.synthetic_videos = 8
    toy_config.trainer.max_epochs = 6
    toy_config.trainer.checkpoint_minutes = None
    return toy_config


def test_preempted_job_requeues_and_equals_an_uninterrupted_run(config, tmp_path):
    job = submit(config, tmp_path / "run", cluster="local")
    for _ in range(1800):
        if (tmp_path / "run" / "last.ckpt").exists():  # the first epoch has ended
            break
        time.sleep(0.1)
    (task,) = psutil.Process(int(job.job_id)).children()  # below submitit's own controller
    task.send_signal(signal.SIGUSR2)  # as SLURM does before it ends a job
    assert job.result() == str(tmp_path / "run")
    assert job.stdout().count("Caught signal SIGUSR2") == job.stdout().count("Requeued job") == 1
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("Received SIGTERM") == 1 and log.count("Run directory") == 2
    torch.set_num_threads(1)
    fit(config, tmp_path / "whole")
    requeued, whole = (
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("run", "whole")
    )
    assert all(torch.equal(requeued[name], whole[name]) for name in whole)


def test_training_that_does_not_stop_in_time_is_killed(monkeypatch):
    ignores_sigterm = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=1); time.sleep(99)"
    )
    process = subprocess.Popen([sys.executable, "-c", ignores_sigterm], stdout=subprocess.PIPE)
    process.stdout.readline()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.setattr(slurm, "_running", [ended.pid, process.pid])
    monkeypatch.setattr(slurm, "SAVING_SECONDS", 0.2)
    job = TrainingJob("c.yaml", "run", "1")
    assert job.checkpoint().function == job
    assert process.wait(60) is not None


def test_failed_job_raises(config, tmp_path):
    config.dataset.type, config.dataset.data_path = "davis", str(tmp_path / "none")
    job = submit(config, tmp_path / "run", cluster="local")
    with pytest.raises(Exception, match="failed with exit code 2"):
        job.result()


def test_slurm_script(config, tmp_path, monkeypatch, capsys):
    """A substitute for sbatch saves the script."""
    for name in ("sbatch", "srun"):
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ncp $1 {tmp_path}/script\necho Submitted batch job 12\n")
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    config.trainer.accelerator, config.trainer.num_nodes = "auto", 2
    config.trainer.devices = "4"
    save_config(config, tmp_path / "c.yaml")
    command = ["submit", "--config", str(tmp_path / "c.yaml"), "--hours", "2", "--partition", "gpu"]
    assert main([*command, "--run-dir", str(tmp_path / "run")]) == 0
    assert "job 12. Log file: " in capsys.readouterr().out
    script = (tmp_path / "script").read_text()
    options = ("--gpus-per-node=4", "--nodes=2", "--time=120", "--partition=gpu", "USR2@120")
    assert all(line in script for line in options), script
    assert sys.executable in script


def test_command_of_a_machine():
    one = TrainingJob("c.yaml", "run", "4")
    train = "sam2kit train --config c.yaml --run-dir run --resume auto".split()
    assert one.command(0, "a") == train
    several = TrainingJob("c.yaml", "run", "4", 2).command(1, "a")
    assert several[0] == "torch.distributed.run" and several[-len(train) :] == train
    assert {"--nnodes=2", "--nproc-per-node=4", "--node-rank=1", "--master-addr=a"} <= set(several)


def test_invalid_submissions_are_rejected(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        submit(config, tmp_path / "run")
    assert error.value.key == "--cluster" and "--cluster local" in error.value.hint
    config.trainer.devices = "auto"
    with pytest.raises(ConfigError) as error:
        submit(config, tmp_path / "run", cluster="local")
    assert (error.value.key, error.value.value) == ("trainer.devices", "auto")
    config.trainer.devices, config.trainer.num_nodes = "1", 2
    with pytest.raises(ConfigError) as error:
        submit(config, tmp_path / "run", cluster="local")
    assert (error.value.key, error.value.value) == ("trainer.num_nodes", 2)


def test_a_line_break_cannot_reach_the_batch_script(config, tmp_path):
    for run_dir, partition in ((tmp_path / "a\n#SBATCH --x", None), (tmp_path, "a\nreboot")):
        with pytest.raises(ConfigError) as caught:
            submit(config, run_dir, partition=partition, cluster="local")
        assert caught.value.key == ("--partition" if partition else "--run-dir")
    assert not list(tmp_path.iterdir())
