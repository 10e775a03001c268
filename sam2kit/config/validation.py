"""Reject configurations that cannot work: values, combinations of keys, and missing files.

Choices and limits of single keys are in :mod:`sam2kit.config.schema`; here are the one function
that checks them, and the rules that combine keys. Types are checked by
:mod:`sam2kit.config.loading`. This module does not import torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection, Iterator
from dataclasses import Field, fields
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

from sam2kit.config.schema import (
    SOURCE_KEYS,
    Config,
    DatasetConfig,
    EvaluationConfig,
    LossConfig,
    TrainerConfig,
    option,
)
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.paths import missing
from sam2kit.utils.text import close_names, suggest

CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors")
LIMITS = {
    "ge": ("at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}
WEIGHT: Field[Any] = option(1.0, "share of a source of a mixture in the clips of an epoch", gt=0)
PATH_KEYS = ("data_path", "masks_path", "annotation_file", "corrections", "synthetic_photos")


def check(config: Config) -> None:
    """Reject values and combinations that cannot work, before anything is loaded.

    Raises:
        ConfigError: its ``problems`` name every such key with its value and what to do about it.
    """
    _raise(_problems(config))


def check_dataset(dataset: DatasetConfig, section: str = "dataset") -> None:
    """Reject values of a data set's keys, as :func:`check` does.

    Raises:
        ConfigError: as :func:`check`.
    """
    _raise(_dataset_problems(section, dataset))


def check_paths(config: Config) -> None:
    """Reject a configuration whose data or checkpoint are missing.

    Raises:
        ConfigError: names the key, the path and similar names in its folder.
    """
    check_data("dataset", config.dataset)
    check_data("valdataset", config.validation_dataset())
    resume_from, checkpoint = config.trainer.resume_from, config.model.checkpoint
    check_exists("trainer.resume_from", resume_from)
    if resume_from is not None and Path(resume_from).is_dir():
        message = f"{resume_from} is a folder; name its last.ckpt"
        raise ConfigError(message, key="trainer.resume_from", value=resume_from)
    check_checkpoint("model.checkpoint", checkpoint)


def check_data(section: str, dataset: DatasetConfig) -> None:
    """Reject data that are not named or missing.

    Raises:
        ConfigError: names the key, the path and similar names in its folder.
    """
    for n, part in enumerate(dataset.parts()):
        where = f"{section}.mixture[{n}]" if dataset.type == "mixture" else section
        if part.type not in ("synthetic", "coco") and part.data_path is None:
            raise ConfigError(
                f"not set, and type {part.type} reads videos from it",
                key=f"{where}.data_path",
                hint=f"give --data-path DIR, or {where}.type=synthetic to train on generated clips",
            )
        for key in PATH_KEYS:
            path = getattr(part, key)
            if not (key == "annotation_file" and path and glob(path)):
                check_exists(f"{where}.{key}", path)


def check_exists(key: str, path: str | Path | None) -> None:
    """Reject a path that does not exist; None passes.

    Raises:
        ConfigError: names ``key``, the path and similar names in its folder.
    """
    if path is not None and not Path(path).exists():
        raise ConfigError(missing(path), key=key, value=str(path))


def check_checkpoint(key: str, checkpoint: str | None) -> None:
    """Reject a checkpoint's file that does not exist; names of released models and None pass.

    Raises:
        ConfigError: as :func:`check_exists`.
    """
    if checkpoint and looks_like_path(checkpoint):
        check_exists(key, checkpoint)


def check_new(run_dir: Path) -> None:
    """Reject a folder that holds a run.

    Raises:
        ConfigError: says how to resume that run.
    """
    if (run_dir / "last.ckpt").exists():
        raise ConfigError(
            f"{run_dir} holds a run",
            key="--run-dir",
            value=str(run_dir),
            hint="name another folder, or resume that run: "
            f"--config {run_dir / 'config.yaml'} --run-dir {run_dir} --resume auto",
        )


def looks_like_path(checkpoint: str) -> bool:
    """Whether ``model.checkpoint`` is a file rather than the name of a released model."""
    return "/" in checkpoint or "\\" in checkpoint or checkpoint.endswith(CHECKPOINT_SUFFIXES)


def _raise(problems: Iterator[ConfigError]) -> None:
    """Raise the only problem, or one error for all; nothing where there is none."""
    found = list(problems)
    if found:
        raise found[0] if len(found) == 1 else ConfigError(problems=found)


def _problems(config: Config) -> Iterator[ConfigError]:
    for f in fields(config):
        if "help" in f.metadata:
            yield from _value_problems(f.name, getattr(config, f.name), f)
        elif f.name not in ("dataset", "valdataset"):
            yield from _section_problems(f.name, getattr(config, f.name))
    of_training = list(_dataset_problems("dataset", config.dataset))
    yield from of_training
    known = {str(problem) for problem in of_training}
    for problem in _dataset_problems("valdataset", config.validation_dataset()):
        if str(problem).replace("valdataset.", "dataset.") not in known:  # taken over
            yield problem
    yield from _section_problems("valdataset", config.valdataset, ("fraction",))
    model, optimizer = config.model, config.optimizer
    if not model.trainable_modules and not model.lora_modules:
        expected = "one module at least, or nothing would be trained"
        yield _must_be("model", model, "trainable_modules", expected, "name a module or '*'")
    if len(optimizer.betas) != 2:
        yield _must_be("optimizer", optimizer, "betas", "two numbers")
    yield from _loss_problems(config.loss)
    yield from _evaluation_problems(config.evaluation)
    yield from _trainer_problems(config.trainer)
    if config.use_wandb and config.trainer.logger == "swanlab":
        hint = "drop one of them (--no-wandb, or trainer.logger=tensorboard)"
        yield ConfigError("contradicts trainer.logger=swanlab", key="use_wandb", hint=hint)


def _must_be(
    section: str, config: Any, name: str, expected: str, hint: str | None = None
) -> ConfigError:
    """Return the error about a key of a section."""
    value = getattr(config, name)
    return ConfigError(key=f"{section}.{name}", value=value, expected=expected, hint=hint)


def _section_problems(
    section: str, config: Any, names: Collection[str] = ()
) -> Iterator[ConfigError]:
    """Check the values of a section, or of ``names`` in it, against their declarations."""
    for f in fields(config):
        if not names or f.name in names:
            yield from _value_problems(f"{section}.{f.name}", getattr(config, f.name), f)


def _value_problems(key: str, value: Any, field: Field[Any]) -> Iterator[ConfigError]:
    """Check a value, or each item of a list or dictionary, against the key's declaration."""
    items = {key: value}
    if isinstance(value, dict):
        items = {f"{key}.{name}": item for name, item in value.items()}
    elif isinstance(value, list):
        items = {f"{key}[{n}]": item for n, item in enumerate(value)}
    choices, limits = field.metadata["choices"], field.metadata["limits"]
    for name, item in items.items():
        if item is None:  # the type allows it
            continue
        if choices and item not in choices:
            close = close_names(str(item), choices, 1)
            hint = f"did you mean {close[0]}?" if close else None
            expected = f"one of {', '.join(choices)}"
            yield ConfigError(key=name, value=item, expected=expected, hint=hint)
        within = all(LIMITS[k][1](item, limit) for k, limit in limits.items())
        if limits and not (within and math.isfinite(item)):
            expected = " and ".join(f"{LIMITS[k][0]} {limit}" for k, limit in limits.items())
            yield ConfigError(key=name, value=item, expected=expected)


def _loss_problems(loss: LossConfig) -> Iterator[ConfigError]:
    no_terms = ("type", "bce_positive_weight")
    terms = [f.name for f in fields(loss) if f.name not in no_terms]
    if not any(getattr(loss, term) for term in terms):
        yield ConfigError(f"all of {', '.join(terms)} are 0", key="loss", hint="set one above 0")
    if loss.type == "steps" and loss.temporal > 0:
        yield _must_be("loss", loss, "temporal", "0 with loss.type=steps")


def _evaluation_problems(evaluation: EvaluationConfig) -> Iterator[ConfigError]:
    if len(set(evaluation.noise_levels)) < len(evaluation.noise_levels):
        yield _must_be("evaluation", evaluation, "noise_levels", "different numbers")
    if evaluation.clicks > 1 and evaluation.protocol != "clicks":
        expected = f"1 with evaluation.protocol={evaluation.protocol}"
        hint = "give evaluation.protocol=clicks too"
        yield _must_be("evaluation", evaluation, "clicks", expected, hint)


def _trainer_problems(trainer: TrainerConfig) -> Iterator[ConfigError]:
    must_be = partial(_must_be, "trainer", trainer)
    if trainer.max_steps != -1 and trainer.max_steps < 1:
        yield must_be("max_steps", "at least 1, or -1 for no limit")
    if trainer.max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", trainer.max_time):
        yield must_be("max_time", "DD:HH:MM:SS, such as 00:00:20:00, or null")
    devices = trainer.devices
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    counted = bool(parts) and all(part.isdecimal() for part in parts)
    if devices not in ("auto", "-1") and not (counted and ("," in devices or int(devices) > 0)):
        yield must_be("devices", "a number of devices, a list such as 0,1, or auto")
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        expected = "another precision with trainer.accelerator=cpu"
        yield must_be("precision", expected, "try bf16-mixed")


def _dataset_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    must_be = partial(_must_be, section, dataset)
    yield from _section_problems(section, dataset)
    yield from _source_problems(section, dataset)
    if dataset.type == "mixture":
        yield from _mixture_problems(section, dataset)
    if dataset.image_size < 32 or dataset.image_size % 32:
        nearest = max(32, round(dataset.image_size / 32) * 32)
        yield must_be("image_size", "a multiple of 32", f"try {nearest}")
    if dataset.corrections is not None and dataset.type == "synthetic":
        yield must_be("corrections", "null with type synthetic, whose frames are generated")
    if 0 < (dataset.max_objects or 0) < dataset.min_objects:
        yield must_be("min_objects", f"at most {section}.max_objects={dataset.max_objects}")
    types, probabilities = dataset.prompt_types, dataset.prompt_probabilities
    if not types or len(set(types)) < len(types):
        yield must_be("prompt_types", "one type at least, each at most once")
    if not dataset.negative_kinds:
        yield must_be("negative_kinds", "one kind at least")
    if probabilities is not None and (
        len(probabilities) != len(types) or not math.isclose(sum(probabilities), 1)
    ):
        expected = f"null, or {len(types)} shares that add up to 1, one for each of {types}"
        yield must_be("prompt_probabilities", expected)


def _source_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    """Check combinations of the keys that the sources of a mixture have too."""
    must_be = partial(_must_be, section, dataset)
    if dataset.type == "coco" and dataset.annotation_file is None:
        yield must_be("annotation_file", "the COCO JSON with type coco")
    typed = section == "valdataset" or dataset.type in ("coco", "mixture")
    if dataset.identity in ("track", "category") and not typed:
        yield must_be("identity", f"auto or components with type {dataset.type}")
    if dataset.masks_path is not None and dataset.type in ("coco", "sav", "synthetic"):
        yield must_be("masks_path", f"null with type {dataset.type}, which has its own masks")


def _mixture_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    if not dataset.mixture:
        yield _must_be(section, dataset, "mixture", "one source or more with type mixture")
    for key in ("data_path", "masks_path", "annotation_file", "split"):
        if getattr(dataset, key) is not None:
            expected = "null with type mixture, whose sources have their own"
            hint = f"put it there, or choose another {section}.type"
            yield _must_be(section, dataset, key, expected, hint)
    for n, entry in enumerate(dataset.mixture):
        where = f"{section}.mixture[{n}]"
        problems = list(_entry_problems(where, entry))
        yield from problems or _source_problems(where, dataset.part(entry))


def _entry_problems(where: str, entry: dict[str, Any]) -> Iterator[ConfigError]:
    """Check the keys, types and values of one source of a mixture."""
    known = {f.name: f for f in fields(DatasetConfig) if f.name in SOURCE_KEYS} | {"weight": WEIGHT}
    for name, value in entry.items():
        key, field = f"{where}.{name}", known.get(name)
        if field is None:
            hint = suggest(str(name), known)
            yield ConfigError("is no key of a source", key=key, value=value, hint=hint)
        elif not _alike(value, field.default):
            default = field.default
            expected = "a text" if default is None else f"a value such as {default!r}"
            yield ConfigError(key=key, value=value, expected=expected)
        elif (name, value) == ("type", "mixture"):
            hint = "name its sources beside the others"
            yield ConfigError(key=key, value=value, expected="another type", hint=hint)
        else:
            yield from _value_problems(key, value, field)


def _alike(value: object, default: object) -> bool:
    """Whether a value has the type of its key's default; null stands for a text."""
    if isinstance(default, (int, float)):
        kinds = (int,) if isinstance(default, int) else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, str) or (default is None and value is None)
