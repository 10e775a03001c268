"""The optimizer's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2kit.config.schema import OptimizerConfig, SchedulerConfig
from sam2kit.models.sam2 import match_parameters
from sam2kit.utils.errors import ConfigError

TRUNK = "image_encoder.trunk"


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """The trained parameters, grouped by learning rate and weight decay.

    Biases, norm weights and single tokens (all of fewer than two dimensions that count) are not
    decayed. Every trained parameter stands in exactly one group.

    Raises:
        ConfigError: nothing is trained, or a pattern of ``module_lr`` or ``module_weight_decay``
            that means no parameter of the model.
    """
    rates = _by_module(model, config.lr, config.module_lr, "optimizer.module_lr")
    decays = _by_module(
        model, config.weight_decay, config.module_weight_decay, "optimizer.module_weight_decay"
    )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = name.endswith("bias") or parameter.squeeze().ndim < 2
            rate = rates[name] * layer_scale(model, name, config.layer_decay)
            groups.setdefault((rate, 0.0 if plain else decays[name]), []).append(parameter)
    if not groups:
        raise ConfigError("model.trainable_modules: leaves nothing to train")
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def layer_scale(model: nn.Module, name: str, decay: float) -> float:
    """The share of its learning rate that layer decay leaves a parameter, above 0 to 1.

    In a trunk of L blocks it is ``decay ** (L + 1 - i)``: i is 0 for the patch embedding and b + 1
    for block b. Outside the trunk, and for its position embeddings, it is 1. Source: upstream's
    ``layer_decay_param_modifier`` as its fine-tuning on MOSE sets it up; the idea is from BEiT.
    """
    if not name.startswith(TRUNK) or "pos_embed" in name:
        return 1.0
    trunk: Any = model.get_submodule(TRUNK)
    return decay ** (trunk.get_num_layers() + 1 - trunk.get_layer_id(name))


def _by_module(model: nn.Module, value: float, own: dict[str, float], key: str) -> dict[str, float]:
    """Parameter name -> its value; the last pattern of ``own`` that means it counts."""
    values = {name: value for name, _ in model.named_parameters()}
    for pattern, special in own.items():
        values |= dict.fromkeys(match_parameters(model, [pattern], key), special)
    return values


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """AdamW over :func:`parameter_groups`."""
    first, second = config.betas
    return AdamW(parameter_groups(model, config), lr=config.lr, betas=(first, second))


def learning_rate_factor(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """Step (from 0) -> share of the peak learning rate, 0 to 1.

    Linear from 1/warmup_steps to 1 over the warm-up; then constant, or a half cosine from 1 to
    ``min_lr_ratio`` at ``total_steps``.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.name == "constant":
            return 1.0
        span = max(total_steps - config.warmup_steps, 1)
        done = min((step - config.warmup_steps) / span, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * done))
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine

    return factor


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> LambdaLR:
    """:func:`learning_rate_factor` as torch's scheduler, to be stepped once an optimizer step."""
    return LambdaLR(optimizer, learning_rate_factor(config, total_steps))
