"""Resume an interrupted run exactly where it stopped, even within an epoch.

Clips, prompts and dropout are functions of (seed, epoch or step, index or rank). No random state is
stored, so a checkpoint only has to record the position of the run. Lightning stores it in the
counters of its loops, whose values depend on the hook that saves the checkpoint. Some of these
values resume at the wrong batch, so :func:`rewind` normalizes them to an epoch and a number of
completed batches.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from lightning.pytorch import Trainer
from loguru import logger

from sam2kit.config.loading import same_value
from sam2kit.config.schema import RANDOM, Config, get, options
from sam2kit.config.stored import read_stored
from sam2kit.data.fingerprint import GENERATED
from sam2kit.models.checkpoint_io import fault_in, kept_copies, read_checkpoint
from sam2kit.models.checkpoints import CONFIG_KEY, read_run_config
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError
from sam2kit.utils.metrics_table import read_rows
from sam2kit.utils.readers import damage_is

# Keys that must not change within a run: keys of the model, the clip order and the optimizer. The
# optimizer's state contains its settings, so new settings would be ignored silently.
_FIXED_SECTIONS = ("model", "dataset", "augmentation", "optimizer")
_FIXED = (
    "seed",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.ema_decay",
    "trainer.average_with_start",
    "features.dtype",
)
# Keys of these sections that may change. Videos are compared by a digest of their content, so a
# dataset may be moved, and so may a run directory with corrections.
_MAY_CHANGE = (
    "dataset.corrections",
    "dataset.data_path",
    "dataset.masks_path",
    "dataset.annotation_file",
    "dataset.num_workers",
    "dataset.loader_timeout",
    "model.compile",
)
DATA_KEY = "SAM2LightningDataModule"  # Lightning stores the data module's state under its name


class TrainingComplete(ConfigError):
    """Raised if the run to resume is already complete."""


def latest_valid_checkpoint(run_dir: Path) -> Path | None:
    """Return the newest valid checkpoint to resume a run from.

    Candidates are ``last.ckpt``, then ``step-N.ckpt`` (newest first), then ``best.ckpt``. Each file
    is verified with the checksums that torch stores in it, and a warning is logged for each damaged
    file.

    Returns:
        the path, or None if the directory contains no checkpoint.

    Raises:
        CheckpointError: all checkpoints are damaged.
    """
    candidates = [run_dir / "last.ckpt", *kept_copies(run_dir), run_dir / "best.ckpt"]
    faults = []
    for path in candidates:
        if not path.is_file():
            continue
        if (fault := fault_in(path)) is None:
            return path
        faults.append(f"{path} is damaged ({fault})")
        logger.warning("{}; trying an older checkpoint", faults[-1])
    if faults:
        # Do not start a new run silently: it would overwrite files that might be recoverable.
        raise CheckpointError(
            f"No valid checkpoint found in this directory: {'; '.join(faults)}",
            hint="start a new run in another directory, or delete these files to start over in "
            "this one",
        )
    return None


def position(trainer: Trainer) -> tuple[int, int]:
    """Return the current epoch, from 0, and the number of its batches that the weights include.

    Batches with pending accumulated gradients are not counted; a resumed run repeats them.
    """
    loop = trainer.fit_loop
    epoch = loop.epoch_progress.current.ready - 1
    batches = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    if batches < trainer.num_training_batches:  # the last batch of an epoch always triggers a step
        batches -= batches % trainer.accumulate_grad_batches
    return epoch, batches


def rewind(loops: dict[str, Any], trainer: Trainer) -> None:
    """Set the counters of Lightning's loops to :func:`position`, in place.

    Args:
        loops: ``checkpoint["loops"]``, saved from any hook.
        trainer: the trainer that saves the checkpoint.
    """
    epoch, batches = position(trainer)
    fit = loops["fit_loop"]
    for counts in (fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    progress = fit["epoch_loop.batch_progress"]
    # Batches that Lightning counts as processed but that the weights do not include yet.
    pending = progress["current"]["processed"] - batches
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, counts["processed"] - pending))
    progress["is_last_batch"] = batches == trainer.num_training_batches
    # The loggers' step number. When a run resumes at the start or end of an epoch where a
    # validation is due, Lightning skips the validation but counts a step for it, so subtract one
    # here.
    every = trainer.check_val_every_n_epoch or 1
    skips_validation = batches in (0, trainer.num_training_batches) and (epoch + 1) % every == 0
    steps = trainer.global_step - int(skips_validation)
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = steps


def check_resume(config: Config, data: dict[str, Any]) -> int:
    """Check that the run of ``trainer.resume_from`` can be resumed with this configuration.

    Args:
        config: the configuration to resume with.
        data: the state of the data module of ``config``: the digests ``videos`` and ``digest``, and
            the world size ``devices``.

    Returns:
        the number of optimizer steps already done.

    Raises:
        CheckpointError: the file is unreadable or not a checkpoint of a training run.
        ConfigError: keys that must not change have changed.
        TrainingComplete: the run is already complete.
        DataError: the training or validation videos have changed.
    """
    path = config.trainer.resume_from
    assert path is not None
    try:
        stored = read_run_config(path)
    except CheckpointError as error:
        raise CheckpointError(
            str(error),
            key="trainer.resume_from",
            value=path,
            hint="pass the last.ckpt of a training run",
        ) from error
    with damage_is(CheckpointError, path, "resume from another checkpoint of the run"):
        return _check_position(config, data, path, stored)


def _check_position(config: Config, data: dict[str, Any], path: str, stored: Config) -> int:
    """Check that videos, keys and position of a checkpoint match the run that resumes it."""
    # mmap: read the position without loading gigabytes of weights and optimizer state.
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.get(DATA_KEY)
    new_run = f"start a new run from its weights with --model-checkpoint {quote(str(path))}"
    if state is None:
        raise CheckpointError(
            f"Cannot resume {path}: it does not contain the position of its run",
            key="trainer.resume_from",
            value=path,
            hint=new_run,
        )
    _check_keys(config, stored, path)
    if state["videos"] != data["videos"]:
        raise DataError(
            f"Cannot resume {path}: the run has {state['videos']}, but dataset and "
            f"valdataset.fraction now select {data['videos']}",
            key="trainer.resume_from",
            value=path,
            hint=f"use the same videos, or {new_run}",
        )
    # Checkpoints of earlier versions do not contain this digest, store one of other frames as
    # ``content``, or compare no video of a mixture with generated ones.
    if state.get("digest", GENERATED) not in (GENERATED, data["digest"]):
        raise DataError(
            f"Cannot resume {path}: frames or masks of the training videos have changed",
            key="trainer.resume_from",
            value=path,
            hint=f"use the same frames and masks, or {new_run}",
        )
    devices = state.get("devices", 1)
    if devices != data["devices"]:
        raise ConfigError(
            f"Cannot resume {path}: its world size is {devices}, but trainer.devices and "
            f"trainer.num_nodes now give {data['devices']}",
            key="trainer.devices",
            value=config.trainer.devices,
            hint=f"use the same number of devices, or {new_run}",
        )
    _check_unfinished(config, content, state["epoch"], path)
    return content["global_step"]


def resumed_model(config: Config) -> Config:
    """Return the configuration with the initial weights and model size of the resumed run.

    Each of both is replaced only if the user did not set it: if ``model.checkpoint`` is null, or
    ``model.size`` is the default. A run that starts from ``nano`` stores its size, which the
    command that started it need not contain. Random initial weights do not determine a size.
    """
    path = config.trainer.resume_from
    if path is None or config.model.checkpoint == RANDOM:
        return config
    try:
        stored = read_run_config(path).model
    except CheckpointError:
        return config  # check_resume reports the error with its key
    size = stored.size if config.model.size == Config().model.size else config.model.size
    checkpoint = stored.checkpoint if config.model.checkpoint is None else config.model.checkpoint
    return replace(config, model=replace(config.model, checkpoint=checkpoint, size=size))


def resolve_monitor(config: Config) -> Config:
    """Replace ``trainer.monitor=auto`` with a metric; a resumed run keeps its metric.

    Returns:
        a changed copy, or ``config`` itself if the metric is set.
    """
    t = config.trainer
    if t.monitor != "auto":
        return config
    is_image = config.validation_dataset().video_clip_length == 1  # nothing is tracked
    monitor = "val_loss" if is_image or config.model.checkpoint == RANDOM else "val_iou"
    if t.resume_from is not None:
        stored = read_run_config(t.resume_from).trainer.monitor
        monitor = "val_loss" if stored == "auto" else stored  # versions without other metrics
    return replace(config, trainer=replace(t, monitor=monitor))


def earlier_best(config: Config, run_dir: Path) -> float | None:
    """Return the value of a changed ``trainer.monitor`` at the step of ``best.ckpt``.

    A resumed run stores the best value of its metric, but not those of other metrics. They are read
    from ``metrics.csv``. What happens to ``best.ckpt`` is logged.

    Returns:
        The value; None if the metric has not changed, there is no ``best.ckpt`` or the value is
        unknown.
    """
    path, monitor = run_dir / "best.ckpt", config.trainer.monitor
    if not path.is_file():
        return None
    try:
        content = read_checkpoint(path, mmap=True)
        earlier = read_stored(content.get(CONFIG_KEY), path).trainer.monitor
    except CheckpointError as error:
        logger.warning("{}; the next validation replaces it", error)
        return None
    earlier = "val_loss" if earlier == "auto" else earlier  # versions without other metrics
    if earlier == monitor:
        return None
    last_step = content["global_step"] - 1  # loggers count steps from 0
    rows = [row for row in read_rows(run_dir / "metrics.csv") if row.get(monitor)]
    values = [float(row[monitor]) for row in rows if float(row["step"]) == last_step]
    changed = f"trainer.monitor={monitor} was {earlier} so far"
    if not values or not math.isfinite(values[-1]):
        logger.warning(
            "{}, and {} of best.ckpt is unknown, so the next validation replaces it. To keep it, "
            "stop and copy it first",
            *(changed, monitor),
        )
        return None
    logger.info(
        "{}; best.ckpt ({} {:.3f}) is kept until {} is better",
        *(changed, monitor, values[-1], monitor),
    )
    return values[-1]


def _check_unfinished(config: Config, content: dict[str, Any], epoch: int, path: str) -> None:
    """Check that the run has not reached one of the limits in ``config``.

    Raises:
        TrainingComplete: the run has reached the limit that the error names.
    """
    epoch_over = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    epochs, steps = epoch + int(epoch_over), content["global_step"]
    limits = {"max_epochs": config.trainer.max_epochs, "max_steps": config.trainer.max_steps}
    for (key, limit), done in zip(limits.items(), (epochs, steps), strict=True):
        if 0 < limit <= done:
            raise TrainingComplete(
                f"the run of {path} is complete (epochs: {epochs}, steps: {steps})",
                key=f"trainer.{key}",
                value=limit,
                hint=f"set trainer.{key} above {limit} to continue",
            )
    patience = config.trainer.early_stopping_patience
    for name, state in content["callbacks"].items():
        if patience and name.startswith("EarlyStopping") and state["wait_count"] >= patience:
            raise TrainingComplete(
                f"the run of {path} was stopped early (epochs: {epochs})",
                key="trainer.early_stopping_patience",
                value=patience,
                hint=f"set trainer.early_stopping_patience above {patience} to continue",
            )


def _check_keys(config: Config, stored: Config, path: str) -> None:
    """Check that no key that must not change differs from the stored configuration.

    Raises:
        ConfigError: keys have changed; the error lists all of them.
    """
    fixed = [k for k in options() if k.split(".")[0] in _FIXED_SECTIONS or k in _FIXED]
    changed = [
        f"{key} is {get(config, key)!r} and was {get(stored, key)!r}"
        for key in fixed
        if key not in _MAY_CHANGE and not same_value(get(config, key), get(stored, key))
    ]
    if changed:
        raise ConfigError(
            f"Cannot resume {path}: model, data or optimizer settings have changed: "
            f"{'; '.join(changed)}",
            key="trainer.resume_from",
            value=path,
            hint="use the run's configuration with "
            f"--config {quote(str(Path(path).parent / 'config.yaml'))}, "
            f"or start a new run from its weights with --model-checkpoint {quote(str(path))}",
        )
