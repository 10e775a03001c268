"""Reading and writing weights: the official format, a run's checkpoint, or a name on the Hub.

Nothing pickled is ever executed (``weights_only=True``), and nothing is loaded halfway: keys and
shapes are compared before the first tensor is copied.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from sam2kit.config import Config
from sam2kit.errors import CheckpointError
from sam2kit.model import SAM2Model, build_sam2_model, match_parameters, set_trainable

HUB_CHECKPOINTS = {
    "sam2.1_hiera_tiny": ("facebook/sam2.1-hiera-tiny", "t"),
    "sam2.1_hiera_small": ("facebook/sam2.1-hiera-small", "s"),
    "sam2.1_hiera_base_plus": ("facebook/sam2.1-hiera-base-plus", "b+"),
    "sam2.1_hiera_large": ("facebook/sam2.1-hiera-large", "l"),
}
"""Name -> (repository on the Hugging Face Hub, model size)."""

CONFIG_KEY = "sam2kit_config"
_MODEL_PREFIX = "model."  # of the model inside the Lightning module
_WIDTHS = {(24, 7): "nano", (96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}


def create_sam2_model(config: Config, load: bool = True) -> SAM2Model:
    """The model a configuration describes, with its weights and its trainable modules set.

    Args:
        config: ``model``, ``dataset.image_size`` and ``seed`` are read.
        load: read ``model.checkpoint`` (when there is one). Modules that match
            ``model.reset_modules`` keep their random start values.

    Raises:
        ConfigError: an unknown size, or a module name that matches nothing.
        CheckpointError: a checkpoint that is missing, unsafe or made for another model.
    """
    model = build_sam2_model(config)
    if load and config.model.checkpoint:
        kept = match_parameters(model, config.model.reset_modules, "model.reset_modules")
        fresh = {n: p.detach().clone() for n, p in model.named_parameters() if n in kept}
        load_weights(model, config.model.checkpoint)
        model.load_state_dict(fresh, strict=False)
    set_trainable(model, config.model.trainable_modules)
    return model


def load_weights(model: SAM2Model, source: str) -> None:
    """Load ``source`` into ``model``: a path in the official format, a run's ``.ckpt``, or a name.

    Raises:
        CheckpointError: see :func:`read_weights`; or keys or shapes that differ from the model's.
    """
    state = read_weights(source)
    _check_fit(model.state_dict(), state, source)
    model.load_state_dict(state)
    logger.info("loaded {} tensors from {}", len(state), source)


def read_weights(source: str) -> dict[str, Tensor]:
    """The model's tensors in ``source``, under upstream's names.

    Raises:
        CheckpointError: no such file or name, a truncated or pickled file, or no weights in it.
    """
    path = find_checkpoint(source)
    content = _read(path)
    if CONFIG_KEY in content:
        state = content.get("state_dict", {})
        state = {
            k.removeprefix(_MODEL_PREFIX): v
            for k, v in state.items()
            if k.startswith(_MODEL_PREFIX)
        }
    else:
        state = content.get("model", {})
    if not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: holds no weights: neither the official format ({{'model': tensors}}) nor a "
            f"run of sam2kit; its keys are {', '.join(map(str, list(content)[:5]))}"
        )
    return state


def find_checkpoint(source: str) -> Path:
    """The file that a path or a name of :data:`HUB_CHECKPOINTS` means, downloaded if need be.

    Raises:
        CheckpointError: neither a file nor a known name, or the download failed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    name = source.removesuffix(".pt")
    if name not in HUB_CHECKPOINTS:
        raise CheckpointError(
            f"model.checkpoint: {source} is neither a file nor one of {', '.join(HUB_CHECKPOINTS)}"
        )
    from huggingface_hub import hf_hub_download

    repository, _ = HUB_CHECKPOINTS[name]
    try:
        return Path(hf_hub_download(repo_id=repository, filename=f"{name}.pt"))
    except Exception as error:  # the Hub's client raises OSErrors, HTTP errors and its own
        raise CheckpointError(
            f"model.checkpoint: {name} could not be fetched from the Hub repository {repository}: "
            f"{error}. Fetch the file by hand and give its path"
        ) from error


def save_weights(model: SAM2Model, path: Path) -> None:
    """Write weights in the official format, ``{"model": state_dict}``."""
    torch.save({"model": {k: v.detach().cpu() for k, v in model.state_dict().items()}}, path)


def read_run_config(path: str | Path) -> Config:
    """The configuration stored inside a run's checkpoint.

    Raises:
        CheckpointError: unreadable, not a run of sam2kit, or a configuration of another version.
    """
    content = _read(Path(path))
    if CONFIG_KEY not in content:
        raise CheckpointError(
            f"{path}: holds no sam2kit configuration, so it is not a run's checkpoint; give the "
            "model with --config and load this file with --model-checkpoint"
        )
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), content[CONFIG_KEY])
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise CheckpointError(
            f"{path}: its configuration does not fit this version: {error}"
        ) from error


def load_run(path: str | Path) -> tuple[Config, SAM2Model]:
    """The configuration and the model of a run's checkpoint, which need nothing else.

    Raises:
        CheckpointError: see :func:`read_run_config` and :func:`load_weights`.
    """
    config = read_run_config(path)
    model = create_sam2_model(config, load=False)
    load_weights(model, str(path))
    return config, model


def config_to_store(config: Config) -> dict[str, Any]:
    """``config`` as plain containers, for a checkpoint that safe loading accepts."""
    return dataclasses.asdict(config)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated zips, pickles of code and foreign formats all differ
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read safely as a checkpoint ({reason}). The file is truncated, no "
            "checkpoint, or holds code; fetch it anew or have it saved as plain tensors"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary")
    return content


def guess_size(state: dict[str, Tensor]) -> str | None:
    """The model size that weights seem to be of, by the trunk's width and depth."""
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {k.split(".")[3] for k in state if k.startswith("image_encoder.trunk.blocks.")}
    return None if patch is None else _WIDTHS.get((patch.shape[0], len(blocks)))


def _check_fit(own: dict[str, Tensor], state: dict[str, Tensor], source: str) -> None:
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own.keys() & state.keys()
        if state[k].shape != own[k].shape
    ]
    if not (missing or foreign or shapes):
        return
    size, wanted = guess_size(state), guess_size(own)
    hint = (
        f"It seems to be of size {size}: set model.size={size}"
        if size and size != wanted
        else f"It is not of size {wanted} as upstream's SAM 2.1 has it (SAM 2.0 has other keys)"
    )
    faults = [
        f"{len(rows)} {what} (first: {rows[0]})"
        for what, rows in (
            ("missing", missing),
            ("unknown", foreign),
            ("of another shape", sorted(shapes)),
        )
        if rows
    ]
    raise CheckpointError(f"{source}: does not fit the model: tensors {', '.join(faults)}. {hint}")
