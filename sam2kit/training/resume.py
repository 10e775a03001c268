"""Resume an interrupted run, also within an epoch, exactly where it stopped.

Clips, prompts and dropout are functions of (seed, epoch or step, index or rank), so no random state
is stored: a checkpoint only says how far the run was. Lightning stores that in the counters of its
loops, in a form that depends on the hook that saved, and not every form resumes at the right batch.
:func:`rewind` brings all of them to one form: in this epoch, after this many batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from loguru import logger

from sam2kit.config.schema import Config, get, options
from sam2kit.models.checkpoint_io import fault_in, kept_copies
from sam2kit.models.checkpoints import read_run_config
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError

# What may not change within a run: the model, the order of the clips, and the optimizer, whose
# state holds its settings too, so that others would be ignored.
_FIXED_SECTIONS = ("model", "dataset", "augmentation", "optimizer")
_FIXED = (
    "seed",
    "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches",
    "trainer.ema_decay",
    "features.dtype",
)
# The videos themselves are compared, so that a data set may have moved.
_FREE = (
    "dataset.data_path",
    "dataset.annotation_file",
    "dataset.num_workers",
    "model.compile",
)


DATA_KEY = "SAM2LightningDataModule"  # Lightning stores the data module's state under its name


class TrainingOver(ConfigError):
    """There is nothing left to train of the run that is to go on."""


def whole_checkpoint(run_dir: Path) -> Path | None:
    """``last.ckpt`` of a run, or, with a warning, the newest ``step-N.ckpt``, or ``best.ckpt``.

    Every byte is compared with the checksums that torch keeps in the file.

    Returns:
        None where there is neither.

    Raises:
        CheckpointError: there are some, and all of them are broken.
    """
    candidates = [run_dir / "last.ckpt", *kept_copies(run_dir), run_dir / "best.ckpt"]
    faults = []
    for path in candidates:
        if not path.is_file():
            continue
        if (fault := fault_in(path)) is None:
            return path
        faults.append(f"{path} is broken ({fault})")
        logger.warning("{}; looking for an older checkpoint", faults[-1])
    if faults:
        raise CheckpointError(
            f"{'; '.join(faults)}. Nothing in this folder can be gone on from: begin a new run in "
            "another one, or delete these files to begin it here anew"
        )
    return None


def position(trainer: Trainer) -> tuple[int, int]:
    """The epoch that a fit is in, from 0, and the batches of it that have gone into the weights.

    Batches whose gradients were still being accumulated do not count: they are trained on again.
    """
    loop = trainer.fit_loop
    epoch = loop.epoch_progress.current.ready - 1
    batches = loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]
    if batches < trainer.num_training_batches:  # the last batch of an epoch always makes a step
        batches -= batches % trainer.accumulate_grad_batches
    return epoch, batches


def rewind(loops: dict[str, Any], trainer: Trainer) -> None:
    """Bring the counters of Lightning's loops to :func:`position`, in place.

    Args:
        loops: ``checkpoint["loops"]``, from whichever hook.
    """
    epoch, batches = position(trainer)
    fit = loops["fit_loop"]
    for counts in (fit["epoch_progress"]["total"], fit["epoch_progress"]["current"]):
        counts.update(ready=epoch + 1, started=epoch + 1, processed=epoch, completed=epoch)
    progress = fit["epoch_loop.batch_progress"]
    undone = progress["current"]["processed"] - batches
    for counts in (progress["total"], progress["current"]):
        counts.update(dict.fromkeys(counts, counts["processed"] - undone))
    progress["is_last_batch"] = batches == trainer.num_training_batches
    # The step number of the loggers. On resuming at either end of an epoch, Lightning passes over a
    # validation that would be due there, and adds a step.
    every = trainer.check_val_every_n_epoch or 1
    passed_over = batches in (0, trainer.num_training_batches) and (epoch + 1) % every == 0
    steps = trainer.global_step - int(passed_over)
    fit["epoch_loop.state_dict"]["_batches_that_stepped"] = steps


def check_resume(config: Config, data: dict[str, Any]) -> int:
    """Refuse to go on from ``trainer.resume_from`` with what does not fit to it.

    Args:
        data: the state of the data module that ``config`` gives: ``videos``, a digest of the
            videos, and the number of ``devices``.

    Returns:
        the optimizer steps that the run has done.

    Raises:
        CheckpointError: unreadable, or not a run's checkpoint.
        ConfigError: keys that must not change have changed; :class:`TrainingOver`: the run is over.
        DataError: the videos to train on are others.
    """
    path = config.trainer.resume_from
    assert path is not None
    try:
        stored = read_run_config(path)
    except CheckpointError as error:
        raise CheckpointError(f"trainer.resume_from: {error}") from error
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state = content.get(DATA_KEY)
    new_run = f"start a new run from its weights with --model-checkpoint {path}"
    if state is None:
        raise CheckpointError(
            f"trainer.resume_from: {path} does not say how far its run was; {new_run}"
        )
    _check_keys(config, stored, path)
    if state["videos"] != data["videos"]:
        raise DataError(
            f"trainer.resume_from: {path} was trained on other videos ({state['videos']}) than "
            f"dataset and valdataset.fraction give now ({data['videos']}); give the same ones, or "
            f"{new_run}"
        )
    devices = state.get("devices", 1)
    if devices != data["devices"]:
        raise ConfigError(
            f"trainer.devices: the run of {path} shares its clips among {devices} devices, and "
            f"trainer.devices gives {data['devices']}; give the same number, or {new_run}"
        )
    _check_left(config, content, state["epoch"], path)
    return content["global_step"]


def _check_left(config: Config, content: dict[str, Any], epoch: int, path: str) -> None:
    """Refuse to go on with a run that has reached one of its ends.

    Raises:
        TrainingOver: names the key that ended it.
    """
    epoch_over = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    epochs, steps = epoch + int(epoch_over), content["global_step"]
    limits = {"max_epochs": config.trainer.max_epochs, "max_steps": config.trainer.max_steps}
    for (key, limit), done in zip(limits.items(), (epochs, steps), strict=True):
        if 0 < limit <= done:
            raise TrainingOver(
                f"trainer.resume_from: the run of {path} is over after {epochs} epochs and {steps} "
                f"steps, and trainer.{key} is {limit}; raise it to go on"
            )
    patience = config.trainer.early_stopping_patience
    for name, state in content["callbacks"].items():
        if patience and name.startswith("EarlyStopping") and state["wait_count"] >= patience:
            raise TrainingOver(
                f"trainer.resume_from: the run of {path} was stopped early after {epochs} epochs, "
                f"and trainer.early_stopping_patience is {patience}; raise it to go on"
            )


def _check_keys(config: Config, stored: Config, path: str) -> None:
    fixed = [k for k in options() if k.split(".")[0] in _FIXED_SECTIONS or k in _FIXED]
    changed = [
        f"{key} is {get(config, key)!r} and was {get(stored, key)!r}"
        for key in fixed
        if key not in _FREE and get(config, key) != get(stored, key)
    ]
    if changed:
        raise ConfigError(
            f"trainer.resume_from: the run of {path} cannot go on with another model, other clips "
            f"or another optimizer: {'; '.join(changed)}. Take over the run's own configuration "
            f"with --config {Path(path).parent / 'config.yaml'}, or start a new run from its "
            f"weights with --model-checkpoint {path}"
        )
