"""Train a model from a configuration.

``sam2kit train`` and the notebook ``03_train`` call :func:`fit`.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from loguru import logger
from torch.distributed import destroy_process_group

from sam2kit.config.loading import resolve_config_precision, save_config, to_yaml
from sam2kit.config.schema import RANDOM, Config
from sam2kit.config.validation import check, check_new
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.splits import SPLITS_FILE
from sam2kit.models.checkpoint_io import keep_copy, write_checkpoint
from sam2kit.models.checkpoints import load_run, save_adapter
from sam2kit.models.initial_weights import resolve_initial_weights
from sam2kit.models.run_splits import checkpoint_splits
from sam2kit.models.sam2 import check_compiler, format_report, parameter_report
from sam2kit.training.callbacks import (
    AverageWeights,
    AverageWithStart,
    LogProgress,
    RunCheckpoint,
    SaveWithinEpoch,
    Scorer,
    ScoreVideos,
    StopOnInterrupt,
    ValidateLastStep,
)
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.failures import actionable_errors
from sam2kit.training.gradient_audit import AuditBeforeTraining
from sam2kit.training.launch import check_ranks, in_rank, train_on_devices
from sam2kit.training.loggers import RunMetrics, last_values, make_logger_class, open_logger
from sam2kit.training.module import Loss, SAM2LightningModule
from sam2kit.training.nonfinite_replay import StopAtNonFinite
from sam2kit.training.resume import (
    TrainingComplete,
    check_resume,
    earlier_best,
    latest_valid_checkpoint,
    resolve_monitor,
    resumed_model,
)
from sam2kit.utils.device import device_count, resolve_accelerator
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import open_to_append, write_text
from sam2kit.utils.locks import Owner
from sam2kit.utils.paths import open_run_dir
from sam2kit.utils.text import log_format, plural, visible_text

LOG_LINE = "{time:YYYY-MM-DD HH:mm:ss.SSS} | {level: <8} | {name}:{function}:{line} - {extra[text]}"
MAX_LISTED = 8  # maximum number of validation videos to log
# Keys of the section ``trainer`` that Lightning's Trainer accepts under the same name.
LIGHTNING_KEYS = (
    *("precision", "num_nodes", "max_epochs", "max_steps", "max_time"),
    *("gradient_clip_val", "accumulate_grad_batches", "log_every_n_steps"),
    *("check_val_every_n_epoch", "limit_train_batches"),
)


@dataclass(frozen=True)
class FitResult:
    """The files and metrics of a training run.

    Attributes:
        run_dir: the run directory, with ``config.yaml``, ``splits.json``, ``best.ckpt``,
            ``last.ckpt``, ``metrics.csv``, ``train.log`` and the logger's files; with LoRA also
            ``adapter.pt``.
        best_checkpoint: the checkpoint with the best value of ``trainer.monitor``. If the run was
            resumed in another directory, only checkpoints since then are considered.
        last_checkpoint: the checkpoint to resume from, saved at the end of the last epoch or when
            the run was stopped.
        metrics: last logged value of each metric, by name.
        interrupted: whether Ctrl-C or SIGTERM stopped the run early.
    """

    run_dir: Path
    best_checkpoint: Path
    last_checkpoint: Path
    metrics: dict[str, float]
    interrupted: bool = False


class _Extras(NamedTuple):
    """Arguments of :func:`fit` that a configuration cannot contain."""

    callbacks: Sequence[Callback]
    loss: Loss | None
    scorer: Scorer | None


def fit(
    config: Config,
    run_dir: str | Path | None = None,
    resume: bool = False,
    *,
    callbacks: Sequence[Callback] = (),
    loss: Loss | None = None,
    train_source: VideoSource | None = None,
    val_source: VideoSource | None = None,
    scorer: Scorer | None = None,
) -> FitResult:
    """Train a model; with ``trainer.devices`` above 1, in one process per device.

    Args:
        config: the configuration of the run; it is validated before training.
        run_dir: the run directory. If None (default), a dated directory is created in
            ``config.output_dir``.
        resume: resume the run in ``run_dir`` if it has a checkpoint, and ignore
            ``trainer.resume_from``. If ``last.ckpt`` is damaged, its newest valid copy is used,
            then ``best.ckpt``. A finished run is left unchanged. If False (default), a directory
            that already contains a run is rejected.
        callbacks: Lightning callbacks, called before those of sam2kit.
        loss: see :class:`~sam2kit.training.module.SAM2LightningModule`.
        train_source, val_source: see
            :class:`~sam2kit.training.datamodule.SAM2LightningDataModule`.
        scorer: function that computes ``val_jf`` at each validation, such as the result of
            :func:`sam2kit.evaluation.jf_scorer`. ``trainer.monitor=val_jf`` requires it. If None
            (default), ``val_jf`` is not computed.

    Returns:
        the files and metrics of the run.

    Raises:
        ConfigError, DataError, CheckpointError: the settings or files are invalid; raised before
            the first step. ConfigError is also raised if callbacks, a loss, a scorer or sources are
            passed with several devices, because ranks only receive the configuration.
        PipelineError: another process uses the run directory.
        TrainingError: a rank failed, the loss or a gradient is not finite, memory or disk is full,
            or a DataLoader worker died.
    """
    check(config)
    config = resolve_config_precision(config)
    run_dir = None if run_dir is None else Path(run_dir)
    sources = {"train_source": train_source, "val_source": val_source}
    _check_scorer(config, scorer)
    with Owner() as owner:
        if _is_first() and run_dir is not None and run_dir.is_dir():
            owner.take(open_run_dir(run_dir, config.output_dir))
            if not resume and config.trainer.resume_from is None:
                check_new(run_dir)
        return _fit(config, run_dir, resume, owner, _Extras(callbacks, loss, scorer), sources)


def _check_scorer(config: Config, scorer: Scorer | None) -> None:
    """Raise if the monitored metric requires a scorer that was not passed."""
    if config.trainer.monitor == "val_jf" and scorer is None:
        raise ConfigError(
            "trainer.monitor=val_jf requires a scorer",
            key="trainer.monitor",
            value="val_jf",
            hint="pass scorer=sam2kit.evaluation.jf_scorer(config, run_dir) to fit, or, with "
            "several devices, set trainer.monitor=val_iou",
        )


def _is_first() -> bool:
    """Return whether this process is rank 0 or the only process."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def _fit(
    config: Config,
    run_dir: Path | None,
    resume: bool,
    owner: Owner,
    extras: _Extras,
    sources: dict[str, VideoSource | None],
) -> FitResult:
    """Train as :func:`fit` describes, and lock the run directory once it exists."""
    log = make_logger_class(config)
    devices = device_count(config.trainer.accelerator, config.trainer.devices)
    world_size = devices * config.trainer.num_nodes
    _reject_objects_in_memory(config, world_size, extras, sources)
    resume_from = config.trainer.resume_from
    if resume and run_dir is not None and (checkpoint := latest_valid_checkpoint(run_dir)):
        config = replace(config, trainer=replace(config.trainer, resume_from=str(checkpoint)))
    # Check everything that can be checked before the run directory is created.
    data = SAM2LightningDataModule(config, world_size, **sources)
    config = data.config
    resumed = config.trainer.resume_from is not None
    config = resumed_model(config) if resumed else resolve_initial_weights(config)
    try:
        steps_done = check_resume(config, data.state_dict()) if resumed else 0
    except TrainingComplete as complete:
        # With resume=True a repeated call is valid and does nothing; with resume_from it is an
        # error.
        if not resume or run_dir is None:
            raise
        logger.info("Nothing left to train: {}", complete)
        return _existing_result(config, run_dir)
    config = resolve_monitor(config)
    _check_scorer(config, extras.scorer)  # a resumed run keeps its metric
    if config.model.compile:
        check_compiler()
    if not in_rank():
        _check_videos(data, extras.scorer)
    check_ranks(config, world_size, run_dir)
    run_dir = open_run_dir(run_dir, config.output_dir)
    first = _is_first()
    if first:
        owner.take(run_dir)
    if world_size > 1 and not in_rank():
        _make_trainer(config, run_dir, [], [])  # reject unavailable devices before starting ranks
        return _existing_result(config, run_dir, train_on_devices(config, run_dir, devices))
    sink = _log_to(run_dir / "train.log", config.log_level if first else "ERROR")
    try:
        _log_start(config, run_dir, data)
        if first:
            # Do not store the checkpoint to resume from: the directory may be moved.
            t = replace(config.trainer, resume_from=resume_from)
            _save_settings(replace(config, trainer=t), data, run_dir)
        logger.debug("configuration\n{}", to_yaml(config, comments=False))
        seed_everything(config.seed, workers=True, verbose=False)
        module = SAM2LightningModule(config, loss=extras.loss)
        module.use_features(data)
        _warn_of_random_weights(config, module)
        if config.trainer.audit == "off":  # the audit's table has these columns, too
            logger.info("parameters\n{}", format_report(parameter_report(module.model)))
        metrics = RunMetrics(run_dir, steps_done)
        with open_logger(log, config, run_dir) as run_log:
            with actionable_errors(config, data, run_dir):
                return _run(config, run_dir, module, data, [run_log, metrics], extras)
    finally:
        logger.remove(sink)


def _check_videos(data: SAM2LightningDataModule, scorer: Scorer | None) -> None:
    """Check the videos, and that ``val_jf`` can be computed, before the first step."""
    data.check_videos()
    if scorer is not None and hasattr(scorer, "check"):
        scorer.check(data.val_clips.source)


def _reject_objects_in_memory(
    config: Config,
    world_size: int,
    extras: _Extras,
    sources: Mapping[str, VideoSource | None],
) -> None:
    """Raise if objects were passed that cannot be sent to the ranks of a multi-device run."""
    in_memory = (extras.loss, extras.scorer, *sources.values())
    if world_size > 1 and (extras.callbacks or any(x is not None for x in in_memory)):
        raise ConfigError(
            f"callbacks, loss, scorer and sources cannot be used with {world_size} ranks, which "
            "only receive the configuration",
            key="trainer.devices",
            value=config.trainer.devices,
            hint="set trainer.devices=1, or use SAM2LightningModule with your own Trainer"
            + (" (trainer.monitor=val_iou needs no scorer)" if extras.scorer else ""),
        )


def _save_settings(config: Config, data: SAM2LightningDataModule, run_dir: Path) -> None:
    """Write ``config.yaml`` and ``splits.json``."""
    save_config(config, run_dir / "config.yaml")
    write_text(run_dir / SPLITS_FILE, json.dumps(data.splits.to_dict(), indent=1) + "\n")


def _log_to(path: Path, level: str) -> int:
    """Log to a file and return the handler id for ``logger.remove``."""
    return logger.add(_LogFile(path), level=level, format=log_format(LOG_LINE))


class _LogFile:
    """Log file that reports a full disk once; loguru would print a traceback per line."""

    def __init__(self, path: Path) -> None:
        self.path, self.is_complete = path, True
        self.file = open_to_append(path, errors="backslashreplace")

    def write(self, line: str) -> None:
        try:
            self.file.write(line)
            self.file.flush()
        except OSError as error:
            if self.is_complete:
                self.is_complete = False
                print(f"{self.path} is incomplete: {error.strerror}", file=sys.stderr)

    def stop(self) -> None:
        with suppress(OSError):  # closing flushes the lines that could not be written
            self.file.close()


def _log_start(config: Config, run_dir: Path, data: SAM2LightningDataModule) -> None:
    """Log the run directory and the training and validation videos."""
    logger.info("Run directory: {}{}", run_dir, " (DEBUG RUN)" if config.debug else "")
    logger.info("dataset.type={}, training on {}", config.dataset.type, data.train_clips.videos)
    if data.train_clips.num_replayed:
        share = config.dataset.replay
        logger.info("dataset.replay={}: an epoch has {}", share, data.train_clips.epoch_text())
    names = data.val_clips.source.names
    listed = ", ".join(visible_text(name) for name in names[:MAX_LISTED])
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    logger.info("Validating on {}: {}{}", plural(len(names), "video"), listed, more)
    if config.dataset.time_split:
        logger.info("dataset.time_split={}", config.dataset.time_split)


def _existing_result(config: Config, run_dir: Path, interrupted: bool = False) -> FitResult:
    """Return the result of a run that other processes trained, read from its files."""
    best, last = run_dir / "best.ckpt", run_dir / "last.ckpt"
    best = best if best.exists() else last
    # A run that was killed after its last checkpoint may have no adapter yet.
    if config.model.lora_modules and not (run_dir / "adapter.pt").exists():
        save_adapter(*load_run(best), run_dir / "adapter.pt", checkpoint_splits(best))
    return FitResult(run_dir, best, last, last_values(run_dir), interrupted)


def _warn_of_random_weights(config: Config, module: SAM2LightningModule) -> None:
    """Warn if modules have random weights and are not trained."""
    frozen = [r.module for r in parameter_report(module.model)[:-1] if not r.trainable]
    if config.model.checkpoint == RANDOM and config.trainer.resume_from is None and frozen:
        logger.warning(
            "model.checkpoint=random and {} are not trained, so training cannot succeed. Pass "
            "--model-checkpoint (such as sam2.1_hiera_tiny), or train all modules with "
            "'model.trainable_modules=[\"*\"]'",
            ", ".join(frozen),
        )


def _run(
    config: Config,
    run_dir: Path,
    module: SAM2LightningModule,
    data: SAM2LightningDataModule,
    loggers: list[Logger],
    extras: _Extras,
) -> FitResult:
    # Use two callbacks, because Lightning's save_last only saves together with the best checkpoint.
    # save_on_train_epoch_end also applies to an epoch that ends early: at an interrupt, max_steps
    # or max_time.
    resume_from = config.trainer.resume_from
    same_run = resume_from is not None and Path(resume_from).resolve().parent == run_dir.resolve()
    save = partial(RunCheckpoint, run_dir, same_run)
    monitor = config.trainer.monitor
    mode = "min" if monitor == "val_loss" else "max"
    best = save("best", monitor=monitor, mode=mode, save_on_train_epoch_end=False)
    if same_run and (value := earlier_best(config, run_dir)) is not None:
        best.keep_best(value)
    last = save("last", save_on_train_epoch_end=True)
    stopper = StopOnInterrupt()
    callbacks: list[Callback] = [
        *extras.callbacks,
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
    if extras.scorer is not None:
        callbacks.append(ScoreVideos(extras.scorer, data.val_clips.source))
    if (patience := config.trainer.early_stopping_patience) is not None:
        # Check at validations: a run that resumes after the last step of an epoch repeats the end
        # of that epoch, which would then count twice.
        callbacks.append(
            EarlyStopping(monitor, patience=patience, mode=mode, check_on_train_epoch_end=False)
        )
    if config.trainer.ema_decay is not None:
        callbacks.append(AverageWeights(config.trainer.ema_decay))
    if config.trainer.average_with_start is not None:
        callbacks.append(AverageWithStart(config.trainer.average_with_start))
    with _quiet_lightning():
        ddp = in_rank() or config.trainer.strategy == "ddp"
        trainer = _make_trainer(config, run_dir, loggers, callbacks, ddp)
        try:
            trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)
        finally:
            stopper.restore()
    last_path = run_dir / "last.ckpt"
    # If there is no checkpoint, the run was stopped before its first step. Rank 0 decides for all,
    # because saving is a collective operation.
    if not trainer.strategy.broadcast(last_path.exists()):
        trainer.save_checkpoint(last_path)
    best_path = Path(best.best_model_path) if best.best_model_path else last_path
    if config.model.lora_modules and trainer.is_global_zero:
        save_adapter(*load_run(best_path), run_dir / "adapter.pt", data.splits)
    logger.info("Best checkpoint: {}", best_path)
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
    """Create Lightning's trainer.

    Raises:
        ConfigError: this machine does not support the accelerator, devices, strategy or precision.
    """
    t = config.trainer
    strategy: str | Strategy = "auto"
    if ddp:
        # Which parameters get gradients depends on the kinds of prompts in the batch. With zero
        # gradients, AdamW would decay the others, unlike training on one device. Buffers are
        # constant, so do not broadcast them before each step.
        strategy = DDPStrategy(find_unused_parameters=True, broadcast_buffers=False)
    try:
        return Trainer(
            **{key: getattr(t, key) for key in LIGHTNING_KEYS},
            accelerator=resolve_accelerator(t.accelerator),
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
            f"here: {error}",
            key="trainer.accelerator",
            value=t.accelerator,
            hint="use devices that this machine has, for example --accelerator cpu",
        ) from error


class WholeCheckpoints(TorchCheckpointIO):
    """Write checkpoints atomically, so that a killed run leaves either the old or the new file.

    Lightning writes to the system's temporary directory; if that is on another file system, the
    file is copied, which is not atomic.

    Args:
        max_copies: maximum number of earlier versions of ``last.ckpt`` to keep.
    """

    def __init__(self, max_copies: int = 0) -> None:
        super().__init__()
        self.max_copies = max_copies

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write_checkpoint(checkpoint, Path(path))
        if self.max_copies and Path(path).name == "last.ckpt":
            keep_copy(Path(path), checkpoint["global_step"], self.max_copies)

    def remove_checkpoint(self, path: Any) -> None:
        """Keep the file: ``best.ckpt`` and ``last.ckpt`` are overwritten in place.

        Lightning calls this method with paths from a resumed checkpoint, and such a file may belong
        to another run.
        """


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Suppress Lightning's advertisements and advice on settings that the user cannot change."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                "does not have many workers",
                "number of training batches",
                "your dataloader is not resumable",  # the data module resumes within an epoch
                "exists and is not empty",  # the run directory has train.log and config.yaml
                "LeafSpec",
                "sync_dist=True",  # all ranks log the same validation metrics
            ):
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        log.setLevel(level)
