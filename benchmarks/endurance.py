"""Memory and open files over many steps: ``python -m benchmarks.endurance [--steps 100000]``.

Trains a toy (the nano on 32 px, one object, two frames, a loader process, prompts of all kinds,
validation and checkpoints every 500 steps) with ``sam2kit train`` and takes stock of its processes
a hundred times. Growth is that of the second half: the median of its last samples less that of its
first ones, a fifth of it each. Writes ``endurance.{json,md,png}``. An hour on a CPU core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import yaml

from benchmarks.measure import MIB, RESULTS, machine, machine_line, write
from sam2kit.utils.processes import start
from sam2kit.viz.plots import curves
from sam2kit.viz.tables import markdown_table

STEPS_AN_EPOCH = 500
Sample = dict[str, float]


def stock(pid: int) -> Sample:
    """What a process and its children hold now; memory that they share is not counted."""
    family = [psutil.Process(pid)]
    family += family[0].children(recursive=True)
    return {
        "MiB": sum(process.memory_full_info().uss for process in family) / MIB,
        "open files": sum(process.num_fds() for process in family),
        "threads": sum(process.num_threads() for process in family),
        "processes": len(family),
    }


def steps_in(metrics: Path) -> int:
    """The last step in a run's ``metrics.csv``; 0 before there is one."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    column = lines[0].split(",").index("step") if lines else 0
    return int(lines[-1].split(",")[column]) if len(lines) > 1 else 0


def run(steps: int, samples: int) -> list[Sample]:
    """Train for so many steps; what was counted on the way.

    Raises:
        RuntimeError: training failed.
    """
    log_every = max(min(100, steps // samples), 1)
    with TemporaryDirectory() as folder:
        settings = {
            "model": {"size": "nano"},
            "dataset": {
                "type": "synthetic",
                "synthetic_videos": STEPS_AN_EPOCH,
                "image_size": 32,
                "video_clip_length": 2,
                "max_objects": 1,
                "batch_size": 1,
                "num_workers": 1,
            },
            "valdataset": {"synthetic_videos": 2},
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": -(-steps // STEPS_AN_EPOCH),
                "max_steps": steps,
                "audit": "off",
                "log_every_n_steps": log_every,
            },
        }
        file, run_dir = Path(folder) / "toy.yaml", Path(folder) / "run"
        file.write_text(yaml.safe_dump(settings))
        arguments = ["train", "--config", str(file), "--run-dir", str(run_dir)]
        process = start("sam2kit", *arguments, stderr=subprocess.DEVNULL)
        found: list[Sample] = []
        while process.poll() is None:
            step = steps_in(run_dir / "metrics.csv")
            if step >= (len(found) + 1) * steps // (samples + 1):
                try:
                    found.append({"step": step, **stock(process.pid)})
                except psutil.NoSuchProcess:  # one that ended meanwhile
                    continue
                print(found[-1], file=sys.stderr, flush=True)
            time.sleep(0.2)
        if process.returncode:
            raise RuntimeError(f"training ended with exit code {process.returncode}")
    return found


def growth(found: Sequence[Sample], key: str) -> float:
    """What the second half of a run added."""
    values = [sample[key] for sample in found[len(found) // 2 :]]
    part = max(len(values) // 5, 1)
    return median(values[-part:]) - median(values[:part])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args(argv)
    begin = time.monotonic()
    found, where = run(given.steps, given.samples), machine()
    took = time.monotonic() - begin
    keys = [key for key in found[0] if key != "step"]
    rows = [
        {
            "": key,
            "after a tenth": found[len(found) // 10][key],
            "at half": found[len(found) // 2][key],
            "at the end": found[-1][key],
            "second half added": growth(found, key),
        }
        for key in keys
    ]
    report = (
        f"# Memory and open files over {given.steps:,} steps\n\nA toy in {took / 60:.0f} minutes, "
        f"its processes together. `python -m benchmarks.endurance`\n\n{markdown_table(rows)}\n\n"
        f"{machine_line(where)}\n"
    )
    write(given.out / "endurance", {"machine": where, "samples": found}, report)
    steps = [sample["step"] for sample in found]
    panels = {key: {"": (steps, [sample[key] for sample in found])} for key in keys[:2]}
    figure = curves(panels)
    for axes in figure.axes:
        axes.set_ylim(0)
    figure.savefig(given.out / "endurance.png")
    print(report)


if __name__ == "__main__":
    main()
