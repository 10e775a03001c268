"""Signals to the process group of a training run, as terminals, timeout and SLURM send them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from kill_helpers import Server

from sam2kit.data.parallel import load_items

ROOT = Path(__file__).parents[2]
OVERRIDES = (
    *("dataset.type=synthetic", "dataset.image_size=32", "dataset.video_clip_length=2"),
    *("dataset.synthetic_videos=64", "dataset.batch_size=1", "dataset.num_workers=2"),
    *("valdataset.synthetic_videos=1", "model.size=nano", "trainer.audit=off"),
    *("trainer.max_epochs=100", "trainer.log_every_n_steps=1", "trainer.accelerator=cpu"),
)


def default_signals() -> None:
    """Restore the default actions: nohup and the background jobs of a shell ignore signals."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_the_process_group_leaves_a_checkpoint(tmp_path, number):
    run, log = tmp_path / "run", tmp_path / "log"
    command = [sys.executable, "-m", "sam2kit", "train", "--run-dir", str(run), *OVERRIDES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=default_signals,
        )
    try:
        wait_for(lambda: "step 3/" in log.read_text() or process.poll() is not None, 120)
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, number)
        assert process.wait(60) == 130, log.read_text()
    finally:
        process.kill()
    assert children and not any(child.is_running() for child in children)
    check_interrupted(run, log.read_text(), number)


def check_interrupted(run: Path, text: str, number: signal.Signals) -> None:
    """Check the checkpoint and the output of a training run that a signal has ended."""
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] >= 1
    assert "worker died" not in text and "deadlock" not in text and "Traceback" not in text
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert text.count(f"Received {name}") == 1


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize("n", range(20))
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_at_any_moment_leave_a_checkpoint(server, tmp_path, number, n):
    run = tmp_path / "run"
    pid = server.start(["train", "--run-dir", str(run), *OVERRIDES], run)
    wait_for(lambda: server.log.exists() and "step 1/" in server.log.read_text(), 300)
    time.sleep(random.Random(f"{number} {n}").uniform(0, 1))
    os.killpg(pid, number)
    code, _, text = server.wait()
    assert code == 130, text
    check_interrupted(run, text, number)
    assert server.wait_for_the_end() == []


def wait_for(condition, seconds):
    for _ in range(50 * seconds):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"condition not met within {seconds} s")


class Pids(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        time.sleep(0.05)
        return os.getpid()


def test_loader_processes_ignore_signals_of_others_but_end_with_their_loader():
    items = load_items(Pids(), 1)
    worker = psutil.Process(next(items))
    # The signals come from another process, as those of a terminal do.
    for number in ("INT", "TERM", "HUP"):
        subprocess.run(["kill", "-s", number, str(worker.pid)], check=True)
    assert list(items) == [worker.pid] * 2
    wait_for(lambda: not worker.is_running(), 60)


def test_loader_processes_end_when_their_parent_terminates_them():
    items = load_items(Pids(), 1)
    pid = next(items)
    (worker,) = [child for child in multiprocessing.active_children() if child.pid == pid]
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
    items.close()
