"""Train on several devices: start one process ("rank") per device through torchrun and watch them.

Each rank runs :mod:`sam2kit.training.rank_worker`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import torch
from torch.distributed import is_torchelastic_launched

from sam2kit.config.loading import save_config
from sam2kit.config.schema import Config
from sam2kit.utils.errors import ConfigError, TrainingError
from sam2kit.utils.processes import sigterm_interrupts, start


def device_count(config: Config) -> int:
    """How many devices ``trainer.devices`` means on this machine, at least 1."""
    devices = config.trainer.devices
    if devices in ("auto", "-1"):
        gpus = config.trainer.accelerator in ("auto", "gpu", "cuda")
        return max(torch.cuda.device_count(), 1) if gpus else 1
    return len([d for d in devices.split(",") if d.strip()]) if "," in devices else int(devices)


def in_rank() -> bool:
    """Whether torchrun started this process."""
    return is_torchelastic_launched()


def check_ranks(config: Config, devices: int, run_dir: Path | None) -> None:
    """Refuse to train in processes that do not fit together.

    Args:
        devices: of all machines.
        run_dir: where results go, if that was said.

    Raises:
        ConfigError: names the flag or key and what torchrun started.
    """
    if in_rank() and run_dir is None:
        raise ConfigError(
            "the processes of torchrun need one folder; name it with --run-dir, or let "
            f"trainer.devices={devices} start them"
        )
    started = int(os.environ["WORLD_SIZE"]) if in_rank() else devices
    if started != devices:
        raise ConfigError(
            f"torchrun started {started} processes, and trainer.devices={config.trainer.devices} "
            f"with trainer.num_nodes={config.trainer.num_nodes} asks for {devices}; make them equal"
        )
    if not in_rank() and config.trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={config.trainer.num_nodes}: each machine's processes are started "
            "by torchrun there, or on a cluster by sam2kit submit (docs/scale.md)"
        )


def train_on_devices(config: Config, run_dir: Path, devices: int) -> bool:
    """Run ``fit`` in a process for each device, and print their lines as they come.

    An interrupt or SIGTERM ends the training after the step in progress, a second one at once.

    Returns:
        whether it was interrupted.

    Raises:
        TrainingError: a process failed.
        KeyboardInterrupt: interrupted before the first step, or twice.
    """
    save_config(config, run_dir / "config.yaml")
    torchrun = [
        "--standalone",
        f"--nproc-per-node={devices}",
        "-m",
        "sam2kit.training.rank_worker",
        str(run_dir),
    ]
    process = start(
        "torch.distributed.run", *torchrun, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None and process.stdout is not None
    interrupted, told = False, ""
    try:
        with sigterm_interrupts():
            while True:
                try:
                    for line in process.stdout:
                        print(line, end="", flush=True)
                        told = told or (line if line.startswith("error: ") else "")
                    break
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    for rank in psutil.Process(process.pid).children():
                        rank.send_signal(signal.SIGINT)
    finally:
        process.stdin.close()  # at which all of them end
        code = process.wait()
    if code and interrupted:
        raise KeyboardInterrupt(f"what was trained so far is kept in {run_dir}")
    if code:
        told = told.removeprefix("error: ").strip() or "its last lines tell why"
        raise TrainingError(f"training on {devices} devices failed (exit code {code}): {told}")
    return interrupted
