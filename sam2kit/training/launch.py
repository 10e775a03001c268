"""Train on several devices: start one rank (a process) per device through torchrun.

Each rank runs :mod:`sam2kit.training.rank_worker`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import psutil
from torch.distributed import is_torchelastic_launched

from sam2kit.config.loading import save_config
from sam2kit.config.schema import Config
from sam2kit.utils.errors import ConfigError, TrainingError
from sam2kit.utils.locks import for_children
from sam2kit.utils.processes import NO_TORCHRUN_LOGS, sigterm_interrupts, start

LOST_RANK_HINT = "the first error in the log is the cause; a rank may also hang while it reads data"


def in_rank() -> bool:
    """Return whether torchrun started this process."""
    return is_torchelastic_launched()


def check_ranks(config: Config, devices: int, run_dir: Path | None) -> None:
    """Check that the number of torchrun processes matches the configuration.

    Args:
        devices: total number of devices on all machines.
        run_dir: the run directory, or None if the user did not set one.

    Raises:
        ConfigError: names the flag or key.
    """
    if in_rank() and run_dir is None:
        # Otherwise each rank would create its own dated directory.
        raise ConfigError(
            "torchrun's ranks need a common run directory",
            key="--run-dir",
            hint=f"pass --run-dir, or omit torchrun and set trainer.devices={devices}",
        )
    started = int(os.environ["WORLD_SIZE"]) if in_rank() else devices
    if started != devices:
        raise ConfigError(
            f"torchrun started {started} processes, but trainer.devices={config.trainer.devices} "
            f"with trainer.num_nodes={config.trainer.num_nodes} requires {devices}",
            key="trainer.devices",
            value=config.trainer.devices,
            hint="start as many processes as trainer.devices times trainer.num_nodes",
        )
    if not in_rank() and config.trainer.num_nodes > 1:
        raise ConfigError(
            f"training on {config.trainer.num_nodes} nodes needs a launcher on each of them",
            key="trainer.num_nodes",
            value=config.trainer.num_nodes,
            hint="start torchrun on each node, or use sam2kit submit on a cluster (docs/scale.md)",
        )


def train_on_devices(config: Config, run_dir: Path, devices: int) -> bool:
    """Run ``fit`` in one process per device and print the processes' output as it arrives.

    Ctrl-C or SIGTERM stops training after the current step; a second signal stops it immediately.

    Returns:
        whether training was interrupted.

    Raises:
        TrainingError: a rank failed.
        KeyboardInterrupt: interrupted before the first step, or twice.
    """
    save_config(config, run_dir / "config.yaml")
    torchrun = [
        "--standalone",
        f"--nproc-per-node={devices}",
        NO_TORCHRUN_LOGS,
        "-m",
        "sam2kit.training.rank_worker",
        str(run_dir),
    ]
    process = start(
        "torch.distributed.run",
        *torchrun,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=for_children(),
    )
    assert process.stdin is not None and process.stdout is not None
    interrupted, first_error = False, ""
    try:
        with sigterm_interrupts():
            while True:
                try:
                    for line in process.stdout:
                        print(line, end="", flush=True)
                        first_error = first_error or _error_in(line)
                    break
                except KeyboardInterrupt:
                    if interrupted:
                        raise
                    interrupted = True
                    # torchrun kills its ranks when it gets a signal, so signal them directly. The
                    # loop then reads their output until they have saved a checkpoint.
                    for rank in psutil.Process(process.pid).children():
                        rank.send_signal(signal.SIGINT)
    finally:
        process.stdin.close()  # stops torchrun and all ranks; see utils/processes.py
        code = process.wait()
    if code and interrupted:
        raise KeyboardInterrupt(f"checkpoints saved before the interrupt are in {run_dir}")
    if code:
        reason = first_error.removeprefix("error: ").strip() or "no rank reported an error"
        raise TrainingError(
            f"training on {devices} devices failed (exit code {code}): {reason}",
            hint=f"see the output above and {run_dir / 'train.log'}",
        )
    return interrupted


def _error_in(line: str) -> str:
    """Return the error that a line of a rank's output reports, or an empty string."""
    if line.startswith("error: "):
        return line
    # NCCL ends the process from a thread of its own, so no Python code can report this.
    match = re.search(r"\[rank ?(\d+)\].*Watchdog caught collective operation timeout", line, re.I)
    return f"rank {match[1]} waited too long for another rank; {LOST_RANK_HINT}" if match else ""
