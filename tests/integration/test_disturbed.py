"""A training run that is disturbed and resumed until it succeeds equals an undisturbed one.

Weights, optimizer state and the rows of ``metrics.csv`` are compared bit for bit. The times of the
disturbances are random numbers from the seed ``SAM2KIT_DISTURBED_SEED`` (default 1).
"""

from __future__ import annotations

import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

SETTINGS: dict[str, Any] = {
    "model": {"size": "nano", "memory_attention_bias": 3.0, "object_score_bias": 3.0},
    "dataset": {
        "type": "synthetic",
        "image_size": 32,
        "video_clip_length": 3,
        "synthetic_videos": 16,
        "batch_size": 2,
        "num_workers": 1,
        "augment": True,
    },
    "valdataset": {"synthetic_videos": 1},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 4,
        "log_every_n_steps": 1,
        "checkpoint_minutes": None,
        "checkpoint_steps": 1,
        "keep_checkpoints": 2,
        "audit": "off",
        "ema_decay": 0.9,
    },
    "optimizer": {"lr": 1.0e-3},
}
# Nothing listens on port 9, so connecting to Weights & Biases fails.
UNREACHABLE = {
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_API_KEY": "0" * 40,
    "WANDB_INIT_TIMEOUT": "5",
}
MAX_CALLS = 4


def start_training(run: Path, *overrides: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start or resume a training run, with these overrides and environment variables."""
    command = [sys.executable, "-m", "sam2kit", "train", "--config", str(run.parent / "toy.yaml")]
    command += ["--run-dir", str(run), "--resume", "auto", *overrides]
    # More threads would add numbers in another order, and results would not be identical.
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **threads, **variables}
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def loaders(process: psutil.Process) -> list[psutil.Process]:
    """Return the DataLoader workers of a training run; forked, they have its command line."""
    command = process.cmdline()
    return [child for child in process.children() if child.cmdline() == command]


def kill_loader(process: psutil.Process, run: Path, rng: random.Random) -> None:
    """Kill one of the DataLoader workers."""
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if workers := loaders(process):
            rng.choice(workers).kill()
            return
        time.sleep(0.02)


def fill_disk(process: psutil.Process, run: Path, rng: random.Random) -> None:
    """Make writes fail, as on a full disk, by a limit of 20,000 bytes on the size of files."""
    process.rlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def break_checkpoint(process: psutil.Process, run: Path, rng: random.Random) -> None:
    """Kill the training once it has two step checkpoints, and damage ``last.ckpt``."""
    while len(list(run.glob("step-*.ckpt"))) < 2 and process.is_running():
        time.sleep(0.02)
    process.kill()
    while process.status() != psutil.STATUS_ZOMBIE:  # wait() would consume its exit code
        time.sleep(0.02)
    size = (run / "last.ckpt").stat().st_size
    offset = rng.randrange(size)
    with (run / "last.ckpt").open("r+b") as file:
        if rng.random() < 0.5:
            file.truncate(offset)
        else:
            file.seek(offset)
            file.write(bytes(rng.randrange(256) for _ in range(min(1000, size - offset))))


def send(number: int) -> Callable[[psutil.Process, Path, random.Random], None]:
    return lambda process, run, rng: process.send_signal(number)


DISTURBANCES: dict[str, Callable[[psutil.Process, Path, random.Random], None]] = {
    "SIGKILL": send(signal.SIGKILL),
    "SIGTERM": send(signal.SIGTERM),
    "DataLoader worker killed": kill_loader,
    "full disk": fill_disk,
    "broken checkpoint": break_checkpoint,
    "W&B down": lambda process, run, rng: None,
}


def rows(run: Path) -> list[dict[str, str]]:
    """Read ``metrics.csv``, which a training run that was stopped early does not have."""
    file = run / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def equal(run: Path, undisturbed_run: Path) -> bool:
    """Compare metrics, weights and optimizer states bit for bit."""
    checkpoint, expected = (
        torch.load(run_dir / "last.ckpt", weights_only=True) for run_dir in (run, undisturbed_run)
    )
    if rows(run) != rows(undisturbed_run) or checkpoint["global_step"] != expected["global_step"]:
        return False
    return all(_same(checkpoint[key], expected[key]) for key in ("state_dict", "optimizer_states"))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, float]:
    """Run directory of an undisturbed training run, and its duration in seconds."""
    run = tmp_path_factory.mktemp("disturbed") / "whole"
    (run.parent / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    start = time.monotonic()
    assert start_training(run).wait() == 0, (run.parent / "whole.log").read_text()[-2000:]
    return run, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes with Linux's prlimit")
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_disturbed_training_equals_an_undisturbed_one(undisturbed, kind):
    undisturbed_run, seconds = undisturbed
    run = undisturbed_run.parent / kind.replace(" ", "_")
    rng = random.Random(f"{os.environ.get('SAM2KIT_DISTURBED_SEED', 1)} {kind}")
    overrides, variables = [], {}
    if kind == "W&B down":
        pytest.importorskip("wandb")
        overrides, variables = ["trainer.logger=wandb"], UNREACHABLE
    process = start_training(run, *overrides, **variables)
    time.sleep(rng.uniform(0, seconds))
    if process.poll() is None:
        try:
            DISTURBANCES[kind](psutil.Process(process.pid), run, rng)
        except psutil.NoSuchProcess:  # the training has finished in the meantime
            pass
    codes = [process.wait()]
    while codes[-1] and len(codes) < MAX_CALLS:
        codes.append(start_training(run).wait())
    log = (undisturbed_run.parent / f"{run.name}.log").read_text()
    assert codes[-1] == 0, log[-3000:]
    assert equal(run, undisturbed_run)
