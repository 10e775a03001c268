"""A long training leaks no memory, open files, threads or processes.

``SAM2KIT_ENDURANCE_STEPS`` sets the number of steps. The default, 2,000, takes a few minutes on one
CPU core; 100,000 take more than an hour.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from statistics import median

import psutil
import pytest
import yaml

from sam2kit.utils.processes import start

STEPS = int(os.environ.get("SAM2KIT_ENDURANCE_STEPS", 2000))
STEPS_PER_EPOCH = min(500, STEPS // 4)
SAMPLES = 40
MIB = 2**20
MAX_GROWTH = {"MiB": 8, "open files": 8, "threads": 2, "processes": 0}
SETTINGS = {
    "model": {"size": "nano"},
    "dataset": {
        "type": "synthetic",
        "synthetic_videos": STEPS_PER_EPOCH,
        "image_size": 32,
        "video_clip_length": 2,
        "max_objects": 1,
        "batch_size": 1,
        "num_workers": 1,
    },
    "valdataset": {"synthetic_videos": 2},
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": -(-STEPS // STEPS_PER_EPOCH),
        "max_steps": STEPS,
        "audit": "off",
        "log_every_n_steps": max(min(100, STEPS // SAMPLES), 1),
    },
}
Sample = dict[str, float]


def resource_usage(pid: int) -> Sample:
    """Measure what a process and its descendants use now, without memory that they share."""
    processes = [psutil.Process(pid)]
    processes += processes[0].children(recursive=True)
    return {
        "MiB": sum(process.memory_full_info().uss for process in processes) / MIB,
        "open files": sum(process.num_fds() for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "processes": len(processes),
    }


def steps_in(metrics: Path) -> int:
    """Return the last step in a run's ``metrics.csv``, or 0 if it has no rows yet."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    column = lines[0].split(",").index("step") if lines else 0
    return int(lines[-1].split(",")[column]) if len(lines) > 1 else 0


def growth(samples: list[Sample], key: str) -> float:
    """Return the growth in the second half of a run: median of its last minus its first fifth."""
    # In the first half, caches and allocator pools may still grow.
    values = [sample[key] for sample in samples[len(samples) // 2 :]]
    part = max(len(values) // 5, 1)
    return median(values[-part:]) - median(values[:part])


@pytest.mark.slow
def test_long_training_does_not_leak(tmp_path):
    config_file, run_dir = tmp_path / "toy.yaml", tmp_path / "run"
    config_file.write_text(yaml.safe_dump(SETTINGS))
    arguments = ["train", "--config", str(config_file), "--run-dir", str(run_dir)]
    process = start("sam2kit", *arguments, stderr=subprocess.DEVNULL)
    samples: list[Sample] = []
    while process.poll() is None:
        if steps_in(run_dir / "metrics.csv") >= (len(samples) + 1) * STEPS // (SAMPLES + 1):
            try:
                samples.append(resource_usage(process.pid))
            except psutil.NoSuchProcess:  # a process ended during the measurement
                continue
        time.sleep(0.2)
    assert process.returncode == 0
    assert len(samples) >= SAMPLES // 2
    for key, limit in MAX_GROWTH.items():
        assert growth(samples, key) <= limit, [sample[key] for sample in samples]
