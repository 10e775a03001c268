"""Fine-tuning from a configuration: what ``sam2kit train`` and ``03_train`` call."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from loguru import logger

from sam2kit.checks import check
from sam2kit.compose import save_config
from sam2kit.config import Config
from sam2kit.engine import (
    LogProgress,
    SAM2LightningDataModule,
    SAM2LightningModule,
    StopOnInterrupt,
)
from sam2kit.errors import ConfigError
from sam2kit.model import format_report, parameter_report


@dataclass(frozen=True)
class FitResult:
    """What a training run left behind.

    Attributes:
        run_dir: the run's folder: ``config.yaml``, ``best.ckpt``, ``last.ckpt``, ``metrics.csv``,
            ``train.log`` and the logger's files.
        best_checkpoint: the epoch of the lowest validation loss.
        last_checkpoint: the last validated epoch.
        metrics: the last logged value of each metric.
        interrupted: whether the run was stopped by hand before its end.
    """

    run_dir: Path
    best_checkpoint: Path
    last_checkpoint: Path
    metrics: dict[str, float]
    interrupted: bool = False


def new_run_dir(output_dir: str | Path) -> Path:
    """Make ``OUTPUT_DIR/YYYY-MM-DD/HH-MM-SS``, with a counter when that second is taken."""
    now = datetime.now()
    day = Path(output_dir) / now.strftime("%Y-%m-%d")
    for attempt in range(1000):
        run_dir = day / (now.strftime("%H-%M-%S") + (f"-{attempt}" if attempt else ""))
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            continue
    raise ConfigError(f"output_dir: no free run folder under {day}")


def fit(config: Config, run_dir: Path | None = None) -> FitResult:
    """Train as ``config`` says.

    Args:
        config: a checked configuration.
        run_dir: where everything goes; by default a dated folder under ``config.output_dir``.

    Raises:
        ConfigError, DataError, CheckpointError: before the first step, naming the key or file.
    """
    check(config)
    log = _make_logger_class(config)
    data = SAM2LightningDataModule(config)
    run_dir = new_run_dir(config.output_dir) if run_dir is None else Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    sink = logger.add(run_dir / "train.log", level=config.log_level)
    try:
        logger.info("run folder {}{}", run_dir, " (DEBUG RUN)" if config.debug else "")
        save_config(config, run_dir / "config.yaml")
        seed_everything(config.seed, workers=True, verbose=False)
        module = SAM2LightningModule(config)
        logger.info("parameters\n{}", format_report(parameter_report(module.model)))
        return _run(config, run_dir, module, data, log)
    finally:
        logger.remove(sink)


def _run(
    config: Config,
    run_dir: Path,
    module: SAM2LightningModule,
    data: SAM2LightningDataModule,
    log: type[Logger],
) -> FitResult:
    checkpoint = ModelCheckpoint(
        dirpath=run_dir,
        filename="best",
        monitor="val_loss",
        save_last=True,
        enable_version_counter=False,
    )
    stopper = StopOnInterrupt()
    callbacks: list[Callback] = [
        checkpoint,
        stopper,
        LogProgress(config.trainer.log_every_n_steps),
    ]
    if config.trainer.early_stopping_patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=config.trainer.early_stopping_patience))
    t = config.trainer
    trainer = Trainer(
        accelerator=t.accelerator,
        devices=int(t.devices) if t.devices.isdigit() else t.devices,
        precision=t.precision,  # type: ignore[arg-type]
        max_epochs=t.max_epochs,
        max_steps=t.max_steps,
        gradient_clip_val=t.gradient_clip_val,
        accumulate_grad_batches=t.accumulate_grad_batches,
        log_every_n_steps=t.log_every_n_steps,
        check_val_every_n_epoch=t.check_val_every_n_epoch,
        limit_train_batches=t.limit_train_batches,
        limit_val_batches=t.limit_val_batches,
        num_sanity_val_steps=0,
        logger=[
            _make_logger(log, config, run_dir),
            CSVLogger(run_dir, name="", version=""),
        ],
        callbacks=callbacks,
        default_root_dir=run_dir,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        # Lightning advises more loader workers and a larger log interval than the user asked for.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        trainer.fit(module, datamodule=data, ckpt_path=t.resume_from, weights_only=True)
    last = run_dir / "last.ckpt"
    if stopper.interrupted or not last.exists():
        trainer.save_checkpoint(last)
    best = Path(checkpoint.best_model_path) if checkpoint.best_model_path else last
    logger.info("best checkpoint {}", best)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return FitResult(run_dir, best, last, metrics, stopper.interrupted)


def _make_logger_class(config: Config) -> type[Logger]:
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


def _make_logger(cls: type[Logger], config: Config, run_dir: Path) -> Logger:
    name = "-".join(run_dir.parts[-2:]) + ("-debug" if config.debug else "")
    if config.logger == "wandb":
        return cls(project="sam2kit", name=name, save_dir=run_dir)
    if config.logger == "swanlab":
        return cls(project="sam2kit", experiment_name=name, logdir=str(run_dir / "swanlog"))
    return cls(run_dir, name="tensorboard", version="")


if __name__ == "__main__":
    from sam2kit.cli import main

    raise SystemExit(main(["train", *sys.argv[1:]]))
