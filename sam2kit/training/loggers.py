"""Write the metrics of a run to ``metrics.csv`` and to experiment loggers."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.utils.errors import ConfigError


def make_logger_class(config: Config) -> Callable[..., Any]:
    """The logger's class, imported before any long work.

    Raises:
        ConfigError: its package is not installed; the message holds the line that installs it.
    """
    try:
        if config.logger == "wandb":
            import wandb  # noqa: F401
            from lightning.pytorch.loggers import WandbLogger

            return WandbLogger
        if config.logger == "swanlab":
            from swanlab.integration.pytorch_lightning import SwanLabLogger

            return SwanLabLogger
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger
    except ImportError as error:
        raise ConfigError(
            f"trainer.logger: {config.logger} is not installed ({error}); install it with: "
            f"pip install 'sam2kit[{config.logger}]'"
        ) from error


@contextmanager
def open_logger(
    logger_class: Callable[..., Any], config: Config, run_dir: Path
) -> Iterator[Logger]:
    """Start the experiment logger, so that a missing login fails before training, and end it.

    Left open, it would take the next run of the same process, such as a notebook's.

    Raises:
        ConfigError: it cannot be started.
    """
    name = "-".join(run_dir.parts[-2:]) + ("-debug" if config.debug else "")
    if config.logger == "tensorboard":
        yield logger_class(run_dir, name="tensorboard", version="")
        return
    try:
        if config.logger == "wandb":
            log = _start_wandb(logger_class, name, run_dir)
        else:
            log_dir = str(run_dir / "swanlog")
            log = logger_class(project="sam2kit", experiment_name=name, log_dir=log_dir)
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


def _start_wandb(logger_class: Callable[..., Any], name: str, run_dir: Path) -> Logger:
    """Start W&B's logger, writing to the run directory where its server does not answer."""
    import wandb

    def start(offline: bool) -> Logger:
        log = logger_class(project="sam2kit", name=name, save_dir=run_dir, offline=offline)
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
    """Wrap a call to a service: its first failure is logged, and none stops the training."""
    warned = False

    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal warned
        try:
            return call(*args, **kwargs)
        except Exception as error:  # each service has errors of its own
            if not warned:
                logger.warning("{} does not take the log ({}); going on", service, error)
            warned = True

    return guarded


class RunMetrics(CSVLogger):
    """``metrics.csv`` of a run, which goes on with the rows of its first ``steps`` steps.

    Lightning's own logger deletes the file that it finds.
    """

    def __init__(self, run_dir: Path, steps: int = 0) -> None:
        super().__init__(run_dir, name="", version="")
        self.steps = steps

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            rows: list[dict[str, Any]] = []
            if self.steps and file.is_file():
                with file.open(newline="") as opened:
                    rows = [r for r in csv.DictReader(opened) if int(r["step"]) < self.steps]
            writer = super().experiment
            writer.metrics = rows
            writer.save()
        return super().experiment


def last_values(run_dir: Path) -> dict[str, float]:
    """The last value of each metric in a run's ``metrics.csv``; empty where there is none."""
    values: dict[str, float] = {}
    if (run_dir / "metrics.csv").is_file():
        with (run_dir / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                values |= {k: float(v) for k, v in row.items() if v and k not in ("epoch", "step")}
    return values
