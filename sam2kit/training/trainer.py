"""Fine-tuning from a configuration: what ``sam2kit train`` and ``03_train`` call."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from loguru import logger
from torch.distributed import destroy_process_group

from sam2kit.config.loading import save_config, settle_precision, to_yaml
from sam2kit.config.schema import Config
from sam2kit.config.validation import check
from sam2kit.data.sources.base import VideoSource
from sam2kit.models.checkpoint_io import keep_copy, write_checkpoint
from sam2kit.models.checkpoints import load_run, save_adapter
from sam2kit.models.sam2 import format_report, parameter_report
from sam2kit.training.callbacks import (
    LogProgress,
    SaveWithinEpoch,
    StopOnInterrupt,
    ValidateLastStep,
)
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.failures import actionable_errors
from sam2kit.training.gradient_audit import AuditBeforeTraining
from sam2kit.training.launch import check_ranks, device_count, in_rank, train_on_devices
from sam2kit.training.loggers import RunMetrics, last_values, make_logger_class, open_logger
from sam2kit.training.module import Loss, SAM2LightningModule
from sam2kit.training.nonfinite_replay import StopAtNonFinite
from sam2kit.training.resume import TrainingOver, check_resume, whole_checkpoint
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.paths import open_run_dir

# Keys of the section ``trainer`` that Lightning's Trainer has under the same name.
LIGHTNING_KEYS = (
    *("accelerator", "precision", "num_nodes", "max_epochs", "max_steps", "max_time"),
    *("gradient_clip_val", "accumulate_grad_batches", "log_every_n_steps"),
    *("check_val_every_n_epoch", "limit_train_batches"),
)


@dataclass(frozen=True)
class FitResult:
    """What a training run left behind.

    Attributes:
        run_dir: the run's folder: ``config.yaml``, ``best.ckpt``, ``last.ckpt``, ``metrics.csv``,
            ``train.log`` and the logger's files; with LoRA also ``adapter.pt``.
        best_checkpoint: the lowest validation loss; of a run that went on in another folder, since
            then.
        last_checkpoint: the end of the last epoch, or where the run was stopped; to go on from.
        metrics: the last logged value of each metric.
        interrupted: whether the run was stopped by hand before its end.
    """

    run_dir: Path
    best_checkpoint: Path
    last_checkpoint: Path
    metrics: dict[str, float]
    interrupted: bool = False


def fit(
    config: Config,
    run_dir: str | Path | None = None,
    resume: bool = False,
    *,
    callbacks: Sequence[Callback] = (),
    loss: Loss | None = None,
    train_source: VideoSource | None = None,
    val_source: VideoSource | None = None,
) -> FitResult:
    """Train a model, with ``trainer.devices`` above 1 in one process per device.

    Args:
        config: the configuration of the run. It is validated first.
        run_dir: the run directory. None (default): a dated folder under ``config.output_dir``.
        resume: resume from ``last.ckpt`` in ``run_dir`` where there is one (from ``best.ckpt``
            where that is broken), whatever ``trainer.resume_from`` says. A run that has reached its
            end is left as it is.
        callbacks: Lightning callbacks, called before the kit's own.
        loss: as for :class:`~sam2kit.training.module.SAM2LightningModule`.
        train_source, val_source: as for
            :class:`~sam2kit.training.datamodule.SAM2LightningDataModule`.

    Raises:
        ConfigError, DataError, CheckpointError: before the first step, naming the key or file.
            ConfigError also for callbacks, a loss or sources with several devices: the processes
            are started from the configuration alone.
        TrainingError: one of several processes failed, or the loss or a gradient is not finite.
    """
    check(config)
    config = settle_precision(config)
    run_dir = None if run_dir is None else Path(run_dir)
    log = make_logger_class(config)
    devices = device_count(config)
    everywhere = devices * config.trainer.num_nodes
    in_memory = [*callbacks, *(x for x in (loss, train_source, val_source) if x is not None)]
    if everywhere > 1 and in_memory:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices} starts {everywhere} processes from the "
            "configuration alone, which cannot pass callbacks, loss or sources on; set "
            "trainer.devices=1, or use SAM2LightningModule with a Trainer of your own"
        )
    data = SAM2LightningDataModule(
        config, everywhere, train_source=train_source, val_source=val_source
    )
    if resume and run_dir is not None and (whole := whole_checkpoint(run_dir)):
        config = replace(config, trainer=replace(config.trainer, resume_from=str(whole)))
    try:
        resumed = config.trainer.resume_from is not None
        steps_done = check_resume(config, data.state_dict()) if resumed else 0
    except TrainingOver as over:
        if not resume or run_dir is None:
            raise
        logger.info("nothing left to train. {}", over)
        return _found(config, run_dir)
    if not in_rank():
        data.check_videos()
    check_ranks(config, everywhere, run_dir)
    run_dir = open_run_dir(run_dir, config.output_dir)
    if everywhere > 1 and not in_rank():
        _make_trainer(config, run_dir, [], [])  # rejects devices that do not exist
        return _found(config, run_dir, train_on_devices(config, run_dir, devices))
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    sink = logger.add(run_dir / "train.log", level=config.log_level if first else "ERROR")
    try:
        logger.info("run folder {}{}", run_dir, " (DEBUG RUN)" if config.debug else "")
        if first:
            save_config(config, run_dir / "config.yaml")
        logger.debug("configuration\n{}", to_yaml(config, comments=False))
        seed_everything(config.seed, workers=True, verbose=False)
        module = SAM2LightningModule(config, loss=loss)
        module.use_features(data)
        _warn_of_random_weights(config, module)
        if config.trainer.audit == "off":  # else the audit shows these columns and more
            logger.info("parameters\n{}", format_report(parameter_report(module.model)))
        metrics = RunMetrics(run_dir, steps_done)
        with open_logger(log, config, run_dir) as run_log:
            with actionable_errors(config, data, run_dir):
                return _run(config, run_dir, module, data, [run_log, metrics], callbacks)
    finally:
        logger.remove(sink)


def _found(config: Config, run_dir: Path, interrupted: bool = False) -> FitResult:
    """The result of a training that another process did."""
    best, last = run_dir / "best.ckpt", run_dir / "last.ckpt"
    best = best if best.exists() else last
    if config.model.lora_modules and not (run_dir / "adapter.pt").exists():
        save_adapter(*load_run(best), run_dir / "adapter.pt")
    return FitResult(run_dir, best, last, last_values(run_dir), interrupted)


def _warn_of_random_weights(config: Config, module: SAM2LightningModule) -> None:
    """Say so where part of the model is random and stays random."""
    frozen = [r.module for r in parameter_report(module.model)[:-1] if not r.trainable]
    if config.model.checkpoint is None and config.trainer.resume_from is None and frozen:
        logger.warning(
            "model.checkpoint is null, so {} stay random and nothing useful can be learned; "
            "give --model-checkpoint (such as sam2.1_hiera_tiny), or train everything with "
            "'model.trainable_modules=[\"*\"]'",
            ", ".join(frozen),
        )


def _run(
    config: Config,
    run_dir: Path,
    module: SAM2LightningModule,
    data: SAM2LightningDataModule,
    loggers: list[Logger],
    user_callbacks: Sequence[Callback],
) -> FitResult:
    # Two callbacks, because Lightning's own "last" is written only when "best" is. The last one is
    # written also where an epoch ends early: at an interrupt, at max_steps, at max_time.
    save = partial(ModelCheckpoint, run_dir, enable_version_counter=False)
    best = save("best", monitor="val_loss", save_on_train_epoch_end=False)
    last = save("last", save_on_train_epoch_end=True)
    stopper = StopOnInterrupt()
    callbacks: list[Callback] = [
        *user_callbacks,
        best,
        last,
        stopper,
        StopAtNonFinite(run_dir),
        ValidateLastStep(),
        LogProgress(config.trainer.log_every_n_steps),
    ]
    minutes, steps = config.trainer.checkpoint_minutes, config.trainer.checkpoint_steps
    if minutes is not None or steps is not None:
        callbacks.append(SaveWithinEpoch(run_dir / "last.ckpt", minutes, steps))
    if config.trainer.audit != "off":
        callbacks.append(AuditBeforeTraining())
    if (patience := config.trainer.early_stopping_patience) is not None:
        # At a validation: a run resumed after an epoch's last step passes that epoch's end again.
        stop_early = EarlyStopping("val_loss", patience=patience, check_on_train_epoch_end=False)
        callbacks.append(stop_early)
    if config.trainer.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=config.trainer.ema_decay))
    with _quiet_lightning():
        ddp = in_rank() or config.trainer.strategy == "ddp"
        trainer = _make_trainer(config, run_dir, loggers, callbacks, ddp)
        resume_from = config.trainer.resume_from
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        finally:
            stopper.restore()
    last_path = run_dir / "last.ckpt"
    if not trainer.strategy.broadcast(last_path.exists()):  # stopped before the first step
        trainer.save_checkpoint(last_path)
    best_path = Path(best.best_model_path) if best.best_model_path else last_path
    if config.model.lora_modules and trainer.is_global_zero:
        save_adapter(*load_run(best_path), run_dir / "adapter.pt")
    logger.info("best checkpoint {}", best_path)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    if ddp:
        destroy_process_group()
    return FitResult(run_dir, best_path, last_path, metrics, stopper.interrupted)


def _make_trainer(
    config: Config,
    run_dir: Path,
    loggers: list[Logger],
    callbacks: list[Callback],
    ddp: bool = False,
) -> Trainer:
    """Make Lightning's trainer.

    Raises:
        ConfigError: devices, a strategy or a precision that this machine does not have.
    """
    t = config.trainer
    strategy: str | Strategy = "auto"
    if ddp:
        # Some batches leave parameters without gradient; the only buffers are constants.
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    try:
        return Trainer(
            **{key: getattr(t, key) for key in LIGHTNING_KEYS},
            strategy=strategy,
            plugins=[WholeCheckpoints(t.keep_checkpoints)],
            devices=int(t.devices) if t.devices.isdigit() else t.devices,
            num_sanity_val_steps=0,
            logger=loggers,
            callbacks=callbacks,
            default_root_dir=run_dir,
            enable_progress_bar=sys.stderr.isatty(),
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        raise ConfigError(
            f"trainer.accelerator={t.accelerator} with trainer.devices={t.devices}, "
            f"trainer.strategy={t.strategy} and trainer.precision={t.precision} cannot be used "
            f"here: {error}"
        ) from error


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside and renames, so that a run that is killed leaves the old file or the new one.

    Lightning writes to the system's temporary folder, from where another file system gets a copy.
    Of ``last.ckpt`` so many copies are kept.
    """

    def __init__(self, kept: int = 0) -> None:
        super().__init__()
        self.kept = kept

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))
        if self.kept and Path(path).name == "last.ckpt":
            keep_copy(Path(path), checkpoint["global_step"], self.kept)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete nothing: ``best.ckpt`` and ``last.ckpt`` are replaced, never left behind.

        Lightning would ask for it with a path from the state of a resumed checkpoint.
        """


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's advertisements and its advice on what the configuration decides."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "does not have many workers",
                "number of training batches",
                "your dataloader is not resumable",  # the data module sets where it resumes
                "The dirpath has changed",  # a run resumed in another folder has its own best.ckpt
                "exists and is not empty",  # the folder already holds train.log and config.yaml
                "LeafSpec",
                "sync_dist=True",  # all processes log the same value of a validation
            ):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        log.setLevel(level)
