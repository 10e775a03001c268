"""Define the flags of the commands and parse their values.

Most flags are rows of a table: each sets one configuration key and shows the key's help.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam2kit.config.schema import SIZE_NAMES, SIZES, Config, options
from sam2kit.utils.errors import ConfigError

OVERRIDES_HELP = "any number of key=value and group=choice, in Hydra's grammar"
MAX_WORKERS = 8  # maximum of --workers' default on machines with many cores

DEBUG_OVERRIDES = (
    "debug=true",
    "log_level=DEBUG",
    "dataset.num_workers=0",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
)


class Flag(NamedTuple):
    """A flag that sets one configuration key.

    Attributes:
        name: the flag, such as ``--lr``.
        key: the dotted key whose help the flag shows.
        type: function that converts the flag's text to a value.
        aliases: other names of the flag.
        note: text at the end of the flag's help.
    """

    name: str
    key: str
    type: Callable[[str], Any] = str
    aliases: tuple[str, ...] = ()
    note: str = ""


def named_file(text: str) -> tuple[str, str]:
    """Parse ``NAME=FILE``."""
    name, _, file = text.partition("=")
    if not file or not re.fullmatch(r"(?=.*[A-Za-z])[\w.+-][\w .+-]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=FILE, with a letter in NAME")
    return name, file


def numbers(text: str) -> list[float]:
    """Parse a comma-separated list of numbers."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers such as 0.05,0.1") from None


def parameter(text: str) -> tuple[str, Any]:
    """Parse ``NAME=VALUE``; a value that is not JSON is a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def box_prompt(text: str) -> dict[str, Any]:
    """Parse ``[OBJECT][@FRAME]=LEFT,TOP,RIGHT,BOTTOM`` to an entry of a prompt file."""
    entry, value = _prompt_entry(text)
    return entry | {"kind": "box", "box": _coordinates(text, value, 4)}


def point_prompt(text: str) -> dict[str, Any]:
    """Parse ``[OBJECT][@FRAME]=X,Y[,LABEL]`` to an entry of a prompt file."""
    entry, value = _prompt_entry(text)
    count = 3 if value.count(",") == 2 else 2
    x, y, label = [*_coordinates(text, value, count), 1][:3]
    if label not in (0, 1):
        raise argparse.ArgumentTypeError(
            f"{text!r}: LABEL must be 1 (on the object) or 0 (not on it)"
        )
    return entry | {"kind": "point", "points": [[x, y]], "labels": [int(label)]}


def mask_prompt(text: str) -> dict[str, Any]:
    """Parse ``[OBJECT][@FRAME]=FILE``."""
    if Path(text).exists():
        return {"object_id": None, "frame_index": 0, "kind": "mask", "file": text}
    entry, value = _prompt_entry(text)
    if not Path(value).exists():
        raise argparse.ArgumentTypeError(f"{value!r} does not exist")
    return entry | {"kind": "mask", "file": value}


def _prompt_entry(text: str) -> tuple[dict[str, Any], str]:
    """Split a prompt into an entry with object and frame, and the remaining text."""
    about, equals, value = text.rpartition("=")
    name, at, frame = about.rpartition("@")
    if not at:
        name, frame = about, "0"
    if not frame.isdecimal() or (equals and not about):
        raise argparse.ArgumentTypeError(
            f"{text!r} must look like {value}, cell={value} or "
            f"cell@12={value}, where 12 is a frame number"
        )
    object_id: int | str | None = int(name) if name.isdecimal() else name or None
    return {"object_id": object_id, "frame_index": int(frame)}, value


def _coordinates(text: str, value: str, count: int) -> list[float]:
    try:
        values = [float(part) for part in value.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} needs {count} numbers, separated by commas")
    return values


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that select the objects to track."""
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help="prompts.json with the objects to track, for one or more videos",
    )
    # argparse cannot wrap usage lines that contain metavars with brackets.
    flags = (
        (
            "--box",
            box_prompt,
            "LEFT,TOP,RIGHT,BOTTOM of a new object on frame 0, in pixels of the video. "
            "OBJECT@FRAME=LEFT,TOP,RIGHT,BOTTOM also sets the object's name, the frame (from 0) or "
            "both, such as cell@12=10,20,90,75, cell=... or @12=...",
        ),
        (
            "--point",
            point_prompt,
            "X,Y of a click on a new object, or OBJECT@FRAME=X,Y as for --box; ,0 at the end "
            "(cell=120,80,0) makes it a negative click",
        ),
        (
            "--mask",
            mask_prompt,
            "label image (PNG or TIFF) in which each nonzero value is an object, OBJECT@FRAME=FILE "
            "for the mask of one object, or a directory with VIDEO.png or VIDEO/FRAME.png for each "
            "video",
        ),
    )
    for name, type, help in flags:
        parser.add_argument(
            name,
            action="append",
            dest="prompt_flags",
            type=type,
            metavar=name.strip("-").upper(),
            help=f"{help}; may be repeated",
        )


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """Parse an integer of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least 0")
    return int(text)


def port(text: str) -> int:
    """Parse the number of a TCP port."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port, from 1 to 65535")
    return int(text)


def job_hours(text: str) -> float:
    """Parse a time limit in hours, up to a year."""
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not 0 < hours <= 24 * 365:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and at most {24 * 365}")
    return hours


def stages(text: str) -> list[int]:
    """Parse numbers and ranges of stages in ascending order, such as ``1-3,5``."""
    stages: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", part)
        if match is None:
            raise argparse.ArgumentTypeError(f"{text!r} must look like 1-4, 3 or 1,4")
        first, last = int(match[1]), int(match[2] or match[1])
        stages.extend(range(first, last + 1) or (first, last))  # 3-1 is not ascending
    if sorted(set(stages)) != stages:
        raise argparse.ArgumentTypeError(f"{text!r} must list stages in ascending order")
    return stages


def model_size(text: str) -> str:
    """Parse a model size or the name of a released model."""
    size = SIZE_NAMES.get(text, text)
    if size not in SIZES:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a model size ({', '.join(SIZES)}, tiny, small, base_plus or large); "
            "use --model-checkpoint for weights"
        )
    return size


TRAIN_FLAGS = (
    Flag("--model", "model.size", model_size, ("--model-size",)),
    Flag("--lr", "optimizer.lr", float, ("--learning-rate",)),
    Flag("--max-epochs", "trainer.max_epochs", int, ("--epochs",)),
    Flag("--max-steps", "trainer.max_steps", int),
    Flag("--batch-size", "dataset.batch_size", int),
    Flag("--image-size", "dataset.image_size", int),
    Flag("--clip-length", "dataset.video_clip_length", int),
    Flag("--num-workers", "dataset.num_workers", int),
    Flag("--seed", "seed", int),
    Flag("--output-dir", "output_dir"),
    Flag("--model-checkpoint", "model.checkpoint"),
    Flag("--data-path", "dataset.data_path"),
    Flag("--accelerator", "trainer.accelerator"),
    Flag("--devices", "trainer.devices"),
    Flag("--strategy", "trainer.strategy"),
    Flag("--precision", "trainer.precision"),
)


EVALUATE_FLAGS = (
    Flag(
        "--data-path",
        "valdataset.data_path",
        note="; with evaluation.split=test: testdataset.data_path",
    ),
    Flag("--protocol", "evaluation.protocol"),
    Flag("--noise-levels", "evaluation.noise_levels", numbers),
    Flag("--seed", "seed", int),
    Flag("--accelerator", "trainer.accelerator"),
    Flag("--devices", "trainer.devices"),
)


DOCTOR_FLAGS = (
    Flag("--image-size", "dataset.image_size", int),
    Flag("--clip-length", "dataset.video_clip_length", int),
)


def add_data_flags(parser: argparse.ArgumentParser, name: str, words: str) -> None:
    """Add the arguments that select the data and the number of processes.

    Args:
        parser: the parser.
        name: name of the optional data argument in the help text.
        words: usage line of the positional arguments.
    """
    parser.add_argument(
        "words",
        nargs="*",
        metavar=words,
        help=f"{name}: a directory or file in any layout of docs/data.md; default: the data in the "
        f"configuration. OVERRIDE: {OVERRIDES_HELP}",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the data settings")
    parser.add_argument(
        "--workers",
        type=not_negative,
        default=min(os.cpu_count() or 1, MAX_WORKERS),
        metavar="N",
        help="maximum number of processes (default: %(default)s)",
    )


def add_checkpoint_flag(parser: argparse._ActionsContainer, required: bool = False) -> None:
    """Add the flag that selects a trained model."""
    parser.add_argument(
        "--model-checkpoint",
        required=required,
        metavar="FILE",
        help="run directory, .ckpt or .pt file, or model name such as sam2.1_hiera_tiny",
    )


def paths_and_overrides(
    words: Sequence[str], optional: str, required: str | None = None
) -> tuple[list[str], list[str]]:
    """Split positional arguments into paths and overrides.

    An argument with "=" is an override unless it is the name of an existing file.

    Args:
        words: positional arguments in any order.
        optional: name of the path that may be omitted.
        required: name of the required second path. If None (default), there is none.

    Raises:
        ConfigError: there are too few or too many paths.
    """
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    min_count = 0 if required is None else 1
    if not min_count <= len(paths) <= min_count + 1:
        names = f"{optional} and {required}, or only {required}" if required else f"one {optional}"
        message, hint = f"got {len(paths)} paths, {paths}", f"pass {names} with --config"
        raise ConfigError(message, hint=hint)
    return paths, [word for word in words if word not in paths]


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for training, and the overrides."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML configuration file; default: configs/config.yaml"
    )
    add_flags(parser, TRAIN_FLAGS)
    parser.add_argument(
        "--wandb",
        action=argparse.BooleanOptionalAction,
        help="log to Weights & Biases (use_wandb); --no-wandb also overrides trainer.logger=wandb",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="train one epoch of two batches without DataLoader workers and with debug logging, "
        "and mark the run as a debug run",
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES_HELP)


def add_submit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for a SLURM job and for training."""
    parser.add_argument(
        "--run-dir",
        type=Path,
        required=True,
        metavar="DIR",
        help="run directory; an existing run is resumed",
    )
    parser.add_argument(
        "--hours",
        type=job_hours,
        default=24.0,
        help="time limit per job in hours (default: 24), after which the job is requeued",
    )
    parser.add_argument(
        "--partition", metavar="NAME", help="SLURM partition; default: the default of the cluster"
    )
    parser.add_argument(
        "--cluster",
        choices=["slurm", "local"],
        default="slurm",
        help="slurm (default), or local: run on this machine",
    )
    add_train_flags(parser)


def add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the staged notebooks and for training."""
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        type=parameter,
        metavar="NAME=VALUE",
        help="notebook parameter; a VALUE that is not JSON is a string; may be repeated",
    )
    parser.add_argument(
        "--stages",
        type=stages,
        default=stages("1-4"),
        help="stages to run, such as 1-4 (default), 3 or 1,4",
    )
    add_train_flags(parser)


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    """Add flags that set configuration keys and show the keys' help."""
    known = options()
    for flag in flags:
        help = f"{known[flag.key].metadata['help']} ({flag.key}{flag.note})".replace("%", "%%")
        metavar = "N" if flag.type is int else "X" if flag.type is float else "VALUE"
        parser.add_argument(flag.name, *flag.aliases, type=flag.type, metavar=metavar, help=help)


def flag_overrides(arguments: argparse.Namespace, flags: Sequence[Flag]) -> list[str]:
    """Return the overrides of the flags in use, followed by the explicit overrides.

    Raises:
        ConfigError: a flag and an override set the same key.
    """
    from sam2kit.config.loading import override, override_key

    values: dict[str, tuple[str, Any]] = {}  # key -> flag and value
    for flag in flags:
        value = getattr(arguments, flag.name.strip("-").replace("-", "_"))
        if value is not None:
            values[flag.key] = (flag.name, value)
    if getattr(arguments, "wandb", None) is not None:
        values["use_wandb"] = ("--wandb" if arguments.wandb else "--no-wandb", arguments.wandb)
    for text in arguments.overrides:
        if override_key(text) in values:
            name = values[override_key(text)][0]
            message = f"{name} and {text} both set this key"
            raise ConfigError(message, key=override_key(text), hint="use only one of them")
    return [override(key, value) for key, (_, value) in values.items()] + arguments.overrides


def train_overrides(arguments: argparse.Namespace, before: Sequence[str] = ()) -> list[str]:
    """Return all overrides of a training command in order of increasing precedence.

    Args:
        arguments: parsed arguments of :func:`add_train_flags`.
        before: overrides with lower precedence than flags and explicit overrides.
    """
    debug = DEBUG_OVERRIDES if arguments.debug else ()
    return [*debug, *before, *flag_overrides(arguments, TRAIN_FLAGS)]


def train_config(
    arguments: argparse.Namespace, before: Sequence[str] = ()
) -> tuple[Config, list[str]]:
    """Load the configuration that training flags describe.

    Args:
        arguments, before: see :func:`train_overrides`.

    Returns:
        The configuration and its overrides.
    """
    from sam2kit.config.loading import load_config

    overrides = train_overrides(arguments, before)
    config = load_config(arguments.config, overrides)
    # use_wandb=false alone would not override trainer.logger=wandb in the file.
    if arguments.wandb is False and config.trainer.logger == "wandb":
        overrides.append("trainer.logger=tensorboard")
        config = load_config(arguments.config, overrides)
    return config, overrides
