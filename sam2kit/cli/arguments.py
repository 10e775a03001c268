"""The table of flags, and the texts of the command line as values.

A flag is a row: it sets one key of the configuration, whose help is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sam2kit.config.schema import Config, options
from sam2kit.utils.errors import ConfigError

OVERRIDES_HELP = "key=value and group=choice, as many as needed (Hydra's grammar)"
MOST_WORKERS = 8

DEBUG_OVERRIDES = (
    "debug=true",
    "log_level=DEBUG",
    "dataset.num_workers=0",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
)


class Flag(NamedTuple):
    """A flag that sets one key of the configuration; its help is the key's own."""

    name: str
    key: str
    type: Callable[[str], Any] = str


def named_file(text: str) -> tuple[str, str]:
    """Split ``NAME=FILE``."""
    name, _, file = text.partition("=")
    if not file or not re.fullmatch(r"(?=.*[A-Za-z])[\w.+-][\w .+-]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, with a letter in NAME")
    return name, file


def numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not such as 0.05,0.1,0.2") from None


def parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def stages(text: str) -> list[int]:
    stages: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is not such as 1-4, 3 or 1,4")
        stages.extend(range(int(first), int(last or first) + 1))
    if not stages or sorted(set(stages)) != stages:
        raise argparse.ArgumentTypeError(f"{text!r} does not name stages in rising order")
    return stages


TRAIN_FLAGS = (
    Flag("--lr", "optimizer.lr", float),
    Flag("--max-epochs", "trainer.max_epochs", int),
    Flag("--batch-size", "dataset.batch_size", int),
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
    Flag("--data-path", "valdataset.data_path"),
    Flag("--protocol", "evaluation.protocol"),
    Flag("--noise-levels", "evaluation.noise_levels", numbers),
    Flag("--seed", "seed", int),
    Flag("--accelerator", "trainer.accelerator"),
)


DOCTOR_FLAGS = (
    Flag("--image-size", "dataset.image_size", int),
    Flag("--clip-length", "dataset.video_clip_length", int),
)


def add_data_flags(parser: argparse.ArgumentParser, name: str, words: str) -> None:
    """Add the flags that say which data to read, and how many processes do it."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar=words,
        help=f"{name}: a folder, a video file or a COCO JSON, read as it is; without one, the "
        f"configuration's data. {OVERRIDES_HELP}",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file that says how to read data")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, MOST_WORKERS),
        metavar="N",
        help="at most so many processes (default: %(default)s)",
    )


def add_checkpoint_flag(parser: argparse._ActionsContainer, required: bool = False) -> None:
    parser.add_argument(
        "--model-checkpoint",
        required=required,
        metavar="FILE",
        help="a run, a .ckpt, a .pt or a name",
    )


def paths_and_overrides(
    words: Sequence[str], optional: str, required: str | None = None
) -> tuple[list[str], list[str]]:
    """Positional arguments: paths, one of which may be left out, and overrides with their "=".

    Raises:
        ConfigError: too few or too many paths.
    """
    paths = [word for word in words if "=" not in word or Path(word).exists()]
    least = 0 if required is None else 1
    if not least <= len(paths) <= least + 1:
        names = f"{optional} and {required}, or {required} alone" if required else f"one {optional}"
        raise ConfigError(f"{len(paths)} paths given, {paths}; give {names} with --config")
    return paths, [word for word in words if word not in paths]


def add_train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file; default: configs/config.yaml"
    )
    add_flags(parser, TRAIN_FLAGS)
    parser.add_argument(
        "--wandb",
        action=argparse.BooleanOptionalAction,
        help="log to Weights & Biases (use_wandb); --no-wandb also overrules trainer.logger=wandb",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="one epoch of two batches, no loader workers, debug log; the run is marked as such",
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES_HELP)


def add_submit_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a job, and of training."""
    parser.add_argument(
        "--run-dir", type=Path, required=True, metavar="DIR", help="a run there goes on"
    )
    parser.add_argument("--hours", type=float, default=24.0, help="of a job; then it queues again")
    parser.add_argument("--partition", metavar="NAME", help="SLURM's; default: its own default")
    parser.add_argument(
        "--cluster", choices=["slurm", "local"], default="slurm", help="local: on this machine"
    )
    add_train_flags(parser)


def add_pipeline_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        type=parameter,
        metavar="NAME=VALUE",
        help="a notebook parameter; the value is JSON, else text; may be repeated",
    )
    parser.add_argument(
        "--stages", type=stages, default=stages("1-4"), help="such as 1-4 (default), 3 or 1,4"
    )
    add_train_flags(parser)


def add_flags(parser: argparse.ArgumentParser, flags: Sequence[Flag]) -> None:
    known = options()
    for flag in flags:
        help = f"{known[flag.key].metadata['help']} ({flag.key})".replace("%", "%%")
        metavar = "N" if flag.type is int else "X" if flag.type is float else "VALUE"
        parser.add_argument(flag.name, type=flag.type, metavar=metavar, help=help)


def given_overrides(arguments: argparse.Namespace, flags: Sequence[Flag]) -> list[str]:
    """Return the overrides that the flags mean, then the explicit ones.

    Raises:
        ConfigError: a key is given both ways.
    """
    from sam2kit.config.loading import override, override_key

    given: dict[str, tuple[str, Any]] = {}
    for flag in flags:
        value = getattr(arguments, flag.name.strip("-").replace("-", "_"))
        if value is not None:
            given[flag.key] = (flag.name, value)
    if getattr(arguments, "wandb", None) is not None:
        given["use_wandb"] = ("--wandb" if arguments.wandb else "--no-wandb", arguments.wandb)
    for text in arguments.overrides:
        if override_key(text) in given:
            name = given[override_key(text)][0]
            raise ConfigError(f"{name} and {text} both set {override_key(text)}; drop one of them")
    return [override(key, value) for key, (_, value) in given.items()] + arguments.overrides


def train_overrides(arguments: argparse.Namespace, before: Sequence[str] = ()) -> list[str]:
    """Return ``before`` and the overrides that training's flags mean."""
    debug = DEBUG_OVERRIDES if arguments.debug else ()
    return [*debug, *before, *given_overrides(arguments, TRAIN_FLAGS)]


def train_config(
    arguments: argparse.Namespace, before: Sequence[str] = ()
) -> tuple[Config, list[str]]:
    """The configuration that training's flags describe, and the overrides that make it."""
    from sam2kit.config.loading import load_config

    overrides = train_overrides(arguments, before)
    config = load_config(arguments.config, overrides)
    if arguments.wandb is False and config.trainer.logger == "wandb":
        overrides.append("trainer.logger=tensorboard")
        config = load_config(arguments.config, overrides)
    return config, overrides
