"""Turn out-of-memory, dead-worker and disk-full failures into actionable errors."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.planner import report
from sam2kit.utils.errors import TrainingError

GO_ON = "go on with --resume auto"


@contextmanager
def actionable_errors(
    config: Config, data: SAM2LightningDataModule, run_dir: Path
) -> Iterator[None]:
    """Turn a failure of the machine into an error that names the fix.

    Raises:
        TrainingError: memory ran out, with the planner's figures; a loader process died, with the
            frame that it was at; the disk is full.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # the step's tensors
            raise TrainingError(_out_of_memory(config, error)) from None
        if "DataLoader worker" in str(error):
            raise TrainingError(_dead_loader(data, str(error))) from None
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise TrainingError(
            f"{error.filename or run_dir}: the disk is full ({error.strerror}); the checkpoints in "
            f"{run_dir} are as they were. Make room, and {GO_ON}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a device or in main memory."""
    phrases = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(phrase in str(error) for phrase in phrases)


def _out_of_memory(config: Config, error: BaseException) -> str:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    what = " ".join(str(error).split())[:200]
    try:
        advice = report(config)[0]
    except Exception as failed:  # there may be no memory for the planner either
        logger.debug("the planner failed: {}", failed)
        advice = "sam2kit plan with the same flags tells how much each key takes"
    return (
        f"out of memory ({what}). What a step takes, and what would fit:\n{advice}\nOther programs "
        f"on the device count too. With the same clips in a step, {GO_ON}; else begin a new run"
    )


def _dead_loader(data: SAM2LightningDataModule, told: str) -> str:
    found = re.search(r"pid(?:\(s\))? ([\d, ]+)", told)
    pids = [int(pid) for pid in found[1].split(",")] if found else []
    clips = (data.train_clips, data.val_clips)
    places = [place for c in clips for pid in pids if (place := c.being_read(pid))]
    where = " and ".join(places) or "no file (it was between two clips)"
    return (
        f"a loader process ended ({told.splitlines()[0]}); it was reading {where}. Usually memory "
        "ran out (give fewer dataset.num_workers), or a decoder broke on that file (sam2kit doctor "
        f"reads them all). Then {GO_ON}"
    )
