"""Define the exceptions that sam2kit raises for input it cannot use.

An error names the configuration key, flag or file, its value, what was expected and the fix, both
as attributes and in its text. Only the command line exits the process: it prints the text and
returns exit code 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_VALUE = 300  # characters of a value or word in a message; paths may need 200
_LONG_WORD = re.compile(rf"\S{{{MAX_VALUE + 1},}}")


class SAM2KitError(Exception):
    """Base class of all errors of sam2kit; ``str(error)`` is the result of :func:`render`.

    Args:
        message: what is wrong; with ``expected``, the source of the key, such as a file.
        key: configuration key, flag or argument.
        value: value of ``key``.
        expected: what the value must be, such as ``at least 1``.
        hint: the fix, as an instruction.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        value: Any = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(render(message, key, value, expected, hint))
        self.key, self.value, self.expected, self.hint = key, value, expected, hint


def render(
    message: str, key: str | None, value: Any, expected: str | None, hint: str | None
) -> str:
    """Render the fields of an error as one line.

    Args:
        message, key, value, expected, hint: see :class:`SAM2KitError`.

    Returns:
        With ``expected``, ``MESSAGE: KEY=VALUE must be EXPECTED; HINT``; otherwise
        ``KEY: MESSAGE; HINT``. Empty fields are left out. An ellipsis replaces the middle of a
        value or a word of more than :data:`MAX_VALUE` characters.
    """
    key, message = key and _shorten(key), _LONG_WORD.sub(lambda m: _shorten(m[0]), message)
    if expected is None:
        parts = [key, message]
    else:
        parts = [message, f"{key}={_shorten(repr(value))} must be {expected}"]
    text = ": ".join(part for part in parts if part)
    return f"{text}; {hint}" if hint else text


def _shorten(text: str) -> str:
    half = MAX_VALUE // 2
    return text if len(text) <= MAX_VALUE else f"{text[:half]}…{text[-half:]}"


class ConfigError(SAM2KitError):
    """Raised for an invalid configuration key, value or combination of values.

    Args:
        message: see :class:`SAM2KitError`.
        problems: several errors to report together; the text has one line for each.
        about: the other fields of :class:`SAM2KitError`.
    """

    def __init__(
        self, message: str = "", *, problems: Sequence[ConfigError] = (), **about: Any
    ) -> None:
        super().__init__(message or "\n".join(map(str, problems)), **about)
        self._problems = list(problems)

    @property
    def problems(self) -> list[ConfigError]:
        """The combined errors, or a list of only this error if it combines none."""
        return self._problems or [self]


class DataError(SAM2KitError):
    """Raised for a video, mask or annotation file that is missing, unreadable or inconsistent."""


class CheckpointError(SAM2KitError):
    """Raised for a checkpoint that is missing, unsafe, truncated or of another model."""


class TrainingError(SAM2KitError):
    """Raised if training cannot continue, such as after a non-finite loss or a dead process."""


class PipelineError(SAM2KitError):
    """Raised if a staged notebook fails or gets unknown parameters, or a directory is in use."""


class KernelKilled(PipelineError):
    """Raised if a signal from outside ended a notebook's kernel; the stage can be resumed."""
