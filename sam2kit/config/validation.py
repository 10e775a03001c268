"""Reject configurations that cannot work: values, combinations of keys, and missing files.

Types are checked by :mod:`sam2kit.config.loading` against the dataclasses. This module does not
import torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields
from glob import glob
from pathlib import Path
from typing import Any

from sam2kit.config.schema import (
    ACCELERATORS,
    AUDITS,
    CONVENTIONS,
    DATASET_TYPES,
    FEATURE_CACHES,
    FEATURE_DTYPES,
    IDENTITIES,
    LOG_LEVELS,
    LOGGERS,
    LOSSES,
    NEGATIVE_KINDS,
    NOISE_KINDS,
    OPTIMIZERS,
    PRECISIONS,
    PROMPT_TYPES,
    PROTOCOLS,
    RECIPES,
    SAV_MASKLETS,
    SCHEDULERS,
    SHORT_VIDEOS,
    SIZES,
    SOURCE_KEYS,
    STRATEGIES,
    AugmentationConfig,
    Config,
    DatasetConfig,
    EvaluationConfig,
    OptimizerConfig,
    get,
)
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.paths import missing
from sam2kit.utils.text import nearest

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")


def check(config: Config) -> None:
    """Refuse values and combinations that cannot work, before anything is loaded.

    Raises:
        ConfigError: names every such key with its value and what to do about it.
    """
    if problems := list(_problems(config)):
        raise ConfigError("\n".join(problems))


def check_paths(config: Config) -> None:
    """Refuse a configuration whose data or checkpoint are not there.

    Raises:
        ConfigError: names the key, the path and what lies near it.
    """
    validation = config.validation_dataset()
    for section, dataset in (("dataset", config.dataset), ("valdataset", validation)):
        check_data(section, dataset)
    resume_from, checkpoint = config.trainer.resume_from, config.model.checkpoint
    if resume_from is not None and not Path(resume_from).is_file():
        is_folder = Path(resume_from).is_dir()
        hint = (
            f"{resume_from} is a folder; name its last.ckpt" if is_folder else missing(resume_from)
        )
        raise ConfigError(f"trainer.resume_from: {hint}")
    if checkpoint and looks_like_path(checkpoint) and not Path(checkpoint).exists():
        raise ConfigError(f"model.checkpoint: {missing(checkpoint)}")


def check_data(section: str, dataset: DatasetConfig) -> None:
    """Refuse data that are not named or not there.

    Raises:
        ConfigError: names the key, the path and what lies near it.
    """
    for n, part in enumerate(dataset.parts()):
        where = f"{section}.mixture[{n}]" if dataset.type == "mixture" else section
        if part.type not in ("synthetic", "coco") and part.data_path is None:
            raise ConfigError(
                f"{where}.data_path is not set, and type {part.type} reads videos from it; "
                f"give --data-path DIR, or {where}.type=synthetic to train on generated clips"
            )
        for key in (
            "data_path",
            "masks_path",
            "annotation_file",
            "corrections",
            "synthetic_photos",
        ):
            path = getattr(part, key)
            several = key == "annotation_file" and path is not None and glob(path)
            if path is not None and not Path(path).exists() and not several:
                raise ConfigError(f"{where}.{key}: {missing(path)}")


def check_new(run_dir: Path) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ConfigError: tells how to go on with that run.
    """
    if (run_dir / "last.ckpt").exists():
        raise ConfigError(
            f"--run-dir: {run_dir} holds a run; name another folder, or go on with that run: "
            f"--config {run_dir / 'config.yaml'} --run-dir {run_dir} --resume auto"
        )


def looks_like_path(checkpoint: str) -> bool:
    """Whether ``model.checkpoint`` is a file rather than the name of a released model."""
    return "/" in checkpoint or "\\" in checkpoint or checkpoint.endswith(CHECKPOINT_SUFFIXES)


def _problems(config: Config) -> Iterator[str]:
    yield from choice_problems(config)
    yield from number_problems(config)
    dataset = list(_dataset_problems("dataset", config.dataset))
    yield from dataset
    for problem in _dataset_problems("valdataset", config.validation_dataset()):
        if problem.replace("valdataset.", "dataset.") not in dataset:  # taken over, said above
            yield problem
    if not config.model.trainable_modules and not config.model.lora_modules:
        yield "model.trainable_modules is [], so nothing would be trained; name a module or '*'"
    terms = {
        f.name: getattr(config.loss, f.name)
        for f in fields(config.loss)
        if f.name not in ("type", "bce_positive_weight")
    }
    if not any(terms.values()):
        yield f"loss: all of {', '.join(terms)} are 0; give one term a weight above 0"
    if config.loss.type == "steps" and config.loss.temporal > 0:
        yield "loss.temporal is above 0, but loss.type=steps has no such term; set it to 0"
    yield from _optimizer_problems(config.optimizer)
    yield from _evaluation_problems(config.evaluation)
    betas = config.optimizer.betas
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"optimizer.betas is {betas}; give two numbers from 0 to below 1"
    if not _devices_known(config.trainer.devices):
        yield (
            f"trainer.devices is {config.trainer.devices!r}; give a number of devices, "
            "a list such as 0,1, or auto"
        )
    if config.trainer.precision == "16-mixed" and config.trainer.accelerator == "cpu":
        yield "trainer.precision is 16-mixed, which trainer.accelerator=cpu lacks; use bf16-mixed"
    if config.use_wandb and config.trainer.logger == "swanlab":
        yield (
            "use_wandb is true and trainer.logger is swanlab; drop one of them "
            "(--no-wandb, or trainer.logger=tensorboard)"
        )


def _optimizer_problems(optimizer: OptimizerConfig) -> Iterator[str]:
    for pattern, lr in optimizer.module_lr.items():
        if not (lr > 0 and math.isfinite(lr)):
            yield f"optimizer.module_lr: {pattern} is {lr}; give a number above 0"
    for pattern, decay in optimizer.module_weight_decay.items():
        if not (decay >= 0 and math.isfinite(decay)):
            yield f"optimizer.module_weight_decay: {pattern} is {decay}; give at least 0"
    if not 0 < optimizer.layer_decay <= 1:
        yield f"optimizer.layer_decay is {optimizer.layer_decay}; give above 0, and at most 1"


def _evaluation_problems(evaluation: EvaluationConfig) -> Iterator[str]:
    kinds, levels = evaluation.noise_kinds, evaluation.noise_levels
    if not set(kinds) <= set(NOISE_KINDS):
        yield f"evaluation.noise_kinds is {kinds}; give any of {', '.join(NOISE_KINDS)}"
    if not all(0 <= level <= 1 for level in levels) or len(set(levels)) < len(levels):
        yield f"evaluation.noise_levels is {levels}; give different shares from 0 to 1"
    if evaluation.clicks > 1 and evaluation.protocol != "clicks":
        yield (
            f"evaluation.clicks is {evaluation.clicks}, but evaluation.protocol is "
            f"{evaluation.protocol}; give evaluation.protocol=clicks too"
        )


def _dataset_problems(section: str, dataset: DatasetConfig) -> Iterator[str]:
    yield from _source_problems(section, dataset)
    if dataset.image_size < 32 or dataset.image_size % 32:
        size = max(32, round(dataset.image_size / 32) * 32)
        yield f"{section}.image_size is {dataset.image_size}; give a multiple of 32, such as {size}"
    for key, least in {
        "video_clip_length": 1,
        "frame_stride": 1,
        "clips_per_video": 1,
        "batch_size": 1,
        "num_workers": 0,
        "max_objects": 1,
        "min_objects": 1,
        "max_gap": 0,
        "num_positive_points": 1,
        "num_negative_points": 0,
        "box_noise": 0,
        "mask_noise": 0,
        "max_conditioning_frames": 1,
        "correction_clicks": 0,
        "max_correction_frames": 1,
    }.items():
        value = getattr(dataset, key)
        if value is not None and value < least:
            yield f"{section}.{key} is {value}; give at least {least}"
    if dataset.corrections is not None and dataset.type == "synthetic":
        yield f"{section}.corrections is set, but generated videos (type synthetic) keep no frame"
    if not 0 <= (share := dataset.correction_from_truth) <= 1:
        yield f"{section}.correction_from_truth is {share}; give a probability from 0 to 1"
    if 0 < (dataset.max_objects or 0) < dataset.min_objects:
        yield f"{section}.min_objects is above {section}.max_objects; raise the latter"
    if (short := dataset.short_videos) not in SHORT_VIDEOS:
        yield f"{section}.short_videos is {short!r}; choose from {', '.join(SHORT_VIDEOS)}"
    yield from _prompt_problems(section, dataset)


def _source_problems(section: str, dataset: DatasetConfig) -> Iterator[str]:
    """About the keys that the sources of a mixture have too."""
    if dataset.type not in DATASET_TYPES:
        yield f"{section}.type is {dataset.type!r}; choose from {', '.join(DATASET_TYPES)}"
    if dataset.type == "coco" and dataset.annotation_file is None:
        yield f"{section}.annotation_file is not set, and type coco needs it; name the COCO JSON"
    if dataset.identity not in IDENTITIES:
        yield f"{section}.identity is {dataset.identity!r}; choose from {', '.join(IDENTITIES)}"
    elif dataset.identity in ("track", "category") and not (
        section == "valdataset" or dataset.type in ("coco", "mixture")
    ):
        yield (
            f"{section}.identity is {dataset.identity}, which type coco alone can be asked for; "
            "give auto or components"
        )
    if dataset.masks_path is not None and dataset.type in ("coco", "sav", "synthetic"):
        yield f"{section}.masks_path is given, but type {dataset.type} has its own masks; drop it"
    if dataset.sav_masklets not in SAV_MASKLETS:
        yield (
            f"{section}.sav_masklets is {dataset.sav_masklets!r}; choose from "
            f"{', '.join(SAV_MASKLETS)}"
        )
    for key in ("synthetic_objects", "synthetic_videos"):
        if getattr(dataset, key) < 1:
            yield f"{section}.{key} is {getattr(dataset, key)}; give at least 1"
    if not (dataset.synthetic_motion >= 0 and math.isfinite(dataset.synthetic_motion)):
        yield f"{section}.synthetic_motion is {dataset.synthetic_motion}; give at least 0"
    if not 0 <= dataset.synthetic_lifelike <= 1:
        yield f"{section}.synthetic_lifelike is {dataset.synthetic_lifelike}; give 0 to 1"
    if dataset.type == "mixture":
        yield from _mixture_problems(section, dataset)


def _mixture_problems(section: str, dataset: DatasetConfig) -> Iterator[str]:
    if not dataset.mixture:
        yield f"{section}.mixture is [], and type mixture needs its sources; give one or more"
    for key in ("data_path", "masks_path", "annotation_file", "split"):
        if getattr(dataset, key) is not None:
            yield (
                f"{section}.{key} is given, and type mixture has it in each source; put it there, "
                f"or choose another {section}.type"
            )
    for n, entry in enumerate(dataset.mixture):
        where = f"{section}.mixture[{n}]"
        problems = list(_entry_problems(where, entry))
        yield from problems or _source_problems(where, dataset.part(entry))


def _entry_problems(where: str, entry: dict[str, Any]) -> Iterator[str]:
    if entry.get("type") == "mixture":
        yield f"{where}.type is mixture; name its sources beside the others"
    for key, value in entry.items():
        if key not in (*SOURCE_KEYS, "weight"):
            near = nearest(str(key), (*SOURCE_KEYS, "weight"))
            yield f"{where}.{key} is no key of a source; {near}"
            continue
        default = 1.0 if key == "weight" else getattr(DatasetConfig(), key)
        if not _alike(value, default):
            example = "a text" if default is None else f"a value such as {default!r}"
            yield f"{where}.{key} is {value!r}; give {example}"
        elif key == "weight" and not (value > 0 and math.isfinite(value)):
            yield f"{where}.weight is {value}; give a number above 0"


def _alike(value: object, default: object) -> bool:
    """Whether a value has the type of its key's default; null stands for a text."""
    if isinstance(default, (int, float)):
        kinds = (int,) if isinstance(default, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, str) or (default is None and value is None)


def _prompt_problems(section: str, dataset: DatasetConfig) -> Iterator[str]:
    types, probabilities = dataset.prompt_types, dataset.prompt_probabilities
    known = f"any of {', '.join(PROMPT_TYPES)}, each at most once"
    if not types or len(set(types)) < len(types) or not set(types) <= set(PROMPT_TYPES):
        yield f"{section}.prompt_types is {types}; give {known}"
    kinds = dataset.negative_kinds
    if not kinds or not set(kinds) <= set(NEGATIVE_KINDS):
        yield f"{section}.negative_kinds is {kinds}; give any of {', '.join(NEGATIVE_KINDS)}"
    if probabilities is None:
        return
    if len(probabilities) != len(types):
        yield (
            f"{section}.prompt_probabilities is {probabilities}, for prompt_types {types}; "
            "give one probability for each, or null"
        )
    if not all(p >= 0 for p in probabilities) or not math.isclose(sum(probabilities), 1):
        yield f"{section}.prompt_probabilities is {probabilities}; give shares that add up to 1"


def _devices_known(devices: str) -> bool:
    if devices in ("auto", "-1"):
        return True
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    counted = all(part.isdecimal() for part in parts) and bool(parts)
    return counted and (len(parts) > 1 or "," in devices or int(parts[0]) > 0)


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
