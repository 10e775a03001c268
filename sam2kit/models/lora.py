"""LoRA on chosen linear layers, through peft: a small matrix is trained beside a frozen large one.

A layer ``W x + b`` becomes ``W x + b + (alpha / rank) B A x`` with A of ``rank`` rows and B of
``rank`` columns (Hu et al., 2021, https://arxiv.org/abs/2106.09685). B starts at zero, so the model
starts unchanged, and A gets its first gradient in the second step.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sam2kit.config.schema import ModelConfig
from sam2kit.models.sam2 import match_parameters
from sam2kit.utils.errors import ConfigError


def add_lora(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Put LoRA on the linear layers that ``config.lora_modules`` means, in place.

    Their own weights are frozen; everything else that was trained stays so. Start values are a
    function of ``seed``; global random state is left as it was.

    Args:
        model: with its trainable parameters already chosen.
        config: ``lora_modules``, ``lora_rank``, ``lora_alpha`` and ``lora_dropout`` are read.
        seed: of the matrices A.

    Raises:
        ConfigError: peft is not installed, or an entry means no linear layer.
    """
    layers = _linear_layers(model, config.lora_modules)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            f"model.lora_modules: peft is not installed ({error}); install it with: "
            "pip install 'sam2kit[lora]'"
        ) from error
    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=config.lora_dropout,
        target_modules=layers,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)  # freezes all that it did not add
    wrapped = {id(p) for n, p in model.named_parameters() if ".base_layer." in n}
    for parameter in trained:
        parameter.requires_grad_(id(parameter) not in wrapped)


def _linear_layers(model: nn.Module, patterns: list[str]) -> list[str]:
    """The names, in the model, of the linear layers that each pattern means one at least of."""
    weights = {
        f"{name}.weight": name for name, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    chosen: set[str] = set()
    for pattern in patterns:
        hits = weights.keys() & match_parameters(model, [pattern], "model.lora_modules")
        if not hits:
            raise ConfigError(
                f"model.lora_modules: {pattern!r} holds no linear layer, and LoRA is for those; "
                "name one, or a module that holds some, such as image_encoder.trunk"
            )
        chosen |= {weights[name] for name in hits}
    return sorted(chosen)


def is_lora(parameter: str) -> bool:
    """Whether a parameter of that name is one of LoRA's matrices."""
    return ".lora_" in parameter


def has_lora(model: nn.Module) -> bool:
    """Whether any layer carries LoRA."""
    return any(is_lora(name) for name, _ in model.named_parameters())


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The weights under upstream's names and on the CPU, LoRA added into its layers' own weights.

    The model is left as it is.
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
    """``state``, of a model without LoRA, under the names and with the adapters of ``model``.

    The adapters keep ``model``'s own values.
    """
    own = model.state_dict()
    adapters = {k: v for k, v in own.items() if is_lora(k)}
    wrapped = {k.replace(".base_layer.", "."): k for k in own}
    return {**adapters, **{wrapped.get(k, k): v for k, v in state.items()}}
