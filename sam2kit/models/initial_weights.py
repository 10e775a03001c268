"""Choose the initial weights of a training run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.models.checkpoints import (
    HUB_CHECKPOINTS,
    SHIPPED_CHECKPOINTS,
    find_checkpoint,
    source_config,
)
from sam2kit.utils.errors import CheckpointError, ConfigError

# Sizes of the released files, shown before a download.
_MEGABYTES = {"t": 156, "s": 184, "b+": 324, "l": 898}


def resolve_initial_weights(config: Config) -> Config:
    """Replace ``model.checkpoint=null`` with the released weights of the model size.

    Weights that are not on this machine are downloaded after confirmation at a terminal. If
    ``model.checkpoint`` names a model, its size is set (:func:`resolve_size`).

    Args:
        config: the configuration of a training run that is not resumed.

    Returns:
        A changed copy, or the same object if nothing had to be chosen.

    Raises:
        ConfigError: the weights are not on this machine and cannot be downloaded, or there is no
            terminal for the confirmation. The message lists the choices.
    """
    config = resolve_size(config)
    if config.model.checkpoint is not None:
        _warn_of_image_size(config)
        return config
    size = config.model.size
    # SAM 2.1, which is listed before SAM 2.0.
    released = {hub_size: name for name, (_, hub_size) in reversed(HUB_CHECKPOINTS.items())}
    name = released.get(size, size)  # the shipped model is named like its size
    if name not in SHIPPED_CHECKPOINTS and not _is_downloaded(name):
        _download(name, _MEGABYTES[size])
    logger.info("model.checkpoint={}, the default of model.size={}", name, size)
    return replace(config, model=replace(config.model, checkpoint=name))


def resolve_size(config: Config) -> Config:
    """Set ``model.size`` to the size of the model, run or file in ``model.checkpoint``.

    Only the default size is replaced: a size that was set and does not fit the weights is an
    error when they are loaded.

    Returns:
        A changed copy, or the same object if the size fits or is unknown.
    """
    if config.model.size != Config().model.size or config.model.checkpoint is None:
        return config
    size = _size_of(config.model.checkpoint)
    if size in (None, config.model.size):
        return config
    logger.info("model.size={}, because model.checkpoint={}", size, config.model.checkpoint)
    return replace(config, model=replace(config.model, size=size))


def _size_of(checkpoint: str) -> str | None:
    """Return the size of a model by its name or its files; None if it is unknown."""
    if Path(checkpoint).expanduser().exists():
        try:
            return source_config(checkpoint)[0].model.size
        except CheckpointError:  # reported when the weights are loaded
            return None
    sizes = {name: size for name, (_, size) in HUB_CHECKPOINTS.items()}
    sizes |= {name: name.partition("-")[0] for name in SHIPPED_CHECKPOINTS}
    return sizes.get(checkpoint.removesuffix(".pt"))


def _warn_of_image_size(config: Config) -> None:
    """Warn if a run, or the shipped model, was trained at another image size."""
    checkpoint, size = str(config.model.checkpoint), config.dataset.image_size
    path = Path(checkpoint).expanduser()
    is_run = path.is_dir() or path.suffix == ".ckpt"
    if not (is_run or checkpoint in SHIPPED_CHECKPOINTS):
        return
    try:
        trained = source_config(checkpoint)[0].dataset.image_size
    except CheckpointError:  # reported when the weights are loaded
        return
    if trained != size:
        logger.warning(
            "{} was trained at {} pixels, and this run uses dataset.image_size={}; to keep the "
            "size add --image-size {}",
            *(checkpoint, trained, size, trained),
        )


def _is_downloaded(name: str) -> bool:
    repository, _ = HUB_CHECKPOINTS[name]
    return isinstance(try_to_load_from_cache(repository, f"{name}.pt"), str)


def _download(name: str, megabytes: int) -> None:
    """Download released weights after confirmation at the terminal.

    Raises:
        ConfigError: there is no terminal, the user declines, or the download fails.
    """
    problem = f"training starts from {name} by default, which is not on this machine"
    if sys.stdin.isatty() and sys.stderr.isatty():
        print(
            f"{name} ({megabytes} MB) is not on this machine. Download it? [Y/n] ",
            end="",
            file=sys.stderr,
            flush=True,
        )
        try:
            if sys.stdin.readline().strip().lower() in ("", "y", "yes"):
                find_checkpoint(name)
                return
        except CheckpointError as error:
            problem = str(error)
    raise ConfigError(
        problem,
        key="model.checkpoint",
        hint=f"use --model-checkpoint {name} to download it ({megabytes} MB), --model-checkpoint "
        "nano for the small model that needs no network, or --model-checkpoint random for random "
        "weights",
    )
