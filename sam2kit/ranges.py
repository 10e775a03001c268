"""What a key's value may be by itself: one of some choices, or a number within a range.

Source of the ranges: what the code that reads a key can work with. No torch here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields

from sam2kit.config import (
    ACCELERATORS,
    AUDITS,
    CONVENTIONS,
    FEATURE_CACHES,
    FEATURE_DTYPES,
    LOG_LEVELS,
    LOGGERS,
    LOSSES,
    OPTIMIZERS,
    PRECISIONS,
    PROTOCOLS,
    RECIPES,
    SCHEDULERS,
    SIZES,
    STRATEGIES,
    Config,
    get,
)
from sam2kit.data_config import AugmentationConfig


def choice_problems(config: Config) -> Iterator[str]:
    """A sentence for each key that is none of its choices."""
    choices = {
        "model.size": SIZES,
        "optimizer.name": OPTIMIZERS,
        "scheduler.name": SCHEDULERS,
        "loss.type": LOSSES,
        "recipe": RECIPES,
        "trainer.accelerator": ACCELERATORS,
        "trainer.precision": PRECISIONS,
        "trainer.strategy": STRATEGIES,
        "trainer.logger": LOGGERS,
        "trainer.audit": AUDITS,
        "log_level": LOG_LEVELS,
        "features.cache": FEATURE_CACHES,
        "features.dtype": FEATURE_DTYPES,
        "evaluation.protocol": PROTOCOLS,
        "evaluation.convention": CONVENTIONS,
    }
    for key, known in choices.items():
        value = get(config, key)
        if value not in known and (key != "evaluation.convention" or value is not None):
            yield f"{key} is {value!r}; choose from {', '.join(known)}"


# The range of every number outside the two data sets; null passes where the schema allows it.
_RANGES = {
    "model.detach_memory_every": (1, math.inf),
    "model.objects_together": (1, math.inf),
    "model.attention_dropout": (0, 1),
    "model.memory_dropout": (0, 1),
    "loss.focal": (0, math.inf),
    "loss.bce": (0, math.inf),
    "loss.dice": (0, math.inf),
    "loss.iou": (0, math.inf),
    "loss.temporal": (0, math.inf),
    "loss.iou_head": (0, math.inf),
    "loss.object_score": (0, math.inf),
    "loss.bce_positive_weight": (1, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "scheduler.warmup_steps": (0, math.inf),
    "scheduler.min_lr_ratio": (0, 1),
    "trainer.max_epochs": (1, math.inf),
    "trainer.accumulate_grad_batches": (1, math.inf),
    "trainer.num_nodes": (1, math.inf),
    "trainer.log_every_n_steps": (1, math.inf),
    "trainer.check_val_every_n_epoch": (1, math.inf),
    "trainer.limit_train_batches": (1, math.inf),
    "trainer.limit_val_batches": (1, math.inf),
    "trainer.early_stopping_patience": (1, math.inf),
    "trainer.checkpoint_minutes": (0, math.inf),
    "trainer.checkpoint_steps": (1, math.inf),
    "trainer.keep_checkpoints": (0, math.inf),
    "features.budget_gb": (0, math.inf),
    "model.lora_rank": (1, math.inf),
    "evaluation.clicks": (1, math.inf),
    "evaluation.reprompt_every": (1, math.inf),
    "evaluation.noise": (0, 1),
    "evaluation.calibration_videos": (0, math.inf),
    "seed": (0, 2**32 - 1),
    **{f"augmentation.{f.name}": (0, 1) for f in fields(AugmentationConfig)},
    "augmentation.degrees": (0, 180),
    "augmentation.shear": (0, 60),
    "augmentation.crop": (0, 0.9),
    "augmentation.scale": (0, 0.9),
}


def number_problems(config: Config) -> Iterator[str]:
    """A sentence for each number outside its range, the two data sets' left out."""
    for key, (low, high) in _RANGES.items():
        value = get(config, key)
        if value is not None and not (low <= value <= high and math.isfinite(value)):
            above = "" if high == math.inf else f" and at most {high}"
            yield f"{key} is {value}; give a number of at least {low}{above}"
    if not 0 <= config.model.lora_dropout < 1:
        yield f"model.lora_dropout is {config.model.lora_dropout}; give a share from 0 to below 1"
    for key in ("optimizer.lr", "trainer.gradient_clip_val", "model.lora_alpha"):
        value = get(config, key)
        if value is not None and not (value > 0 and math.isfinite(value)):
            yield f"{key} is {value}; give a number above 0"
    if config.trainer.max_steps != -1 and config.trainer.max_steps < 1:
        yield f"trainer.max_steps is {config.trainer.max_steps}; give at least 1, or -1: no limit"
    decay, max_time = config.trainer.ema_decay, config.trainer.max_time
    if decay is not None and not 0 < decay < 1:
        yield f"trainer.ema_decay is {decay}; give a share between 0 and 1, or null"
    if max_time is not None and not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", max_time):
        yield f"trainer.max_time is {max_time!r}; give DD:HH:MM:SS, such as 00:00:20:00, or null"
    rate = config.model.drop_path_rate
    if not 0 <= rate < 1:
        yield f"model.drop_path_rate is {rate}; give a probability from 0 to below 1"
    if not 0 < config.valdataset.fraction < 1:
        yield f"valdataset.fraction is {config.valdataset.fraction}; give a share between 0 and 1"
