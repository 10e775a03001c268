"""Define the exceptions that sam2kit raises for input it cannot use.

An error names the configuration key, flag or file, its value, what was expected and the fix, both
as attributes and in its text. Only the command line exits the process: it prints the text and
returns exit code 2.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from typing import Any

MAX_VALUE = 300  # characters of a value or word in a message; paths may need 200
MAX_MESSAGE = 600  # characters of a message with all its values; about eight lines
MAX_HINT = 350  # characters of a single-line hint; a hint with a table is never shortened
MAX_PROBLEMS = 900  # characters of a multi-line message, such as combined errors
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

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows; a traceback would hide the message above it."""
        return [f"{type(self).__name__}: {self}", "(%debug opens the line that raised it)"]


def render(
    message: str, key: str | None, value: Any, expected: str | None, hint: str | None
) -> str:
    """Render the fields of an error as one line.

    Args:
        message, key, value, expected, hint: see :class:`SAM2KitError`.

    Returns:
        With ``expected``, ``MESSAGE: KEY=VALUE must be EXPECTED; HINT``; otherwise
        ``KEY: MESSAGE; HINT``. Empty fields are left out. Values and words of more than
        :data:`MAX_VALUE` characters are shortened in the middle; with the other limits of this
        module, a single-line text has fewer than 1,000 characters. Invisible characters, which
        names in a dataset may contain, become escape sequences.
    """
    key = key and _shorten(key)
    parts = [key, message]
    if expected is not None:
        parts = [message, f"{key}={_shorten(_repr(value))} must be {expected}"]
    text = ": ".join(part for part in parts if part)
    text = _readable(text, MAX_PROBLEMS if "\n" in text else MAX_MESSAGE)
    if not hint:
        return text
    max_hint = None if "\n" in hint else MAX_HINT
    return f"{text}; {_readable(hint, max_hint)}"


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python does not print integers of more than 4,300 digits
        return f"a {type(value).__name__} with too many digits"


def _readable(text: str, max_length: int | None) -> str:
    """Escape invisible characters, and shorten long words and the text."""
    from sam2kit.utils.text import visible_text  # here, so that importing sam2kit loads little

    text = visible_text(text, None, multiline=True)
    text = _LONG_WORD.sub(lambda match: _shorten(match[0]), text)
    return text if max_length is None else _shorten(text, max_length)


def _shorten(text: str, max_length: int = MAX_VALUE) -> str:
    half = max_length // 2
    return text if len(text) <= max_length else f"{text[:half]}…{text[-half:]}"


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
        super().__init__(message or _join(problems), **about)
        self._problems = list(problems)

    @property
    def problems(self) -> list[ConfigError]:
        """The combined errors, or a list of only this error if it combines none."""
        return self._problems or [self]


def _join(problems: Sequence[ConfigError]) -> str:
    """Return one line for each error, up to :data:`MAX_PROBLEMS` characters."""
    lines = [str(problem) for problem in problems]
    length = shown = 0
    for line in lines:
        length += len(line) + 1
        if shown and length > MAX_PROBLEMS - 40:  # reserve 40 for the last line
            break
        shown += 1
    more = len(lines) - shown
    return "\n".join(lines[:shown] + [f"and {more} more errors"] * (more > 0))


class DataError(SAM2KitError):
    """Raised for a video, mask or annotation file that is missing, unreadable or inconsistent."""


class CheckpointError(SAM2KitError):
    """Raised for a checkpoint that is missing, unsafe, truncated or made for another model."""


class TrainingError(SAM2KitError):
    """Raised if training cannot continue, such as after a non-finite loss or a dead process."""


class PipelineError(SAM2KitError):
    """Raised if a staged notebook fails or gets unknown parameters, or a directory is in use."""


class KernelKilled(PipelineError):
    """Raised if an external signal terminated a notebook's kernel; the stage can be resumed."""


# Errors of the operating system that a user can fix: the problem and its fix.
SYSTEM_ERRORS = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("your disk quota is exceeded", "delete some files, or write to another disk"),
    errno.EFBIG: ("the file is larger than allowed", "write to another disk, or see ulimit -f"),
    errno.EROFS: ("the file system is read-only", "write to another folder"),
    errno.EACCES: ("permission denied", "use a folder that you can read and write"),
    errno.EPERM: ("permission denied", "use a folder that you can read and write"),
    errno.EMFILE: (
        "too many open files",
        "raise the limit, for example with ulimit -n 4096, or use fewer DataLoader workers, for "
        "example with dataset.num_workers=0",
    ),
    errno.ENFILE: ("too many open files on this machine", "close other programs"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another path"),
    errno.EISDIR: ("the path is a folder, not a file", "choose another path"),
    errno.ENAMETOOLONG: ("the path is too long", "choose a shorter one"),
    errno.ENOENT: ("no such file or folder", "correct the path, or create its folder"),
    errno.EEXIST: ("the path exists already", "choose another path"),
    errno.EIO: ("the disk cannot be read or written", "check the disk, or use another one"),
    errno.ESTALE: ("the network drive has changed", "mount it again, then repeat the command"),
}


class SystemFault(SAM2KitError):
    """Raised by the command line for an operating system error with a known fix."""


def from_system(error: OSError) -> SystemFault | None:
    """Convert an OSError to an error with a hint; return None if no fix is known.

    Args:
        error: the error; the message includes its file name, if there is one.
    """
    # NumPy and Pillow report a short write, which only a full disk causes, without an errno.
    number = errno.ENOSPC if "requested and" in str(error) else error.errno
    if number not in SYSTEM_ERRORS:
        return None
    what, fix = SYSTEM_ERRORS[number]
    file = error.filename
    if isinstance(file, int):  # a file descriptor
        file = None
    return SystemFault(f"{os.fsdecode(file)}: {what}" if file else what, hint=fix)
