"""Reject invalid configurations: values out of range, invalid combinations and missing files.

:mod:`sam2kit.config.schema` declares the choices and limits of single keys. This module enforces
them, together with rules for several keys; :mod:`sam2kit.config.loading` checks types. This module
does not import torch.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields
from functools import partial
from glob import glob
from pathlib import Path
from shlex import quote
from typing import Any, get_type_hints

import msgspec

from sam2kit.config.schema import (
    NEGATIVE_KINDS,
    PROMPT_TYPES,
    RANDOM,
    SIZE_NAMES,
    SOURCE_KEYS,
    TOOL_TYPES,
    Config,
    DatasetConfig,
    EvaluationConfig,
    LossConfig,
    option,
    options,
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
MAX_IMAGE_SIZE = 16_384  # attention over larger frames does not fit into memory
WEIGHT: Field[Any] = option(1.0, "relative number of clips of a mixture's source per epoch", gt=0)
# Example values of keys that default to null and are not strings.
EXAMPLES = {
    "intensity_window": [0, 4095],
    "stack_channels": [0],
    "time_split": [80, 84, 100],
    "volume_axis": 0,
}
OWN_MASKS = ("coco", "sav", "ctc", "npz", "synthetic")  # types without masks_path
PATH_KEYS = ("data_path", "masks_path", "annotation_file", "corrections", "synthetic_photos")


def check(config: Config) -> None:
    """Reject invalid values and combinations before anything is loaded.

    Raises:
        ConfigError: ``problems`` has one error per invalid key, with its value and a fix.
    """
    _raise(_problems(config))


def check_dataset(dataset: DatasetConfig, section: str = "dataset") -> None:
    """Reject invalid values of the keys of a dataset.

    Raises:
        ConfigError: see :func:`check`.
    """
    _raise(_dataset_problems(section, dataset))


def check_paths(config: Config) -> None:
    """Reject a configuration whose data or checkpoints do not exist.

    Raises:
        ConfigError: a path does not exist; the error names the key and similar paths.
    """
    check_data("dataset", config.dataset)
    check_data("valdataset", config.validation_dataset())
    if config.has_test_data:
        check_data("testdataset", config.test_dataset())
    check_exists("valdataset.splits", config.valdataset.splits)
    resume_from, checkpoint = config.trainer.resume_from, config.model.checkpoint
    check_exists("trainer.resume_from", resume_from)
    if resume_from is not None and Path(resume_from).is_dir():
        key, hint = "trainer.resume_from", f"pass {Path(resume_from) / 'last.ckpt'}"
        raise ConfigError(f"{resume_from} is a directory", key=key, value=resume_from, hint=hint)
    check_checkpoint("model.checkpoint", checkpoint)


def check_data(section: str, dataset: DatasetConfig) -> None:
    """Reject a dataset whose paths are unset or do not exist.

    Raises:
        ConfigError: a path does not exist; the error names the key and similar paths.
    """
    for n, part in enumerate(dataset.parts()):
        prefix = f"{section}.mixture[{n}]" if dataset.type == "mixture" else section
        has_path = part.type == "auto" and part.annotation_file is not None
        if part.type not in ("synthetic", "coco") and part.data_path is None and not has_path:
            raise ConfigError(
                f"not set, but required for type={part.type}",
                key=f"{prefix}.data_path",
                hint=f"pass --data-path DIR, or {prefix}.type=synthetic to use generated clips",
            )
        for key in PATH_KEYS:
            path = getattr(part, key)
            if not (key == "annotation_file" and path and glob(path)):
                check_exists(f"{prefix}.{key}", path)


def check_exists(key: str | None, path: str | Path | None) -> None:
    """Reject a path that does not exist; None is valid.

    Args:
        key: the flag or configuration key, or None for a positional argument.
        path: the path.

    Raises:
        ConfigError: the path does not exist; the error names ``key`` and similar paths.
    """
    if path is not None and not Path(path).exists():
        raise ConfigError(missing(path), key=key, value=str(path), hint="correct the path")


def check_checkpoint(key: str | None, checkpoint: str | None) -> None:
    """Reject a checkpoint file that does not exist; names of released models and None are valid.

    Raises:
        ConfigError: see :func:`check_exists`.
    """
    if checkpoint and looks_like_path(checkpoint):
        check_exists(key, checkpoint)


def check_new(run_dir: Path) -> None:
    """Reject a directory that already contains a run.

    Raises:
        ConfigError: the directory contains a run; the hint is the command that resumes it.
    """
    if (run_dir / "last.ckpt").exists():
        raise ConfigError(
            f"{run_dir} already contains a run",
            key="--run-dir",
            value=str(run_dir),
            hint="choose another directory, or resume that run: "
            f"--config {quote(str(run_dir / 'config.yaml'))} --run-dir {quote(str(run_dir))} "
            "--resume auto "
            "(in Python and in 03_train: resume=True)",
        )


def looks_like_path(checkpoint: str) -> bool:
    """Return whether ``model.checkpoint`` is a path instead of the name of a released model."""
    if checkpoint.removesuffix(".pt") in SIZE_NAMES and not Path(checkpoint).exists():
        return False
    return "/" in checkpoint or "\\" in checkpoint or checkpoint.endswith(CHECKPOINT_SUFFIXES)


def _raise(problems: Iterator[ConfigError]) -> None:
    """Raise the only problem, or all problems as one combined error; do nothing without any."""
    errors = list(problems)
    if errors:
        raise errors[0] if len(errors) == 1 else ConfigError(problems=errors)


def _problems(config: Config) -> Iterator[ConfigError]:
    """Yield an error for every invalid value or combination in a configuration."""
    for f in fields(config):
        if "help" in f.metadata:
            yield from _value_problems(f.name, getattr(config, f.name), f)
        elif f.name not in ("dataset", "valdataset", "testdataset"):
            yield from _section_problems(f.name, getattr(config, f.name))
    yield from _data_problems(config)
    model, optimizer = config.model, config.optimizer
    if not model.trainable_modules and not model.lora_modules:
        expected = "at least one module, because model.lora_modules is empty"
        hint = "list a module, or '*' for all modules"
        yield _must_be("model", model, "trainable_modules", expected, hint)
    if len(optimizer.betas) != 2:
        yield _must_be("optimizer", optimizer, "betas", "two numbers", "try [0.9,0.999]")
    yield from _loss_problems(config.loss)
    yield from _evaluation_problems(config.evaluation)
    yield from _trainer_problems(config)
    if config.use_wandb and config.trainer.logger == "swanlab":
        hint = "use only one of them (--no-wandb, or trainer.logger=tensorboard)"
        message = "conflicts with trainer.logger=swanlab"
        yield ConfigError(message, key="use_wandb", value=True, hint=hint)


def _data_problems(config: Config) -> Iterator[ConfigError]:
    """Check the training, validation and test data.

    An invalid value of an inherited key is reported once, for the first section that has it.
    """
    reported: set[str] = set()
    for section, dataset in (
        ("dataset", config.dataset),
        ("valdataset", config.validation_dataset()),
        ("testdataset", config.test_dataset()),
    ):
        problems = list(_dataset_problems(section, dataset))
        yield from (p for p in problems if _inherited_fault(p) not in reported)
        reported |= set(map(_inherited_fault, problems))
    val, test = config.valdataset, config.testdataset
    yield from _section_problems("valdataset", val, ("fraction",))
    yield from _section_problems("testdataset", test, ("fraction",))
    for name, held_out in (("valdataset", val), ("testdataset", test)):
        if held_out.type == "synthetic" and held_out.data_path is not None:
            expected = "null with type=synthetic, whose videos are generated"
            yield _must_be(name, held_out, "data_path", expected, f"set {name}.type=auto")
    both = val.fraction + test.fraction
    if config.holds_out_validation and val.fraction < 1 <= both and test.fraction < 1:
        expected = f"below {1 - val.fraction:g}, so that training videos remain"
        yield _must_be("testdataset", test, "fraction", expected, "try 0.2")


def _inherited_fault(problem: ConfigError) -> str:
    """Describe a problem in the same way for all sections with data.

    The hint is omitted, because the defaults that it names may differ between sections.
    """
    text = f"{problem.key}={problem.value!r}: {problem.expected}"
    return text.replace("valdataset.", "dataset.").replace("testdataset.", "dataset.")


def default_hint(key: str, field: Field[Any]) -> str:
    """Return a hint that names the default of a key.

    Args:
        key: dotted key; ``valdataset`` has its own defaults for inherited keys.
        field: declaration to use if ``key`` is not a key of the configuration, such as a key of
            an entry in ``dataset.mixture``.
    """
    field = options().get(key, field)
    default = field.default if field.default_factory is MISSING else field.default_factory()
    return f"the default is {json.dumps(default)}"


def _must_be(section: str, config: Any, name: str, expected: str, hint: str) -> ConfigError:
    """Return an error about key ``name`` of a section, with its value and what was expected."""
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
        if item is None:  # loading has already checked whether the type allows None
            continue
        hint = default_hint(key, field)
        if choices and item not in choices:
            close = close_names(str(item), choices, 1)
            hint = f"did you mean {close[0]}?" if close else hint
            expected = f"one of {', '.join(choices)}"
            yield ConfigError(key=name, value=item, expected=expected, hint=hint)
        within = all(LIMITS[k][1](item, limit) for k, limit in limits.items())
        if limits and not (within and math.isfinite(item)):
            expected = " and ".join(f"{LIMITS[k][0]} {limit}" for k, limit in limits.items())
            yield ConfigError(key=name, value=item, expected=expected, hint=hint)


def _loss_problems(loss: LossConfig) -> Iterator[ConfigError]:
    """Check combinations of the keys of ``loss``."""
    no_terms = ("type", "bce_positive_weight")
    terms = [f.name for f in fields(loss) if f.name not in no_terms]
    if not any(getattr(loss, term) for term in terms):
        message = f"all of {', '.join(terms)} are 0"
        yield ConfigError(message, key="loss", hint="set at least one of them above 0")
    if loss.type == "steps" and loss.temporal > 0:
        expected, hint = "0 with loss.type=steps", "set loss.temporal=0 or loss.type=frames"
        yield _must_be("loss", loss, "temporal", expected, hint)


def _evaluation_problems(evaluation: EvaluationConfig) -> Iterator[ConfigError]:
    """Check combinations of the keys of ``evaluation``."""
    if len(set(evaluation.noise_levels)) < len(evaluation.noise_levels):
        hint = "remove the duplicates"
        yield _must_be("evaluation", evaluation, "noise_levels", "distinct numbers", hint)
    if evaluation.clicks > 1 and evaluation.protocol != "clicks":
        expected = f"1 with evaluation.protocol={evaluation.protocol}"
        hint = "set evaluation.protocol=clicks, too"
        yield _must_be("evaluation", evaluation, "clicks", expected, hint)


def _trainer_problems(config: Config) -> Iterator[ConfigError]:
    """Check the keys of ``trainer`` that need more than choices and limits."""
    trainer = config.trainer
    must_be = partial(_must_be, "trainer", trainer)
    if trainer.monitor == "val_iou" and config.validation_dataset().video_clip_length == 1:
        expected = "val_loss or val_jf, because validation clips of one frame are not tracked"
        yield must_be("monitor", expected, "set trainer.monitor=val_loss")
    if trainer.max_steps != -1 and trainer.max_steps < 1:
        hint = "the default is -1"
        yield must_be("max_steps", "at least 1, or -1 for no limit", hint)
    if trainer.max_time is not None and not re.fullmatch(r"\d+(:\d\d){3}", trainer.max_time):
        hint = "20 minutes is 00:00:20:00"
        yield must_be("max_time", "a time DD:HH:MM:SS, or null", hint)
    if trainer.average_with_start is not None:
        yield from _average_problems(config)
    devices = trainer.devices
    parts = [part.strip() for part in devices.split(",") if part.strip()]
    counted = bool(parts) and all(part.isdecimal() for part in parts)
    if devices not in ("auto", "-1") and not (counted and ("," in devices or int(devices) > 0)):
        expected = "a number of devices, a list of indices such as 0,1, or auto"
        yield must_be("devices", expected, "try 1 or auto")
    if trainer.precision == "16-mixed" and trainer.accelerator == "cpu":
        expected = "another precision with trainer.accelerator=cpu"
        yield must_be("precision", expected, "try bf16-mixed")


def _average_problems(config: Config) -> Iterator[ConfigError]:
    """Check what cannot be combined with ``trainer.average_with_start``."""
    for key, is_set, reason in (
        ("model.checkpoint=random", config.model.checkpoint == RANDOM, "nothing worth keeping"),
        ("model.reset_modules", bool(config.model.reset_modules), "a random start"),
        ("trainer.ema_decay", config.trainer.ema_decay is not None, "an average of its own"),
    ):
        if is_set:
            expected = f"null with {key}, which has {reason}"
            hint = "set trainer.average_with_start=null"
            yield _must_be("trainer", config.trainer, "average_with_start", expected, hint)


def _dataset_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    """Check the keys of ``dataset``, or of the resolved ``valdataset``, and their combinations."""
    must_be = partial(_must_be, section, dataset)
    yield from _section_problems(section, dataset)
    yield from _source_problems(section, dataset)
    if dataset.type == "mixture":
        yield from _mixture_problems(section, dataset)
    if not 32 <= dataset.image_size <= MAX_IMAGE_SIZE or dataset.image_size % 32:
        nearest = min(max(32, round(dataset.image_size / 32) * 32), MAX_IMAGE_SIZE)
        expected = "a multiple of 32" + f" up to {MAX_IMAGE_SIZE}" * (dataset.image_size > nearest)
        yield must_be("image_size", expected, f"try {nearest}")
    if dataset.corrections is not None and dataset.type == "synthetic":
        expected = "null with type=synthetic, whose frames are generated"
        yield must_be("corrections", expected, f"choose another {section}.type")
    if dataset.replay and dataset.type == "synthetic":
        expected = "0 with type=synthetic, whose clips are all generated"
        yield must_be("replay", expected, f"set {section}.replay=0, or name your videos")
    if 0 < (dataset.max_objects or 0) < dataset.min_objects:
        expected = f"at most {section}.max_objects={dataset.max_objects}"
        yield must_be("min_objects", expected, f"raise {section}.max_objects, or set it to null")
    types, probabilities = dataset.prompt_types, dataset.prompt_probabilities
    if not types or len(set(types)) < len(types):
        expected = "a list of at least one type, without duplicates"
        yield must_be("prompt_types", expected, f"choose from {', '.join(PROMPT_TYPES)}")
    if not dataset.negative_kinds:
        hint = f"choose from {', '.join(NEGATIVE_KINDS)}"
        yield must_be("negative_kinds", "a list of at least one kind", hint)
    if probabilities is not None and (
        len(probabilities) != len(types) or not math.isclose(sum(probabilities), 1)
    ):
        expected = f"null, or {len(types)} probabilities that add up to 1, one for each of {types}"
        hint = f"set {section}.prompt_probabilities=null for equal probabilities"
        yield must_be("prompt_probabilities", expected, hint)


def _source_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    """Check combinations of keys that sources of a mixture also have."""
    must_be = partial(_must_be, section, dataset)
    if dataset.type == "coco" and dataset.annotation_file is None:
        hint = f"set {section}.annotation_file=FILE, or choose another {section}.type"
        yield must_be("annotation_file", "a COCO JSON file with type=coco", hint)
    # identity of valdataset is inherited from dataset, whose type may be coco although this is not.
    may_have_ids = section in ("valdataset", "testdataset") or dataset.type in (
        "auto",
        "coco",
        "mixture",
        *TOOL_TYPES,
    )
    if dataset.identity in ("track", "category") and not may_have_ids:
        expected = f"auto or components with type={dataset.type}"
        yield must_be(
            "identity", expected, "choose one of them; only annotation files have track IDs"
        )
    split = dataset.time_split
    if split is not None and not (len(split) == 3 and 0 < split[0] <= split[1] < split[2]):
        expected = "three increasing numbers of frames, such as [80, 84, 100], or null"
        yield must_be("time_split", expected, "set it to null to split the video again")
    yield from _stack_problems(section, dataset)
    if dataset.masks_path is not None and dataset.type in (*OWN_MASKS, *TOOL_TYPES):
        expected = f"null with type={dataset.type}, which has its own masks"
        yield must_be("masks_path", expected, f"set {section}.masks_path=null")


def _stack_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    """Check the keys of stacks and volumes."""
    must_be = partial(_must_be, section, dataset)
    z, channels = dataset.stack_z, dataset.stack_channels
    if z not in (None, "max", "mean") and not str(z).isdecimal():
        yield must_be("stack_z", "max, mean, the index of a slice, or null", "try max")
    if channels is not None and not 1 <= len(channels) <= 3:
        yield must_be("stack_channels", "one to three channels, or null", "try [0]")
    for name in ("intensity_window", "intensity_percentiles"):
        pair = getattr(dataset, name)
        if pair is not None and (len(pair) != 2 or not -math.inf < pair[0] < pair[1] < math.inf):
            hint = "try [0, 4095]" if name == "intensity_window" else "the default is [0.1, 99.9]"
            yield must_be(name, "two finite numbers, the smaller one first", hint)


def _mixture_problems(section: str, dataset: DatasetConfig) -> Iterator[ConfigError]:
    """Check the sources of a mixture, and that no key outside them locates videos."""
    if not dataset.mixture:
        hint = f"list them as {{data_path: DIR}}, or choose another {section}.type"
        yield _must_be(section, dataset, "mixture", "at least one source with type=mixture", hint)
    for key in ("data_path", "masks_path", "annotation_file", "split"):
        if getattr(dataset, key) is not None:
            expected = "null with type=mixture, whose sources have their own"
            hint = f"move it into {section}.mixture, or choose another {section}.type"
            yield _must_be(section, dataset, key, expected, hint)
    for n, entry in enumerate(dataset.mixture):
        prefix = f"{section}.mixture[{n}]"
        # An entry with an unknown key or a wrong type cannot be converted to a DatasetConfig.
        problems = list(_entry_problems(prefix, entry))
        yield from problems or _source_problems(prefix, dataset.part(entry))


def _entry_problems(prefix: str, entry: dict[str, Any]) -> Iterator[ConfigError]:
    """Check the keys, types and values of one source of a mixture."""
    known = {f.name: f for f in fields(DatasetConfig) if f.name in SOURCE_KEYS} | {"weight": WEIGHT}
    for name, value in entry.items():
        key, field = f"{prefix}.{name}", known.get(name)
        if field is None:
            hint = suggest(str(name), known)
            yield ConfigError("unknown key of a source", key=key, value=value, hint=hint)
        elif not _has_type(name, value):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            text = default is None and _has_type(name, "text")
            expected = "text" if text else f"a value such as {EXAMPLES.get(name, default)!r}"
            hint = default_hint(key, field)
            yield ConfigError(key=key, value=value, expected=expected, hint=hint)
        elif (name, value) == ("type", "mixture"):
            hint = "list the sources of both mixtures in one mixture"
            yield ConfigError(key=key, value=value, expected="another type", hint=hint)
        else:
            yield from _value_problems(key, value, field)


def _has_type(name: str, value: object) -> bool:
    """Return whether a value has the type of the source's key ``name``."""
    kind = float if name == "weight" else get_type_hints(DatasetConfig)[name]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True
