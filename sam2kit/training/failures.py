"""What goes wrong around a training: told plainly, and survived where it can be."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.planner import report
from sam2kit.utils.errors import ConfigError, TrainingError

GO_ON = "go on with --resume auto"


@contextmanager
def told_plainly(config: Config, data: SAM2LightningDataModule, run_dir: Path) -> Iterator[None]:
    """Turn what ends a training from outside into an error that says what to do.

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
    told = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in told
    )


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


@contextmanager
def started(cls: Callable[..., Any], config: Config, run_dir: Path) -> Iterator[Logger]:
    """The logger, started now, so that a missing login is told before training, and ended after.

    Left open, it would swallow the next run of the same process, such as a notebook's.

    Raises:
        ConfigError: it cannot be started.
    """
    name = "-".join(run_dir.parts[-2:]) + ("-debug" if config.debug else "")
    if config.logger == "tensorboard":
        yield cls(run_dir, name="tensorboard", version="")
        return
    try:
        if config.logger == "wandb":
            log = _start_wandb(cls, name, run_dir)
        else:
            log_dir = str(run_dir / "swanlog")
            log = cls(project="sam2kit", experiment_name=name, log_dir=log_dir)
            log.experiment  # noqa: B018 - made on first use
    except Exception as error:  # each service has errors of its own
        mode = f"{config.logger.upper()}_MODE=offline"
        raise ConfigError(
            f"trainer.logger: {config.logger} cannot be started ({' '.join(str(error).split())}); "
            f"log in ({config.logger} login), or set {mode} to keep the log in the run folder"
        ) from error
    for method in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(log, method, _warning(getattr(log, method), config.logger))
    try:
        yield log
    finally:
        _warning(import_module(config.logger).finish, config.logger)()


def _start_wandb(cls: Callable[..., Any], name: str, run_dir: Path) -> Logger:
    """W&B's logger; where its server does not answer, one that writes to the run folder."""
    import wandb

    def start(offline: bool) -> Logger:
        log = cls(project="sam2kit", name=name, save_dir=run_dir, offline=offline)
        log.experiment  # noqa: B018 - made on first use
        return log

    try:
        return start(False)
    except (wandb.errors.CommError, OSError) as error:
        logger.warning(
            "W&B does not answer ({}); its log is kept in {}, send it later with: wandb sync {}",
            " ".join(str(error).split())[:200],
            run_dir / "wandb",
            run_dir / "wandb" / "offline-run-*",
        )
        wandb.teardown()
        return start(True)


def _warning(call: Callable[..., Any], service: str) -> Callable[..., Any]:
    """A call to a service whose failure is told once and stops nothing."""
    told = False

    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal told
        try:
            return call(*args, **kwargs)
        except Exception as error:  # each service has errors of its own
            if not told:
                logger.warning("{} does not take the log ({}); going on", service, error)
            told = True

    return guarded
