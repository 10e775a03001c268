"""Dispatch to one command and turn errors into exit codes.

``sam2kit --help`` answers without importing torch or Hydra. Exit codes: 0 done, 1 data that would
stop training (doctor), a step that does not fit (plan) or trials that failed (sweep), 2 input that
cannot be used, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import sam2kit
from sam2kit.cli.commands import (
    audit,
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
)
from sam2kit.utils.errors import ConfigError, SAM2KitError
from sam2kit.utils.text import suggest


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a malformed flag exits with 2, as argparse does."""
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
        return command.run(_parser(f"sam2kit {name}", command.help), argv[1:]) or 0
    except SAM2KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        kept = f"{stop}" if stop.args else "nothing was written"
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130


class Command(NamedTuple):
    """A function that adds its flags to a parser, parses and calls the library; and one line.

    What it returns is the exit code, None 0.
    """

    run: Callable[[argparse.ArgumentParser, list[str]], int | None]
    help: str


COMMANDS = {
    "train": Command(train, "fine-tune a model on your videos"),
    "submit": Command(submit, "train as a job of SLURM that goes on after it was taken away"),
    "audit": Command(audit, "show which modules get gradient, with train's flags; trains nothing"),
    "plan": Command(plan, "tell what memory and time a step will take, with train's flags"),
    "replay": Command(replay, "run a step again whose loss or gradient was not finite"),
    "features": Command(features, "keep the frozen encoder's features ahead of training"),
    "export": Command(export, "write weights for the plain sam2 package, and prove them"),
    "evaluate": Command(
        evaluate, "track the validation clips with a checkpoint and score the masks"
    ),
    "track": Command(track, "follow objects through a video of yours; writes masks and an overlay"),
    "doctor": Command(doctor, "read a data set once, and tell what is wrong with it"),
    "convert": Command(convert, "write a data set in another layout, without loss"),
    "run": Command(run, "run the staged notebooks: inspect data, debug prompts, train, evaluate"),
    "sweep": Command(sweep, "run the notebooks for each point of a grid; one table of all"),
}


def _overview() -> str:
    rows = "\n".join(f"  {name:<10}{command.help}" for name, command in COMMANDS.items())
    return (
        f"usage: sam2kit COMMAND ...    (or python -m sam2kit COMMAND ...)\n\n"
        f"Fine-tune SAM 2's memory modules on your own videos.\n\ncommands:\n{rows}\n\n"
        "sam2kit COMMAND --help shows a command's flags; sam2kit --version the version."
    )


def _parser(prog: str, help: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog, description=help.capitalize() + ".", allow_abbrev=False)
