"""Training that is disturbed at random moments: ``python -m benchmarks.disturbed [--moments 30]``.

A toy is trained by ``sam2kit train --resume auto`` without disturbance, and then once for each
moment with one, in turns of these kinds:

- SIGKILL and SIGTERM to the training;
- SIGKILL to its loader process;
- a full disk: no file may grow beyond 20 kB from that moment on (``RLIMIT_FSIZE``);
- a broken checkpoint: SIGKILL, and then ``last.ckpt`` cut short or with bytes changed in its place;
- W&B that cannot be reached, from the start.

The same command then runs until it ends well. Weights, optimizer state and the rows of
``metrics.csv`` must be those of the undisturbed run, bit for bit. Writes ``disturbed.{json,md}``.
Half a minute for each moment; Linux alone.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
import yaml

from benchmarks.measure import RESULTS, machine, machine_line, write
from sam2kit.viz.tables import TrustedMarkdown, markdown_table

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
MOST_CALLS = 4


@dataclass
class Outcome:
    """What became of one disturbed run.

    Attributes:
        kind: the disturbance.
        moment: seconds after the start.
        exit_codes: of the disturbed call and of those after it; negative: the signal.
        steps: those done when it was disturbed, as far as ``metrics.csv`` shows.
        equal: whether it ended with the undisturbed run's weights, optimizer state and rows.
    """

    kind: str
    moment: float
    exit_codes: list[int]
    steps: int
    equal: bool

    def row(self) -> dict[str, object]:
        return {
            "disturbance": self.kind,
            "after": f"{self.moment:.1f} s",
            "steps done": self.steps,
            "exit codes": " ".join(map(str, self.exit_codes)),
            "ends as undisturbed": "yes" if self.equal else TrustedMarkdown("**no**"),
        }


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


def disturb(kind: str, run: Path, whole: Path, moment: float, chance: random.Random) -> Outcome:
    """One run, disturbed and gone on with until it ends well or :data:`MOST_CALLS` have not."""
    down = kind == "W&B down"
    process = begin(
        run, *(["trainer.logger=wandb"] if down else []), **(UNREACHABLE if down else {})
    )
    time.sleep(moment)
    if process.poll() is None:
        try:
            KINDS[kind](psutil.Process(process.pid), run, chance)
        except psutil.NoSuchProcess:
            pass
    codes, steps = [process.wait()], len(rows(run))
    while codes[-1] and len(codes) < MOST_CALLS:
        codes.append(begin(run).wait())
    return Outcome(kind, moment, codes, steps, codes[-1] == 0 and equal(run, whole))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--moments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    given = parser.parse_args(argv)
    chance = random.Random(given.seed)
    outcomes = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
        started = time.monotonic()
        if begin(folder / "whole").wait():
            raise RuntimeError((folder / "whole.log").read_text()[-2000:])
        length = time.monotonic() - started
        for number in range(given.moments):
            kind = given.kinds[number % len(given.kinds)]
            run, moment = folder / f"run-{number}", chance.uniform(0, length)
            outcomes.append(disturb(kind, run, folder / "whole", moment, chance))
            print(outcomes[-1], file=sys.stderr, flush=True)
            if not outcomes[-1].equal:
                print((folder / f"{run.name}.log").read_text()[-3000:], file=sys.stderr)
    where = machine()
    text = (
        f"# Training disturbed at {given.moments} random moments\n\nThe undisturbed run takes "
        f"{length:.0f} s. `python -m benchmarks.disturbed`\n\n"
        f"{markdown_table([outcome.row() for outcome in outcomes])}\n\n{machine_line(where)}\n"
    )
    found = {"machine": where, "outcomes": [asdict(outcome) for outcome in outcomes]}
    write(given.out / "disturbed", found, text)
    print(text)
    return int(not all(outcome.equal for outcome in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
