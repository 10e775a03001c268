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
    """Turn a system failure into an error that names the fix.

    Raises:
        TrainingError: the device is out of memory (the error contains the planner's estimate), a
            DataLoader worker died (the error names the frame that it was reading), the DataLoader
            delivered nothing within ``dataset.loader_timeout``, another rank was lost, too many
            files are open, or the disk is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            # Free the step's tensors, which the traceback references: the planner needs the memory.
            traceback.clear_frames(error.__traceback__)
            raise _out_of_memory(config, error) from None
        if any(phrase in str(error) for phrase in ("Too many open files", "items of ancdata")):
            what, fix = SYSTEM_ERRORS[errno.EMFILE]
            raise TrainingError(f"{what} in the DataLoader workers", hint=fix) from None
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
    """Return an error with the planner's memory estimate and settings that fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    cause = " ".join(str(error).split())[:200]
    try:
        advice = report(config)[0]
    except Exception as planner_error:  # the planner may run out of memory, too
        logger.debug("The planner failed: {}", planner_error)
        advice = "run sam2kit plan with the same flags to estimate the memory that they need"
    return TrainingError(
        f"out of memory ({cause})",
        hint=f"use settings that fit:\n{advice}\nOther programs may use memory of the device too. "
        f"If the new settings do not change the clips of a step, {RESUME_HINT}; otherwise start "
        "a new run",
    )


def _loader_timeout(config: Config) -> TrainingError:
    seconds = config.dataset.loader_timeout
    return TrainingError(
        f"the DataLoader workers delivered no batch for {seconds} seconds",
        key="dataset.loader_timeout",
        hint="usually /dev/shm is full or the disk does not respond: set dataset.num_workers=0, "
        "give the container more shared memory (docker run --shm-size=8g), or increase "
        f"dataset.loader_timeout if reading your data takes that long; then {RESUME_HINT}",
    )


def _dead_loader(data: SAM2LightningDataModule, message: str) -> TrainingError:
    """Return an error that names the frame that a dead DataLoader worker was reading.

    Args:
        data: the data module, which records what each worker reads.
        message: torch's error message, which contains the process ids.
    """
    match = re.search(r"pid(?:\(s\))? ([\d, ]+)", message)
    pids = [int(pid) for pid in match[1].split(",")] if match else []
    datasets = (data.train_clips, data.val_clips)
    frames = [frame for d in datasets for pid in pids if (frame := d.being_read(pid))]
    description = " and ".join(frames) or "no file (it was between two clips)"
    return TrainingError(
        f"a DataLoader worker died ({message.splitlines()[0]}) while reading {description}",
        hint="usually memory is full (reduce dataset.num_workers), or the decoder crashes on that "
        f"file (check all files with sam2kit doctor); then {RESUME_HINT}",
    )
