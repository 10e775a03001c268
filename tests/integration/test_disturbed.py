"""A training that is disturbed, and called again until it ends well, equals an undisturbed one.

Weights, optimizer state and the rows of ``metrics.csv`` are compared bit for bit. The moments of
the disturbances are drawn from ``SAM2KIT_DISTURBED_SEED`` (default 1).
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
UNREACHABLE = {
    "WANDB_BASE_URL": "http://127.0.0.1:9",
    "WANDB_API_KEY": "0" * 40,
    "WANDB_INIT_TIMEOUT": "5",
}
MAX_CALLS = 4


def begin(run: Path, *overrides: str, **variables: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "sam2kit", "train", "--config", str(run.parent / "toy.yaml")]
    command += ["--run-dir", str(run), "--resume", "auto", *overrides]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    env = {**os.environ, **threads, **variables}
    with (run.parent / f"{run.name}.log").open("ab") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=log)


def loaders(process: psutil.Process) -> list[psutil.Process]:
    """A training's loader processes: what it has forked."""
    own = process.cmdline()
    return [child for child in process.children() if child.cmdline() == own]


def kill_loader(process: psutil.Process, run: Path, chance: random.Random) -> None:
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if found := loaders(process):
            chance.choice(found).kill()
            return
        time.sleep(0.02)


def fill_disk(process: psutil.Process, run: Path, chance: random.Random) -> None:
    process.rlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def break_checkpoint(process: psutil.Process, run: Path, chance: random.Random) -> None:
    """Once there are two that are not one file."""
    while len(list(run.glob("step-*.ckpt"))) < 2 and process.is_running():
        time.sleep(0.02)
    process.kill()
    while process.status() != psutil.STATUS_ZOMBIE:  # waiting would take its exit code away
        time.sleep(0.02)
    size = (run / "last.ckpt").stat().st_size
    place = chance.randrange(size)
    with (run / "last.ckpt").open("r+b") as file:
        if chance.random() < 0.5:
            file.truncate(place)
        else:
            file.seek(place)
            file.write(bytes(chance.randrange(256) for _ in range(min(1000, size - place))))


def send(number: int) -> Callable[[psutil.Process, Path, random.Random], None]:
    return lambda process, run, chance: process.send_signal(number)


KINDS: dict[str, Callable[[psutil.Process, Path, random.Random], None]] = {
    "SIGKILL": send(signal.SIGKILL),
    "SIGTERM": send(signal.SIGTERM),
    "loader process killed": kill_loader,
    "full disk": fill_disk,
    "broken checkpoint": break_checkpoint,
    "W&B down": lambda process, run, chance: None,
}


def rows(run: Path) -> list[dict[str, str]]:
    file = run / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def equal(run: Path, whole: Path) -> bool:
    """Bit for bit."""
    here, there = (torch.load(r / "last.ckpt", weights_only=True) for r in (run, whole))
    if rows(run) != rows(whole) or here["global_step"] != there["global_step"]:
        return False
    return all(_same(here[key], there[key]) for key in ("state_dict", "optimizer_states"))


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
    """The folder of an undisturbed run, and the seconds that it took."""
    run = tmp_path_factory.mktemp("disturbed") / "whole"
    (run.parent / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    start = time.monotonic()
    assert begin(run).wait() == 0, (run.parent / "whole.log").read_text()[-2000:]
    return run, time.monotonic() - start


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on files is set by Linux's prlimit")
@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbed_training_ends_as_an_undisturbed_one(undisturbed, kind):
    whole, seconds = undisturbed
    run = whole.parent / kind.replace(" ", "_")
    chance = random.Random(f"{os.environ.get('SAM2KIT_DISTURBED_SEED', 1)} {kind}")
    overrides, variables = [], {}
    if kind == "W&B down":
        pytest.importorskip("wandb")
        overrides, variables = ["trainer.logger=wandb"], UNREACHABLE
    process = begin(run, *overrides, **variables)
    time.sleep(chance.uniform(0, seconds))
    if process.poll() is None:
        try:
            KINDS[kind](psutil.Process(process.pid), run, chance)
        except psutil.NoSuchProcess:
            pass
    codes = [process.wait()]
    while codes[-1] and len(codes) < MAX_CALLS:
        codes.append(begin(run).wait())
    log = (whole.parent / f"{run.name}.log").read_text()
    assert codes[-1] == 0, log[-3000:]
    assert equal(run, whole)
