"""Reading and writing weights: the official format, a run's checkpoint, or a name on the Hub.

Nothing pickled is ever executed (``weights_only=True``), and nothing is loaded halfway: keys and
shapes are compared before the first tensor is copied.
Of the configuration in a checkpoint :mod:`sam2kit.config.stored` takes what it may decide.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor

from sam2kit.config.schema import Config, put
from sam2kit.config.stored import read_allowed, read_stored
from sam2kit.models.checkpoint_io import read_checkpoint, write_checkpoint
from sam2kit.models.lora import add_lora, base_names, has_lora, is_lora, merged_state
from sam2kit.models.sam2 import (
    SAM2Model,
    build_sam2_model,
    match_parameters,
    read_model_yaml,
    set_trainable,
)
from sam2kit.utils.errors import CheckpointError

HUB_CHECKPOINTS = {
    "sam2.1_hiera_tiny": ("facebook/sam2.1-hiera-tiny", "t"),
    "sam2.1_hiera_small": ("facebook/sam2.1-hiera-small", "s"),
    "sam2.1_hiera_base_plus": ("facebook/sam2.1-hiera-base-plus", "b+"),
    "sam2.1_hiera_large": ("facebook/sam2.1-hiera-large", "l"),
}
"""Name -> (repository on the Hugging Face Hub, model size)."""

SHIPPED_CHECKPOINTS = {"nano": Path(__file__).parent.parent / "pretrained" / "nano.safetensors"}
"""Name -> file inside the package; these need no network."""

CONFIG_KEY = "sam2kit_config"
ADAPTER_KEY = "adapter"
_MODEL_PREFIX = "model."  # of the model inside the Lightning module
_NEW_IN_2_1 = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
_WIDTHS = {(24, 7): "nano", (96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}


def create_sam2_model(
    config: Config | None = None,
    load: bool = True,
    *,
    size: str | None = None,
    checkpoint: str | Path | None = None,
    image_size: int | None = None,
    trainable_modules: Sequence[str] | None = None,
    seed: int | None = None,
) -> SAM2Model:
    """Build a model, load its weights and set its trainable modules.

    Args:
        config: ``model``, ``dataset.image_size`` and ``seed`` are read; it is not changed. None
            (default): the default configuration, or that of ``checkpoint`` where no ``size`` is
            given.
        load: whether to read the checkpoint, if there is one. Modules that match
            ``model.reset_modules`` keep their random start values.
        size: ``nano``, ``t``, ``s``, ``b+`` or ``l``. This argument and the following ones replace
            the configuration's value unless they are None.
        checkpoint: a file, a run directory or a name, as :func:`find_checkpoint` accepts it.
        image_size: side of the square frames in pixels, a multiple of 32.
        trainable_modules: module names or globs; ``["*"]`` trains everything.
        seed: seed of the random weights, 0 or more.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        ConfigError: an unknown size, an image size that is not a multiple of 32, a module name that
            matches nothing, or LoRA without peft.
        CheckpointError: a checkpoint that is missing, unsafe or made for another model.
    """
    if config is None and size is None and checkpoint is not None:
        config = source_config(checkpoint)[0]
    config = copy.deepcopy(config) if config is not None else Config()
    arguments = {
        "model.size": size,
        "model.checkpoint": None if checkpoint is None else str(checkpoint),
        "dataset.image_size": image_size,
        "model.trainable_modules": None if trainable_modules is None else list(trainable_modules),
        "seed": seed,
    }
    for key, value in arguments.items():
        if value is not None:
            put(config, key, value)
    model = build_sam2_model(config)
    if load and config.model.checkpoint:
        kept = match_parameters(model, config.model.reset_modules, "model.reset_modules")
        fresh = {n: p.detach().clone() for n, p in model.named_parameters() if n in kept}
        load_weights(model, config.model.checkpoint)
        model.load_state_dict(fresh, strict=False)
    set_trainable(model, config.model.trainable_modules)
    if config.model.lora_modules:
        add_lora(model, config.model, config.seed)
    return model


def load_weights(model: SAM2Model, source: str | Path) -> None:
    """Load ``source`` into ``model``; see :func:`find_checkpoint` for what it may be.

    Into a model with LoRA, weights without it go where they belong and the adapters stay as they
    are; a run with LoRA into a model without it, or with other LoRA, is merged first.

    Raises:
        CheckpointError: no such file or name, a truncated or pickled file, no weights in it, or
            keys or shapes that differ from the model's. Nothing is loaded then.
    """
    path = find_checkpoint(source)
    _load_content(model, read_checkpoint(path), path, source)


def _load_content(
    model: SAM2Model, content: dict[str, Any], path: Path, source: str | Path
) -> None:
    """Load the weights in the file ``path``, whose content was read already."""
    state = {} if ADAPTER_KEY in content else _weights_in(content, path)
    own = model.state_dict()
    if ADAPTER_KEY in content or (any(map(is_lora, state)) and state.keys() != own.keys()):
        state = merged_state(_build_run(content, path)[1])
    if has_lora(model) and not any(map(is_lora, state)):
        state = base_names(model, state)
    _check_fit(own, state, source)
    model.load_state_dict(state)
    logger.info("loaded {} tensors from {}", len(state), source)


def _weights_in(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    is_run = CONFIG_KEY in content
    state = content.get("state_dict" if is_run else "model")
    if is_run and isinstance(state, dict):
        prefix = _MODEL_PREFIX
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not _is_tensors(state):
        raise CheckpointError(
            f"{path}: holds no weights: neither the official format ({{'model': tensors}}) nor a "
            f"run of sam2kit; its keys are {', '.join(map(str, list(content)[:5]))}"
        )
    return state


def _is_tensors(state: Any) -> TypeGuard[dict[str, Tensor]]:
    """Check that ``state`` is a dictionary of tensors, and not an empty one."""
    return isinstance(state, dict) and bool(state) and all(map(torch.is_tensor, state.values()))


def find_checkpoint(source: str | Path, key: str = "model.checkpoint") -> Path:
    """The file that ``source`` means.

    Args:
        source: a file (official format, the same tensors as ``.safetensors``, a run's ``.ckpt`` or
            its ``adapter.pt``), a name of :data:`SHIPPED_CHECKPOINTS`, a run's folder (its
            ``best.ckpt``), or a name of :data:`HUB_CHECKPOINTS`, fetched into the Hub's cache.
        key: what to blame in a message.

    Raises:
        CheckpointError: none of these, or the download failed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) in SHIPPED_CHECKPOINTS:
        shipped = SHIPPED_CHECKPOINTS[str(source)]
        if not shipped.is_file():
            raise CheckpointError(f"{key}: this copy of the kit comes without {shipped.name}")
        return shipped
    if path.is_dir():
        if (path / "best.ckpt").is_file():
            return path / "best.ckpt"
        raise CheckpointError(
            f"{key}: the folder {path} holds no best.ckpt, so it is not that of a run; name a file"
        )
    name = str(source).removesuffix(".pt")
    if name not in HUB_CHECKPOINTS:
        raise CheckpointError(
            f"{key}: {source} is neither a file nor one of "
            f"{', '.join([*SHIPPED_CHECKPOINTS, *HUB_CHECKPOINTS])}"
        )
    from huggingface_hub import hf_hub_download

    repository, _ = HUB_CHECKPOINTS[name]
    try:
        return Path(hf_hub_download(repo_id=repository, filename=f"{name}.pt"))
    except Exception as error:  # the Hub's client raises OSErrors, HTTP errors and its own
        raise CheckpointError(
            f"{key}: {name} could not be fetched from the Hub repository {repository}: "
            f"{error}. Fetch the file by hand and give its path"
        ) from error


def save_weights(model: SAM2Model, path: Path) -> None:
    """Write weights in the official format, ``{"model": state_dict}``, with LoRA merged in.

    A path that ends in ``.safetensors`` gets the tensors alone, as float16.
    """
    if path.suffix == ".safetensors":
        save_file({k: v.half().contiguous() for k, v in merged_state(model).items()}, path)
        return
    write_checkpoint({"model": merged_state(model)}, path)


def save_adapter(config: Config, model: SAM2Model, path: str | Path) -> None:
    """Write what was trained and nothing else: LoRA's matrices and the trained modules.

    With the configuration beside them, :func:`load_run` puts them back on the weights that the run
    started from, which must still be there. Much smaller than a run's ``.ckpt``.
    """
    trained = {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad}
    write_checkpoint({ADAPTER_KEY: trained, CONFIG_KEY: config_to_store(config)}, Path(path))


def load_adapter(model: SAM2Model, path: str | Path) -> None:
    """Put what :func:`save_adapter` wrote into a model of the same configuration.

    Args:
        model: as :func:`create_sam2_model` makes it, with the start weights of the saved one.
        path: the file.

    Raises:
        CheckpointError: unreadable, no adapter, or one of other modules or shapes. Nothing is
            loaded then.
    """
    state = read_checkpoint(Path(path)).get(ADAPTER_KEY)
    if not _is_tensors(state):
        raise CheckpointError(f"{path}: holds no adapter; sam2kit train writes one as adapter.pt")
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    _check_fit(own, state, path)
    model.load_state_dict(state, strict=False)


def read_run_config(path: str | Path) -> Config:
    """The whole configuration stored inside a run's checkpoint, to compare with, not to obey.

    Raises:
        CheckpointError: unreadable, not a run of sam2kit, or a configuration of another version.
    """
    return read_stored(_stored(read_checkpoint(Path(path)), path), path)


def source_config(source: str | Path) -> tuple[Config, list[str]]:
    """The configuration of :func:`load_model`, without its model.

    Returns:
        as :func:`sam2kit.config.stored.read_allowed`.

    Raises:
        CheckpointError: see :func:`load_model`.
    """
    path = find_checkpoint(source, key="SOURCE")
    content = read_checkpoint(path)
    if CONFIG_KEY in content:
        return _allowed(content, path)
    return _config_of_weights(content, path), []


def _allowed(content: dict[str, Any], path: Path) -> tuple[Config, list[str]]:
    return read_allowed(_stored(content, path), path, {*SHIPPED_CHECKPOINTS, *HUB_CHECKPOINTS})


def _stored(content: dict[str, Any], path: str | Path) -> Any:
    if CONFIG_KEY not in content:
        raise CheckpointError(
            f"{path}: holds no sam2kit configuration, so it is not a run's checkpoint; give the "
            "model with --config and load this file with --model-checkpoint"
        )
    return content[CONFIG_KEY]


def load_run(path: str | Path) -> tuple[Config, SAM2Model]:
    """Build the model of a run's checkpoint, which needs nothing else.

    Of an ``adapter.pt`` the weights that the run started from are loaded first: by their name, or
    from where ``config.yaml`` beside it says.

    Raises:
        CheckpointError: see :func:`read_run_config`, :func:`load_weights`, :func:`load_adapter`.
    """
    return _build_run(read_checkpoint(Path(path)), Path(path))


def _build_run(content: dict[str, Any], path: Path) -> tuple[Config, SAM2Model]:
    (config, ignored), is_adapter = _allowed(content, path), ADAPTER_KEY in content
    if is_adapter and "model.checkpoint" in ignored:
        raise CheckpointError(
            f"{path}: needs the weights that its run started from, and paths stored in a "
            "checkpoint are not used; put the run's config.yaml beside it, in which "
            "model.checkpoint says where they are"
        )
    model = create_sam2_model(config, load=is_adapter)
    if is_adapter:
        load_adapter(model, path)
    else:
        _load_content(model, content, path, path)
    return config, model


def load_model(source: str | Path) -> tuple[Config, SAM2Model]:
    """Load the configuration and the model of a run directory, a checkpoint file or a name.

    Weights without a configuration get the configuration of their size, at its own image size.

    Args:
        source: as for :func:`find_checkpoint`.

    Returns:
        the configuration, and the model with its weights.

    Raises:
        CheckpointError: see :func:`find_checkpoint`, :func:`load_run` and :func:`load_weights`.
    """
    path = find_checkpoint(source, key="SOURCE")
    content = read_checkpoint(path)
    if CONFIG_KEY in content:
        return _build_run(content, path)
    config = _config_of_weights(content, path)
    return config, create_sam2_model(config)


def _config_of_weights(content: dict[str, Any], path: Path) -> Config:
    size = guess_size(_weights_in(content, path))
    if size is None:
        raise CheckpointError(f"{path}: its weights are of no size that the kit knows")
    config = Config()
    config.model.size, config.model.checkpoint = size, str(path)
    config.dataset.image_size = read_model_yaml(size).model.image_size
    return config


def config_to_store(config: Config) -> dict[str, Any]:
    """``config`` as plain containers, for a checkpoint that safe loading accepts."""
    return dataclasses.asdict(config)


def guess_size(state: Mapping[str, Tensor]) -> str | None:
    """The model size that weights seem to be of, by the trunk's width and depth."""
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {k.split(".")[3] for k in state if k.startswith("image_encoder.trunk.blocks.")}
    return None if patch is None else _WIDTHS.get((patch.shape[0], len(blocks)))


def _check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path) -> None:
    differences = {
        "missing": own.keys() - state.keys(),
        "unknown": state.keys() - own.keys(),
        "of another shape": {
            f"{k} is {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
            for k in own.keys() & state.keys()
            if state[k].shape != own[k].shape
        },
    }
    faults = [f"{len(x)} {what} (first: {min(x)})" for what, x in differences.items() if x]
    if faults:
        raise CheckpointError(
            f"{source}: does not fit the model: tensors {', '.join(faults)}. {_hint(own, state)}"
        )


def _hint(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """A sentence that says what weights that do not fit seem to be."""
    size, wanted = guess_size(state), guess_size(own)
    if wanted is None:
        return "They were trained under other model.trainable_modules or model.lora_* keys"
    names = {size: name for name, (_, size) in HUB_CHECKPOINTS.items()}
    if size and not _NEW_IN_2_1 & state.keys():
        return (
            f"They seem to be SAM 2.0's, of size {size}, and the kit builds SAM 2.1: take "
            f"model.checkpoint={names.get(size, names['t'])} with model.size={size}"
        )
    if size and size != wanted:
        return f"It seems to be of size {size}: set model.size={size}"
    return f"It is not of size {wanted} as SAM 2.1 has it"
