"""Run a command and convert errors to exit codes.

``sam2kit --help`` does not import torch or Hydra. Exit codes: 0: success; 1: data on which training
would fail (doctor), a step that does not fit into memory (plan) or failed trials (sweep); 2:
invalid input; 130: interrupted.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import sam2kit
from sam2kit.cli.commands import (
    annotate,
    audit,
    compare,
    convert,
    doctor,
    evaluate,
    export,
    features,
    plan,
    replay,
    run,
    submit,
    sweep,
    track,
    train,
    training_set,
)
from sam2kit.utils.errors import MAX_MESSAGE, ConfigError, SAM2KitError, from_system
from sam2kit.utils.text import close_names, suggest, visible_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: command line arguments. If None (default), ``sys.argv[1:]``.

    Returns:
        The exit code; see the module's docstring.

    Raises:
        SystemExit: raised by argparse, with code 2 for an invalid flag and 0 for ``--help``.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        print(f"sam2kit {sam2kit.__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name = argv[0]
    try:
        if name not in COMMANDS:
            raise ConfigError(f"unknown command {name!r}", hint=suggest(name, COMMANDS))
        command = COMMANDS[name]
        if not {"-h", "--help"} & set(argv):
            _check_home()
        return command.run(_parser(f"sam2kit {name}", command.help), argv[1:]) or 0
    except SAM2KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if (fault := from_system(error)) is None:
            raise
        print(f"error: {fault}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"Interrupted; {stop}" if stop.args else "Interrupted", file=sys.stderr)
        return 130


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        run: function that adds flags to the parser, parses the arguments and calls the library. It
            returns the exit code; None means 0.
        help: one line for the overview and for ``--help``.
    """

    run: Callable[[argparse.ArgumentParser, list[str]], int | None]
    help: str


COMMANDS = {
    "annotate": Command(annotate, "select objects with clicks and correct masks in JupyterLab"),
    "train": Command(train, "fine-tune a model on your videos"),
    "submit": Command(submit, "train as a SLURM job that resumes after preemption or timeout"),
    "audit": Command(audit, "check which modules get gradients, without training"),
    "plan": Command(plan, "estimate memory and time of a training step"),
    "replay": Command(replay, "rerun a step with a non-finite loss or gradient"),
    "features": Command(features, "precompute the features of the frozen image encoder"),
    "export": Command(export, "export and verify weights for the official sam2 package"),
    "evaluate": Command(evaluate, "track the validation videos and score the masks"),
    "compare": Command(compare, "compare evaluated runs by paired differences on common videos"),
    "track": Command(track, "track objects through videos and write masks and overlays"),
    "training-set": Command(training_set, "create a training set from annotated or tracked masks"),
    "doctor": Command(doctor, "check a dataset and report problems"),
    "convert": Command(convert, "convert a dataset to another layout without loss"),
    "run": Command(run, "run the staged notebooks: inspect data, debug prompts, train, evaluate"),
    "sweep": Command(sweep, "run the notebooks for every point of a grid and rank the results"),
}


def _overview() -> str:
    """Return the help text shown without a command."""
    rows = "\n".join(f"  {name:<14}{command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: sam2kit COMMAND ...    (or python -m sam2kit COMMAND ...)\n\n"
        f"Fine-tune SAM 2's memory modules on your own videos.\n\ncommands:\n{rows}\n\n"
        "sam2kit COMMAND --help shows the flags of a command; sam2kit --version shows the version."
    )


def _check_home() -> None:
    """Support user IDs without a system account, as in ``docker run --user 1234``.

    Raises:
        ConfigError: there is no home directory, which torch, matplotlib and Jupyter need.
    """
    if os.path.expanduser("~") == "~":
        raise ConfigError(
            f"your home directory is unknown: HOME is not set, and user ID {os.getuid()} has no "
            "account on this system",
            key="HOME",
            hint="set it to a writable directory, for example: export HOME=/tmp (docker run -e "
            "HOME=/tmp)",
        )
    try:
        getpass.getuser()
    except (KeyError, OSError):  # torch uses the user name for a cache directory
        os.environ["USER"] = f"user{os.getuid()}"


# Flags of other tools that are not spelled like the flag of this one.
OTHER_NAMES = {
    "--device": "--accelerator",
    "--gpus": "--devices",
    "--masks": "dataset.masks_path=FOLDER",
    "--weights": "--model-checkpoint",
}


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors name similar flags.

    Errors are truncated to :data:`MAX_MESSAGE` characters.
    """

    def error(self, message: str) -> NoReturn:
        message = visible_text(message, MAX_MESSAGE)
        if message.startswith("unrecognized arguments: "):
            message += self._similar_flags(message)
        super().error(message)

    def _similar_flags(self, message: str) -> str:
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        similar = [
            OTHER_NAMES.get(flag) or next(iter(close_names(flag, known)), None)
            for flag in re.findall(r"(?<!\S)--[\w-]+", message)
        ]
        names = [name for name in similar if name in known or "=" in (name or "")]
        return f"; did you mean {', '.join(dict.fromkeys(map(str, names)))}?" if names else ""


def _parser(prog: str, help: str) -> argparse.ArgumentParser:
    """Return a command's parser, without abbreviations, so that new flags cannot break scripts."""
    # capitalize() would also lower the other letters, as in SLURM.
    description = f"{help[:1].upper()}{help[1:]}."
    return _Parser(prog, description=description, allow_abbrev=False)
