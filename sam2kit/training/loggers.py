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
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import atomic_write
from sam2kit.utils.metrics_table import read_rows


def make_logger_class(config: Config) -> Callable[..., Any]:
    """Return the class of the experiment logger.

    Call it before any long work, so that a missing package is reported immediately.

    Raises:
        ConfigError: the logger's package is not installed.
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
            f"{config.logger} is not installed ({error})",
            key="trainer.logger",
            value=config.logger,
            hint=f"install it with: pip install 'sam2kit[{config.logger}]'",
        ) from error


@contextmanager
def open_logger(
    logger_class: Callable[..., Any], config: Config, run_dir: Path
) -> Iterator[Logger]:
    """Start the experiment logger, and finish it on exit.

    The logger starts before training, so that a missing login is reported first. Without
    ``finish``, the next run in the same process, such as a notebook kernel, would log to the same
    experiment.

    Raises:
        ConfigError: the logger cannot be started.
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
            log.experiment  # noqa: B018 - the property creates it
    except Exception as error:  # each service raises its own exception types
        mode = f"{config.logger.upper()}_MODE=offline"
        raise ConfigError(
            f"{config.logger} cannot be started ({' '.join(str(error).split())})",
            key="trainer.logger",
            value=config.logger,
            hint=f"log in ({config.logger} login), or set {mode} to keep the log in the run "
            "directory",
        ) from error
    # A service that fails during training must not stop it.
    for method in ("log_metrics", "log_hyperparams", "save", "finalize"):
        setattr(log, method, _log_failures(getattr(log, method), config.logger))
    try:
        yield log
    finally:
        _log_failures(import_module(config.logger).finish, config.logger)()


def _start_wandb(logger_class: Callable[..., Any], name: str, run_dir: Path) -> Logger:
    """Start W&B's logger, offline in the run directory if the server does not answer."""
    import wandb

    def start(offline: bool) -> Logger:
        log = logger_class(project="sam2kit", name=name, save_dir=run_dir, offline=offline)
        log.experiment  # noqa: B018 - the property creates it
        return log

    try:
        return start(False)
    except (wandb.errors.CommError, OSError) as error:
        logger.warning(
            "W&B does not answer ({}); logging to {}. Upload it later with: wandb sync {}",
            " ".join(str(error).split())[:200],
            run_dir / "wandb",
            run_dir / "wandb" / "offline-run-*",
        )
        wandb.teardown()
        return start(True)


def _log_failures(call: Callable[..., Any], service: str) -> Callable[..., Any]:
    """Wrap a call to a service so that failures do not stop training; log the first one."""
    warned = False

    @wraps(call)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        nonlocal warned
        try:
            return call(*args, **kwargs)
        except Exception as error:  # each service raises its own exception types
            if not warned:
                logger.warning("Logging to {} failed ({}); training continues", service, error)
            warned = True

    return guarded


class RunMetrics(CSVLogger):
    """Write ``metrics.csv``; when a run is resumed, keep the rows of the steps already done.

    Lightning's own logger deletes an existing file.

    Args:
        run_dir: the run directory.
        steps: number of optimizer steps already done. Rows of later steps are dropped, because
            those steps are repeated.
    """

    def __init__(self, run_dir: Path, steps: int = 0) -> None:
        super().__init__(run_dir, name="", version="")
        self.steps = steps

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            rows = read_rows(Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE)
            rows = [row for row in rows if float(row["step"]) < self.steps]
            self._experiment = _MetricsWriter(self.log_dir, rows)
        return self._experiment


class _MetricsWriter(ExperimentWriter):
    """Append rows to ``metrics.csv``, and rewrite it atomically when columns are added.

    Args:
        log_dir: the run directory.
        rows: initial rows; they replace an existing file.
    """

    def __init__(self, log_dir: str, rows: list[dict[str, str]]) -> None:
        super().__init__(log_dir)
        self.metrics_keys = sorted(set().union(*rows))
        self._write(rows)

    def _check_log_dir_exists(self) -> None:
        """Do nothing: Lightning deletes the files, which would lose the history of a killed run."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(read_rows(Path(self.metrics_file_path)))

    def _write(self, rows: list[dict[str, str]]) -> None:
        if not rows:
            Path(self.metrics_file_path).unlink(missing_ok=True)
            return
        with atomic_write(self.metrics_file_path, fsync=True) as part:
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self.metrics_keys)
                writer.writeheader()
                writer.writerows(rows)


def last_values(run_dir: Path) -> dict[str, float]:
    """Return the last value of each metric in a run's ``metrics.csv``.

    Returns:
        a dictionary from metric name to value; empty if the file is missing.
    """
    values: dict[str, float] = {}
    for row in read_rows(run_dir / "metrics.csv"):
        values |= {k: float(v) for k, v in row.items() if v and k not in ("epoch", "step")}
    return values
