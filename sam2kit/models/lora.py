"""Add LoRA to linear layers with peft, and merge it into the weights.

LoRA trains a product of two small matrices in addition to a frozen weight: a layer ``W x + b``
becomes ``W x + b + (alpha / rank) B A x``, where A has ``rank`` rows and B has ``rank`` columns (Hu
et al., 2021, https://arxiv.org/abs/2106.09685). B starts at zero, so the model is unchanged at
first, and A gets its first gradient in the second step.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sam2kit.config.schema import ModelConfig
from sam2kit.models.sam2 import match_parameters
from sam2kit.utils.errors import ConfigError


def add_lora(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Add LoRA in place to the linear layers that match ``config.lora_modules``.

    The weights of these layers are frozen. All other parameters remain trainable or frozen as
    before. Initial values depend only on ``seed``; the global random state is restored.

    Args:
        model: a model whose trainable parameters are already set.
        config: ``lora_modules``, ``lora_rank``, ``lora_alpha`` and ``lora_dropout`` are read.
        seed: seed of the matrices A.

    Raises:
        ConfigError: peft is not installed, or an entry matches no linear layer.
    """
    layers = _linear_layers(model, config.lora_modules)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"peft is not installed ({error})",
            key="model.lora_modules",
            value=config.lora_modules,
            hint="install it with: pip install 'sam2kit[lora]'",
        ) from error
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=config.lora_dropout,
        target_modules=layers,
    )
    # peft freezes all parameters that it did not add, so restore those that were trainable.
    trainable = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    wrapped = {id(p) for n, p in model.named_parameters() if ".base_layer." in n}
    for parameter in trainable:
        parameter.requires_grad_(id(parameter) not in wrapped)


def _linear_layers(model: nn.Module, patterns: list[str]) -> list[str]:
    """List the names of all linear layers that match a pattern; every pattern must match one."""
    weights = {
        f"{name}.weight": name for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    chosen: set[str] = set()
    for pattern in patterns:
        matches = weights.keys() & match_parameters(model, [pattern], "model.lora_modules")
        if not matches:
            raise ConfigError(
                f"{pattern!r} contains no linear layer, and LoRA applies to linear layers only",
                key="model.lora_modules",
                value=pattern,
                hint="name a linear layer or a module with some, such as image_encoder.trunk",
            )
        chosen |= {weights[name] for name in matches}
    return sorted(chosen)


def is_lora(parameter: str) -> bool:
    """Check whether a parameter name is the name of a LoRA matrix."""
    return ".lora_" in parameter


def is_lora_a(parameter: str) -> bool:
    """Check whether a parameter name is the name of a LoRA matrix A, which starts random."""
    return ".lora_A." in parameter


def has_lora(model: nn.Module) -> bool:
    """Check whether any layer of a model has LoRA."""
    return any(is_lora(name) for name, _ in model.named_parameters())


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's weights on the CPU with LoRA merged, under upstream's names.

    The model is not changed.
    """
    if has_lora(model):
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = copy.deepcopy(model).cpu()
        for name, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge(safe_merge=True)
                model.set_submodule(name, layer.get_base_layer())
    return {k: v.detach().cpu() for k, v in model.state_dict().items()}


def base_names(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights without LoRA to a state dictionary for a model with LoRA.

    Args:
        model: a model with LoRA, whose adapters are included in the result with their values.
        state: weights under upstream's names.

    Returns:
        ``state`` under the names of ``model``, and the adapters.
    """
    current = model.state_dict()
    adapters = {k: v for k, v in current.items() if is_lora(k)}
    wrapped = {k.replace(".base_layer.", "."): k for k in current}
    return {**adapters, **{wrapped.get(k, k): v for k, v in state.items()}}
