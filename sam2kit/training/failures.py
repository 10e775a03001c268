"""Turn out-of-memory, dead-worker and disk-full failures into actionable errors."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.launch import LOST_RANK_HINT
from sam2kit.training.memory_profile import is_out_of_memory
from sam2kit.training.planner import report
from sam2kit.utils.errors import SYSTEM_ERRORS, TrainingError

RESUME_HINT = "resume with --resume auto"
LOST_RANK = (
    "Timed out waiting",
    "Connection closed by peer",
    "Socket Timeout",
    "NCCL communicator",
)
"""Phrases in errors of gloo and NCCL, in the ranks that wait for one that hangs or has ended."""


@contextmanager
def actionable_errors(
    config: Config, data: SAM2LightningDataModule, run_dir: Path
) -> Iterator[None]:
    """Turn a failure of the machine into an error that names the fix.

    Raises:
        TrainingError: out of memory, with the planner's estimate; a loader process died, with the
            frame that it was reading; or the disk is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            # The traceback's frames hold the tensors of the step; the planner needs their memory.
            traceback.clear_frames(error.__traceback__)
            raise _out_of_memory(config, error) from None
        if any(phrase in str(error) for phrase in ("Too many open files", "items of ancdata")):
            what, fix = SYSTEM_ERRORS[errno.EMFILE]
            raise TrainingError(f"{what} in the loader processes", hint=fix) from None
        if any(phrase in str(error) for phrase in LOST_RANK):
            rank = int(os.environ.get("RANK", "0"))
            raise TrainingError(
                f"rank {rank} lost another rank ({' '.join(str(error).split())[:200]})",
                hint=f"{LOST_RANK_HINT}; then {RESUME_HINT}",
            ) from None
        if "DataLoader timed out" in str(error):
            raise _loader_timeout(config) from None
        if "DataLoader worker" in str(error):
            raise _dead_loader(data, str(error)) from None
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise TrainingError(
            f"{error.filename or run_dir}: the disk is full ({error.strerror}); the checkpoints in "
            f"{run_dir} are intact",
            hint=f"free some space, then {RESUME_HINT}",
        ) from error


def _out_of_memory(config: Config, error: BaseException) -> TrainingError:
    """Return an error with the planner's estimate of a step and of settings that fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    cause = " ".join(str(error).split())[:200]
    try:
        advice = report(config)[0]
    except Exception as planner_error:  # there may be too little memory for the planner as well
        logger.debug("The planner failed: {}", planner_error)
        advice = "run sam2kit plan with the same flags to see the memory that each key needs"
    return TrainingError(
        f"out of memory ({cause})",
        hint=f"memory of a step, and settings that fit:\n{advice}\nOther programs on the device "
        f"use memory too. If the clips of a step stay the same, {RESUME_HINT}; otherwise start a "
        "new run",
    )


def _loader_timeout(config: Config) -> TrainingError:
    seconds = config.dataset.loader_timeout
    return TrainingError(
        f"the loader processes delivered no batch for {seconds} seconds",
        key="dataset.loader_timeout",
        hint="a full /dev/shm or a disk that does not answer can stop them: set "
        "dataset.num_workers=0, give a container more shared memory (docker run --shm-size=8g), or "
        f"raise dataset.loader_timeout if your data are this slow; then {RESUME_HINT}",
    )


def _dead_loader(data: SAM2LightningDataModule, message: str) -> TrainingError:
    """Return an error that names the frame which the loader process was reading.

    Args:
        message: torch's text, which holds the process ids.
    """
    match = re.search(r"pid(?:\(s\))? ([\d, ]+)", message)
    pids = [int(pid) for pid in match[1].split(",")] if match else []
    datasets = (data.train_clips, data.val_clips)
    frames = [frame for d in datasets for pid in pids if (frame := d.being_read(pid))]
    description = " and ".join(frames) or "no file (it was between two clips)"
    return TrainingError(
        f"a loader process ended ({message.splitlines()[0]}); it was reading {description}",
        hint="usually main memory is full (reduce dataset.num_workers), or a decoder crashes on "
        f"that file (check all files with sam2kit doctor); then {RESUME_HINT}",
    )
