"""Build the optimizer, its parameter groups and the learning-rate schedule."""

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
    """Group the trainable parameters by learning rate and weight decay.

    Biases, norm weights and single tokens (parameters with fewer than two dimensions above size 1)
    are not decayed. Every trainable parameter is in exactly one group.

    Returns:
        parameter groups as for torch's optimizers, with ``params``, ``lr`` and ``weight_decay``.

    Raises:
        ConfigError: no parameter is trainable, or a pattern of ``module_lr`` or
            ``module_weight_decay`` matches no parameter of the model.
    """
    rates = _by_module(model, config.lr, config.module_lr, "optimizer.module_lr")
    decays = _by_module(
        model, config.weight_decay, config.module_weight_decay, "optimizer.module_weight_decay"
    )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # squeeze: embeddings of a single token have shapes such as [1, 1, C].
            plain = name.endswith("bias") or parameter.squeeze().ndim < 2
            rate = rates[name] * layer_scale(model, name, config.layer_decay)
            groups.setdefault((rate, 0.0 if plain else decays[name]), []).append(parameter)
    if not groups:
        raise ConfigError(
            "no parameter is trainable",
            key="model.trainable_modules",
            hint="list at least one module, such as memory_attention",
        )
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def layer_scale(model: nn.Module, name: str, decay: float) -> float:
    """Return the factor that layer decay applies to a parameter's learning rate.

    In a trunk of L blocks, the factor is ``decay ** (L + 1 - i)``, where i is 0 for the patch
    embedding and b + 1 for block b. It is 1 for the trunk's position embeddings and outside the
    trunk. Source: upstream's ``layer_decay_param_modifier`` as configured for fine-tuning on MOSE;
    the method is from BEiT (Bao et al. 2022, arXiv 2106.08254).

    Returns:
        the factor, in (0, 1].
    """
    if not name.startswith(TRUNK) or "pos_embed" in name:
        return 1.0
    trunk: Any = model.get_submodule(TRUNK)
    return decay ** (trunk.get_num_layers() + 1 - trunk.get_layer_id(name))


def _by_module(
    model: nn.Module, default: float, overrides: dict[str, float], key: str
) -> dict[str, float]:
    """Return the value of each parameter; the last matching pattern in ``overrides`` wins."""
    values = {name: default for name, _ in model.named_parameters()}
    for pattern, value in overrides.items():
        values |= dict.fromkeys(match_parameters(model, [pattern], key), value)
    return values


def build_optimizer(model: nn.Module, config: OptimizerConfig, fused: bool = False) -> Optimizer:
    """Build AdamW with the groups of :func:`parameter_groups`.

    Args:
        model: the model.
        config: the optimizer's settings.
        fused: update all parameters in one kernel. This is faster on a GPU, and results differ by
            rounding.

    Raises:
        ConfigError: as :func:`parameter_groups`.
    """
    first, second = config.betas
    groups = parameter_groups(model, config)
    return AdamW(groups, lr=config.lr, betas=(first, second), fused=fused or None)


def learning_rate_factor(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """Return a function from the optimizer step to a multiplier of the peak learning rate.

    The multiplier rises linearly from 1/warmup_steps to 1 during warm-up. Then it is constant or
    follows a half cosine from 1 to ``min_lr_ratio`` at ``total_steps``.

    Returns:
        a function of the step (counted from 0) with values from 0 to 1.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.name == "constant":
            return 1.0
        span = max(total_steps - config.warmup_steps, 1)
        progress = min((step - config.warmup_steps) / span, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine

    return factor


def build_scheduler(optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> LambdaLR:
    """Build a scheduler from :func:`learning_rate_factor`; step it once per optimizer step."""
    return LambdaLR(optimizer, learning_rate_factor(config, total_steps))
