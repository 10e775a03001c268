"""Load and save weights: files in the official format, runs of sam2kit, and models on the Hub.

Pickled code is never executed (``weights_only=True``), and loading is all or nothing: keys and
shapes are compared before the first tensor is copied. Only a part of the configuration in a
checkpoint is trusted; :mod:`sam2kit.config.stored` defines which.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from loguru import logger
from safetensors.torch import save_file
from torch import Tensor

from sam2kit.config.schema import RANDOM, Config, put
from sam2kit.config.stored import read_allowed, read_stored
from sam2kit.data.splits import Splits
from sam2kit.models import transformers_format
from sam2kit.models.checkpoint_io import read_checkpoint, write_checkpoint
from sam2kit.models.lora import add_lora, base_names, has_lora, is_lora, merged_state
from sam2kit.models.sam2 import (
    SAM2Model,
    build_sam2_model,
    describe_model,
    match_parameters,
    read_model_yaml,
    set_trainable,
)
from sam2kit.utils.errors import CheckpointError
from sam2kit.utils.text import label_text, visible_text

HUB_CHECKPOINTS = {
    "sam2.1_hiera_tiny": ("facebook/sam2.1-hiera-tiny", "t"),
    "sam2.1_hiera_small": ("facebook/sam2.1-hiera-small", "s"),
    "sam2.1_hiera_base_plus": ("facebook/sam2.1-hiera-base-plus", "b+"),
    "sam2.1_hiera_large": ("facebook/sam2.1-hiera-large", "l"),
    "sam2_hiera_tiny": ("facebook/sam2-hiera-tiny", "t"),
    "sam2_hiera_small": ("facebook/sam2-hiera-small", "s"),
    "sam2_hiera_base_plus": ("facebook/sam2-hiera-base-plus", "b+"),
    "sam2_hiera_large": ("facebook/sam2-hiera-large", "l"),
}
"""Maps a name to (repository on the Hugging Face Hub, model size)."""

NETWORK_SECONDS = 5  # maximum time to wait for the Hub before a download
_PRETRAINED = Path(__file__).parent.parent / "pretrained"
SHIPPED_CHECKPOINTS = {
    "nano": _PRETRAINED / "nano.safetensors",
    "nano-1": _PRETRAINED / "nano-1.safetensors",
}
"""Maps a name to a file in the package, which needs no network. ``nano-1`` is the previous version
of ``nano``; adapters and baselines of runs that started from it still need it."""

_IMAGE_SIZES = {"nano-1.safetensors": 128}  # of weights that were trained at a different size
NANO_KEY = "sam2kit_nano"
"""Key in a run's checkpoint: the version of ``nano`` at that time; 1 if it is missing."""
NANO_VERSION = 2

CONFIG_KEY = "sam2kit_config"
SPLITS_KEY = "sam2kit_splits"
ADAPTER_KEY = "adapter"
# A run's checkpoint contains the Lightning module, in which the model is the attribute "model".
_MODEL_PREFIX = "model."
# Keys under which training code stores a model's tensors; the first one is used.
_STATE_KEYS = ("model", "state_dict", "model_state_dict")
# A tensor that all SAM 2 weights have; text before its name is the prefix of a wrapper.
_LANDMARK = "image_encoder.trunk.patch_embed.proj.weight"
# The parameters that SAM 2.1 added to SAM 2.0; weights without any of them are from SAM 2.0.
_NEW_IN_2_1 = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
# (channels of the patch embedding, number of trunk blocks) -> model size.
_SIZE_OF_TRUNK = {(24, 7): "nano", (96, 12): "t", (96, 16): "s", (112, 24): "b+", (144, 48): "l"}


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
            (default): the configuration of ``checkpoint`` if ``size`` is None, otherwise the
            default configuration.
        load: whether to load the checkpoint, if one is set. Modules that match
            ``model.reset_modules`` keep their random initial values.
        size: ``nano``, ``t``, ``s``, ``b+`` or ``l``. This argument and the following ones override
            the configuration unless they are None.
        checkpoint: a file, a run directory or a name, as :func:`find_checkpoint` accepts it.
        image_size: height and width of the frames in pixels, a multiple of 32.
        trainable_modules: module names or globs; ``["*"]`` trains everything.
        seed: seed of the random weights, 0 or more.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        ConfigError: the size is unknown, the image size is not a multiple of 32, a module name
            matches nothing, or LoRA is requested and peft is not installed.
        CheckpointError: the checkpoint is missing, unsafe or made for another model.
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
    if load and config.model.checkpoint and config.model.checkpoint != RANDOM:
        # Loading requires all tensors, so load everything and then restore the reset modules.
        reset_names = match_parameters(model, config.model.reset_modules, "model.reset_modules")
        initial = {n: p.detach().clone() for n, p in model.named_parameters() if n in reset_names}
        load_weights(model, config.model.checkpoint)
        model.load_state_dict(initial, strict=False)
    set_trainable(model, config.model.trainable_modules)
    if config.model.lora_modules:
        add_lora(model, config.model, config.seed)
    return model


def load_weights(model: SAM2Model, source: str | Path) -> None:
    """Load the weights of a checkpoint into a model.

    A model with LoRA keeps its adapters if the checkpoint has none. If the checkpoint has LoRA and
    the model has none, or has it on other layers, LoRA is merged into the weights first.

    Args:
        model: changed in place.
        source: a file, a run directory or a name, as :func:`find_checkpoint` accepts it.

    Raises:
        CheckpointError: the file or name does not exist, is truncated, contains code or no weights,
            or its keys or shapes differ from the model's. In that case, the model is not changed.
    """
    path = find_checkpoint(source)
    _load_content(model, read_checkpoint(path), path, source)


def _load_content(
    model: SAM2Model, content: dict[str, Any], path: Path, source: str | Path
) -> None:
    """Load the weights in ``content``, which was read from the file ``path``."""
    state = {} if ADAPTER_KEY in content else _weights_in(content, path)
    current = model.state_dict()
    # An adapter file has no base weights, and LoRA on other layers has other keys: build the
    # run's own model and merge it, which gives plain weights in both cases.
    if ADAPTER_KEY in content or (any(map(is_lora, state)) and state.keys() != current.keys()):
        state = merged_state(_build_run(content, path, *_allowed(content, path)))
    if has_lora(model) and not any(map(is_lora, state)):
        state = base_names(model, state)
    _check_fit(current, state, source)
    _check_finite(state, source)
    model.load_state_dict(state)
    logger.info("loaded {} tensors from {}", len(state), source)


def _weights_in(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Get the model's tensors, with official names, from the content of a file."""
    if CONFIG_KEY in content:
        state = content.get("state_dict")
        if isinstance(state, dict):
            prefix = _MODEL_PREFIX
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    else:
        state = _plain_state(content, path)
    if not _is_tensors(state):
        raise CheckpointError(
            f"{path}: contains no weights in the official format ({{'model': tensors}}), of a "
            "sam2kit run or of transformers' Sam2VideoModel; its keys are "
            f"{', '.join(map(label_text, list(content)[:5]))}",
            hint="save them with torch.save({'model': model.state_dict()}, path)",
        )
    return state


def _plain_state(content: dict[str, Any], path: Path) -> Any:
    """Find the model's tensors in a file from outside sam2kit, and normalise their names.

    A ``state_dict`` may be the file itself or one of its entries. Its names may have the prefixes
    of ``DataParallel`` (``module.``), ``torch.compile`` (``_orig_mod.``) or of the module that
    contained the model, or be those of transformers.
    """
    states = {key: content[key] for key in _STATE_KEYS if _prefix_of(content.get(key)) is not None}
    if _prefix_of(content) is not None:
        states = {"": content, **states}
    if not states:
        # These are tensors of another model, which later checks report.
        return content.get("model")
    key, state = next(iter(states.items()))
    if len(states) > 1:
        logger.warning("{}: using the weights under {!r}, not {}", path, key, list(states)[1:])
    prefix = _prefix_of(state) or ""
    names = {name: name.replace("_orig_mod.", "") for name in state}
    tensors = {
        new[len(prefix) :]: state[old] for old, new in names.items() if new.startswith(prefix)
    }
    if len(tensors) < len(state):
        others = [old for old, new in names.items() if not new.startswith(prefix)]
        logger.warning(
            "{}: ignoring {} entries outside {!r} (first: {!r})",
            path,
            len(others),
            prefix,
            others[0],
        )
    if transformers_format.LANDMARK in tensors and _is_tensors(tensors):
        tensors = transformers_format.from_transformers(tensors, path)
    return _complete_2_0(tensors, path)


def _prefix_of(state: Any) -> str | None:
    """Find the prefix of the names of SAM 2's tensors; return None if there are no such tensors."""
    if not isinstance(state, dict):
        return None
    landmarks = "|".join(map(re.escape, (_LANDMARK, transformers_format.LANDMARK)))
    for name in state:
        match = re.fullmatch(rf"((?:.*\.)?)(?:{landmarks})", str(name).replace("_orig_mod.", ""))
        if match:
            return match[1]
    return None


def _complete_2_0(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Add the parameters that SAM 2.1 added to SAM 2.0, with the value 0.

    With 0, they have no effect: SAM 2.0 adds no embedding of absent objects to its memories, and
    uses a position of 0 for its object pointers. Otherwise the official YAML files agree.
    """
    needed = {"maskmem_tpos_enc", "no_mem_embed"}
    if _NEW_IN_2_1 & state.keys() or not needed <= state.keys() or not _is_tensors(state):
        return state
    memory, hidden = (state[name].shape[-1] for name in sorted(needed))
    shapes = {
        "no_obj_embed_spatial": (1, memory),
        "obj_ptr_tpos_proj.weight": (memory, hidden),
        "obj_ptr_tpos_proj.bias": (memory,),
    }
    logger.info("{}: weights of SAM 2.0; {} are set to 0, as if absent", path, ", ".join(shapes))
    return {**state, **{name: torch.zeros(shape) for name, shape in shapes.items()}}


def _is_tensors(state: Any) -> TypeGuard[dict[str, Tensor]]:
    """Check whether ``state`` is a non-empty dictionary of tensors."""
    return isinstance(state, dict) and bool(state) and all(map(torch.is_tensor, state.values()))


def _checkpoints_near(folder: Path) -> str:
    """Return a hint with the checkpoints and runs in, below or directly above a directory."""
    paths = sorted(folder.glob("*.ckpt"))
    patterns = ("../best.ckpt", "*/best.ckpt", "*/*/best.ckpt")
    paths += [file.parent for pattern in patterns for file in sorted(folder.glob(pattern))]
    names = [visible_text(os.path.normpath(path)) for path in paths[:3]]
    more = f" or one of {len(paths) - 3} others" if len(paths) > 3 else ""
    return f"did you mean {', '.join(names)}{more}?" if names else ""


def find_checkpoint(source: str | Path, key: str = "model.checkpoint") -> Path:
    """Find the file of a checkpoint, and download it if necessary.

    Args:
        source: one of: a file (official format, a ``state_dict``, the same tensors as
            ``.safetensors``, weights of transformers, a run's ``.ckpt`` or its ``adapter.pt``); a
            name in :data:`SHIPPED_CHECKPOINTS`; a run directory (its ``best.ckpt``); a directory
            that ``Sam2VideoModel.save_pretrained`` wrote; a name in :data:`HUB_CHECKPOINTS`, which
            is downloaded to the cache of the Hugging Face Hub.
        key: the configuration key or flag that error messages name.

    Returns:
        The path of an existing file.

    Raises:
        CheckpointError: ``source`` is none of these, or the download failed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if str(source) in SHIPPED_CHECKPOINTS:
        shipped = SHIPPED_CHECKPOINTS[str(source)]
        if not shipped.is_file():
            raise CheckpointError(
                f"this installation of sam2kit does not include {shipped.name}",
                key=key,
                value=str(source),
                hint="install a released version, or give the path of a checkpoint",
            )
        return shipped
    if path.is_dir():
        if (path / "best.ckpt").is_file():
            return path / "best.ckpt"
        if transformers_format.is_saved_model(path):
            return path / transformers_format.WEIGHTS_FILE
        raise CheckpointError(
            f"{path} is neither a run directory (it has no best.ckpt) nor a Sam2VideoModel that "
            f"transformers saved (it has no {transformers_format.WEIGHTS_FILE} and "
            f"{transformers_format.CONFIG_FILE})",
            key=key,
            value=str(source),
            hint=_checkpoints_near(path) or "give the path of a checkpoint file",
        )
    name = str(source).removesuffix(".pt")
    if name not in HUB_CHECKPOINTS:
        raise CheckpointError(
            key=key,
            value=str(source),
            expected="an existing file, a run directory or one of "
            f"{', '.join([*SHIPPED_CHECKPOINTS, *HUB_CHECKPOINTS])}",
            hint="check the spelling; relative paths start at the current directory",
        )
    from huggingface_hub import (
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )

    repository, _ = HUB_CHECKPOINTS[name]
    file = f"{name}.pt"
    if isinstance(cached := try_to_load_from_cache(repository, file), str):
        return Path(cached)
    try:
        # Without a network the download itself would retry for half a minute.
        get_hf_file_metadata(hf_hub_url(repository, file), timeout=NETWORK_SECONDS)
        return Path(hf_hub_download(repo_id=repository, filename=file))
    except Exception as error:  # the client raises OSError, HTTP errors and its own types
        raise CheckpointError(
            f"{name} could not be fetched from the Hub repository {repository}: {error}",
            key=key,
            value=str(source),
            hint=f"use {' or '.join(SHIPPED_CHECKPOINTS)}, which needs no download, or download "
            "the file elsewhere and give its path",
        ) from error


def save_weights(model: SAM2Model, path: Path) -> None:
    """Write weights in the official format, ``{"model": state_dict}``, with LoRA merged.

    Args:
        model: not changed.
        path: the file. If it ends in ``.safetensors``, only the tensors are written, in float16.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if path.suffix == ".safetensors":
        save_file({k: v.half().contiguous() for k, v in merged_state(model).items()}, path)
        return
    write_checkpoint({"model": merged_state(model)}, path)


def save_adapter(
    config: Config, model: SAM2Model, path: str | Path, splits: Splits | None = None
) -> None:
    """Write only the trained parameters (LoRA matrices and trained modules) and the configuration.

    The file is much smaller than a run's ``.ckpt``. :func:`load_run` applies it to the weights that
    the run started from, which must still be available.

    Args:
        config: the configuration of the run.
        model: the trained model.
        path: the file.
        splits: the videos of the run. If None (default), no splits are stored.
    """
    content: dict[str, Any] = {
        CONFIG_KEY: config_to_store(config),
        NANO_KEY: NANO_VERSION,
    }
    content[ADAPTER_KEY] = {
        n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad
    }
    if splits is not None:
        content[SPLITS_KEY] = splits.to_dict()
    write_checkpoint(content, Path(path))


def load_adapter(model: SAM2Model, path: str | Path) -> None:
    """Load a file of :func:`save_adapter` into a model of the same configuration.

    Args:
        model: built by :func:`create_sam2_model`, with the weights that the saved run started from.
        path: the file.

    Raises:
        CheckpointError: the file is unreadable, has no adapter, or an adapter for other modules or
            shapes. In that case, the model is not changed.
    """
    state = read_checkpoint(Path(path)).get(ADAPTER_KEY)
    if not _is_tensors(state):
        raise CheckpointError(
            f"{path}: contains no adapter",
            hint="use adapter.pt, which sam2kit train writes for runs with LoRA",
        )
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    _check_fit(trainable, state, path)
    _check_finite(state, path)
    model.load_state_dict(state, strict=False)


def read_run_config(path: str | Path) -> Config:
    """Read the complete configuration that is stored in a run's checkpoint.

    It is untrusted: compare with it, but use :func:`source_config` to build a model.

    Raises:
        CheckpointError: the file is unreadable or not a run of sam2kit, or its configuration is of
            an incompatible version.
    """
    return read_stored(_stored(read_checkpoint(Path(path), mmap=True), path), path)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose file has been read and whose model has not been built yet.

    Attributes:
        path: the file.
        content: the content of the file.
        config: the configuration of the model.
        ignored: the stored keys that were ignored, as
            :func:`sam2kit.config.stored.read_allowed` returns them.
    """

    path: Path
    content: dict[str, Any] = dataclasses.field(repr=False)
    config: Config
    ignored: list[str]

    def load(self) -> SAM2Model:
        """Build the model and load its weights.

        Raises:
            CheckpointError: as :func:`load_model`.
        """
        if CONFIG_KEY in self.content:
            return _build_run(self.content, self.path, self.config, self.ignored)
        model = create_sam2_model(self.config, load=False)
        _load_content(model, self.content, self.path, self.path)
        return model


def open_checkpoint(source: str | Path, key: str = "source", mmap: bool = False) -> Checkpoint:
    """Read the file of a checkpoint once, for its configuration and then for its model.

    Args:
        source: as for :func:`find_checkpoint`.
        key: the configuration key or flag that error messages name.
        mmap: as for :func:`~sam2kit.models.checkpoint_io.read_checkpoint`.

    Raises:
        CheckpointError: as :func:`load_model`.
    """
    path = find_checkpoint(source, key)
    content = read_checkpoint(path, mmap)
    if CONFIG_KEY in content:
        return Checkpoint(path, content, *_allowed(content, path))
    return Checkpoint(path, content, _config_of_weights(content, path), [])


def source_config(source: str | Path) -> tuple[Config, list[str]]:
    """Read the configuration that :func:`load_model` would return, without building the model.

    Returns:
        The configuration and the stored keys that were ignored, as
        :func:`sam2kit.config.stored.read_allowed` returns them.

    Raises:
        CheckpointError: as :func:`load_model`.
    """
    checkpoint = open_checkpoint(source, mmap=True)  # of the weights, only the shapes are needed
    return checkpoint.config, checkpoint.ignored


def _allowed(content: dict[str, Any], path: Path) -> tuple[Config, list[str]]:
    config, ignored = read_allowed(
        _stored(content, path), path, {*SHIPPED_CHECKPOINTS, *HUB_CHECKPOINTS, RANDOM}
    )
    if config.model.checkpoint == "nano" and content.get(NANO_KEY, 1) == 1:
        config.model.checkpoint = "nano-1"
        logger.info("{}: model.checkpoint=nano is now nano-1, with the same weights", path)
    return config, ignored


def _stored(content: dict[str, Any], path: str | Path) -> Any:
    if CONFIG_KEY not in content:
        raise CheckpointError(
            f"{path}: contains no sam2kit configuration, so it is not a run's checkpoint",
            hint="describe the model with --config and load this file with --model-checkpoint",
        )
    return content[CONFIG_KEY]


def load_run(path: str | Path) -> tuple[Config, SAM2Model]:
    """Build the model of a run from its checkpoint alone.

    For an ``adapter.pt``, the weights that the run started from are loaded first. They are found by
    their name, or by the path in ``config.yaml`` in the same directory.

    Returns:
        The configuration of the run, and the model with its weights.

    Raises:
        CheckpointError: as :func:`read_run_config`, :func:`load_weights` and :func:`load_adapter`.
    """
    path = Path(path)
    content = read_checkpoint(path)
    config, ignored = _allowed(content, path)
    return config, _build_run(content, path, config, ignored)


def _build_run(
    content: dict[str, Any], path: Path, config: Config, ignored: list[str]
) -> SAM2Model:
    """Build the model of a run whose file and configuration were read."""
    is_adapter = ADAPTER_KEY in content
    if is_adapter and "model.checkpoint" in ignored:
        raise CheckpointError(
            f"{path}: needs the initial weights of its run, but paths that are stored in a "
            "checkpoint are not trusted",
            key="model.checkpoint",
            hint="put the run's config.yaml beside it, with the path of the weights as "
            "model.checkpoint",
        )
    model = create_sam2_model(config, load=is_adapter)
    if is_adapter:
        load_adapter(model, path)
    else:
        _load_content(model, content, path, path)
    return model


def load_model(source: str | Path) -> tuple[Config, SAM2Model]:
    """Load the configuration and the model of a run directory, a checkpoint file or a name.

    If the checkpoint has no configuration, the default configuration of its model size is used,
    with the image size of that model's official YAML.

    Args:
        source: as for :func:`find_checkpoint`.

    Returns:
        The configuration, and the model with its weights.

    Raises:
        CheckpointError: as :func:`find_checkpoint`, :func:`load_run` and :func:`load_weights`.
    """
    checkpoint = open_checkpoint(source)
    return checkpoint.config, checkpoint.load()


def _config_of_weights(content: dict[str, Any], path: Path) -> Config:
    """Make a configuration for weights that were stored without one."""
    size = guess_size(_weights_in(content, path))
    if size is None:
        raise CheckpointError(
            f"{path}: the weights match no model size of sam2kit",
            hint="use weights of SAM 2 in one of the sizes nano, t, s, b+ and l",
        )
    config = Config()
    config.model.size, config.model.checkpoint = size, str(path)
    image_size = read_model_yaml(size).model.image_size
    config.dataset.image_size = _IMAGE_SIZES.get(path.name, image_size)
    if transformers_format.is_saved_model(path.parent) and path.suffix == ".safetensors":
        tree = describe_model(config)
        config.dataset.image_size = transformers_format.read_settings(path.parent, tree)
    return config


def config_to_store(config: Config) -> dict[str, Any]:
    """Convert a configuration to plain containers, which safe loading accepts."""
    return dataclasses.asdict(config)


def guess_size(state: Mapping[str, Tensor]) -> str | None:
    """Guess the model size of weights from the width and depth of the trunk.

    Returns:
        A size of ``model.size``, or None if no size matches.
    """
    patch = state.get("image_encoder.trunk.patch_embed.proj.weight")
    blocks = {k.split(".")[3] for k in state if k.startswith("image_encoder.trunk.blocks.")}
    return None if patch is None else _SIZE_OF_TRUNK.get((patch.shape[0], len(blocks)))


def _check_fit(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str | Path
) -> None:
    """Reject weights whose names or shapes differ from the expected ones."""
    differences = {
        "missing": expected.keys() - state.keys(),
        "unknown": state.keys() - expected.keys(),
        "of a different shape": {
            f"{k} is {tuple(state[k].shape)}, not {tuple(expected[k].shape)}"
            for k in expected.keys() & state.keys()
            if state[k].shape != expected[k].shape
        },
    }
    problems = [f"{len(x)} {kind} (first: {min(x)})" for kind, x in differences.items() if x]
    if problems:
        raise CheckpointError(
            f"{source}: does not fit the model: tensors {', '.join(problems)}",
            hint=_hint(expected, state),
        )


def _check_finite(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Reject weights with NaN or infinite values, which would make every mask empty."""
    names = [name for name, value in state.items() if not value.isfinite().all()]
    if names:
        raise CheckpointError(
            f"{source}: {len(names)} of {len(state)} tensors contain NaN or infinite values "
            f"(first: {names[0]})",
            hint="use an earlier checkpoint of that run, or download the file again",
        )


def _hint(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Guess where weights that do not fit come from, and suggest settings for them."""
    size, expected_size = guess_size(state), guess_size(expected)
    if expected_size is None:  # an adapter, which has no trunk
        return "set model.trainable_modules and model.lora_* as in the run that wrote it"
    if size and size != expected_size:
        return f"it seems to be of size {size}: set model.size={size}"
    if size and "maskmem_tpos_enc" not in state:
        return (
            "these weights have no memory modules: save a Sam2VideoModel or a SAM2Base, not a "
            "model for images"
        )
    return f"use SAM 2 weights of size {expected_size}"
