"""The exceptions that sam2kit raises for input it cannot use.

An error names the configuration key, flag or file, its value, what was expected and the fix, as
fields and in its text. The command line prints the text and exits with code 2; nothing else in the
library exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class SAM2KitError(Exception):
    """Base class of the errors below; ``str`` gives the text that :func:`render` makes.

    Args:
        message: what is wrong; with ``expected`` the place of the key, such as a file.
        key: the configuration key, flag or argument.
        value: what it was set to.
        expected: what it must be, such as ``at least 1``.
        hint: what to do about it.
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
    """Return ``KEY=VALUE must be EXPECTED; HINT`` or ``KEY: MESSAGE; HINT``, without what is None.

    With ``expected`` the message comes first: ``FILE: KEY=VALUE must be EXPECTED``.
    """
    parts = [key, message] if expected is None else [message, f"{key}={value!r} must be {expected}"]
    text = ": ".join(part for part in parts if part)
    return f"{text}; {hint}" if hint else text


class ConfigError(SAM2KitError):
    """A configuration key, value or combination that cannot be used.

    Args:
        problems: the errors that a check found, where there are several; the text is a line each.
    """

    def __init__(
        self, message: str = "", *, problems: Sequence[ConfigError] = (), **about: Any
    ) -> None:
        super().__init__(message or "\n".join(map(str, problems)), **about)
        self._problems = list(problems)

    @property
    def problems(self) -> list[ConfigError]:
        """The single errors; this one alone unless it combines several."""
        return self._problems or [self]


class DataError(SAM2KitError):
    """A video, mask or annotation file that is missing, unreadable or inconsistent."""


class CheckpointError(SAM2KitError):
    """A checkpoint that is missing, unsafe, truncated or made for another model."""


class TrainingError(SAM2KitError):
    """A training that cannot continue: a process failed, or a loss or gradient is not finite."""


class PipelineError(SAM2KitError):
    """A staged notebook that failed or was called with parameters it does not have."""
