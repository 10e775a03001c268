"""Write the metrics of a run to ``metrics.csv`` and to experiment loggers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

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
