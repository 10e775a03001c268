"""The optimizer's parameter groups and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sam2kit.config import OptimizerConfig, SchedulerConfig
from sam2kit.errors import ConfigError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The trained parameters in two groups: with weight decay, and without.

    Biases, norm weights and single tokens (all of fewer than two dimensions that count) are not
    decayed. Every trained parameter stands in exactly one group.

    Raises:
        ConfigError: nothing is trained.
    """
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError("model.trainable_modules: leaves nothing to train")
    plain = {n for n, p in trained.items() if n.endswith("bias") or p.squeeze().ndim < 2}
    groups = [
        {"params": [p for n, p in trained.items() if n not in plain], "weight_decay": weight_decay},
        {"params": [p for n, p in trained.items() if n in plain], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """AdamW over :func:`parameter_groups`."""
    first, second = config.betas
    return AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, betas=(first, second))


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
