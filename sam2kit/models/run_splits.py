"""Read from a checkpoint which videos it was trained on, validated on and tested on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.data.build import open_sets
from sam2kit.data.splits import Splits, describe, read_splits
from sam2kit.models.checkpoint_io import kept_copies, read_checkpoint
from sam2kit.models.checkpoints import CONFIG_KEY, SPLITS_KEY, find_checkpoint, source_config
from sam2kit.utils.errors import CheckpointError, SAM2KitError


def checkpoint_splits(source: str | Path) -> Splits | None:
    """Read the splits that a run stored in its checkpoint.

    Earlier versions of sam2kit did not store them. For their runs, the held-out videos are drawn
    with the seed of the run, as those versions did, the training videos are those of
    ``config.yaml`` beside the checkpoint, and a warning is logged.

    Args:
        source: a run directory or a file of a run. Names are not downloaded.

    Returns:
        The splits; None if the file contains weights without a run, or does not exist.

    Raises:
        CheckpointError: the stored splits are damaged.
    """
    path = Path(source).expanduser()
    if not path.exists() or path.suffix == ".safetensors":
        return None
    try:
        path = find_checkpoint(path)
        content = read_checkpoint(path, mmap=True) if path.suffix != ".safetensors" else {}
    except CheckpointError:
        return None  # loading the weights reports it, with the key
    if SPLITS_KEY in content:
        splits = Splits.from_dict(content[SPLITS_KEY], path, CheckpointError)
    elif CONFIG_KEY in content:
        splits = _recreated(path)
    else:
        return None
    is_last = path.name == "last.ckpt" or path in kept_copies(path.parent)
    return replace(splits, is_selected=not is_last)


def _recreated(path: Path) -> Splits:
    """Recreate the splits of a run that did not store them."""
    config, _ = source_config(path)
    if config.dataset.type == "synthetic":
        return Splits()
    splits = Splits(seed=config.seed)
    assumed = f"{path} does not record which videos it was trained on"
    if config.holds_out_validation:
        assumed += f"; drawing the held-out videos with its seed {config.seed}, as its version did"
    try:
        splits = replace(run_splits(config, splits), seed=config.seed)
    except SAM2KitError as error:
        logger.warning(
            "{}. Its training videos are unknown, so scoring them cannot be rejected: {}",
            *(assumed, error),
        )
        return splits
    logger.warning(
        "{}. Assuming that it was trained on the {} videos that its configuration lists now",
        *(assumed, len(splits.train)),
    )
    return splits


def run_splits(config: Config, earlier: Splits) -> Splits:
    """Return the splits of a run with this configuration.

    Args:
        config: the configuration.
        earlier: splits whose videos keep their part.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.data.build_datasets`.
    """
    sets = open_sets(config, earlier)
    test = () if sets.test is None else tuple(describe(sets.test))
    return Splits(tuple(describe(sets.train)), tuple(describe(sets.validation)), test)


def earlier_splits(config: Config) -> Splits | None:
    """Return the splits that a training run with this configuration continues.

    A resumed run uses its own splits. Otherwise videos keep the part that ``valdataset.splits``
    assigns or, if that is not set, the part that they have in the run of ``model.checkpoint``.

    Raises:
        CheckpointError, DataError: stored splits are damaged or missing.
    """
    if config.trainer.resume_from is not None:
        return checkpoint_splits(config.trainer.resume_from)
    start = config.model.checkpoint and checkpoint_splits(config.model.checkpoint)
    splits = start.continued() if start else None
    if config.valdataset.splits is None:
        return splits
    assigned = read_splits(config.valdataset.splits)
    return replace(assigned, trained_before=splits.trained_before if splits else ())
