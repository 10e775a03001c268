"""Write files atomically."""

from __future__ import annotations

import errno
import os
import platform
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

import psutil

TEMPORARY = r"\.part-[0-9a-f]{32}"
"""Pattern of the names of temporary files, to which :func:`atomic_write` may add a suffix."""
UNFINISHED_SECONDS = 3600  # an older temporary file was left by a killed process
BLOCK_SIZE = 4096  # bytes that are read at a time to find the last line of a file
_checked_folders: set[str] = set()


@contextmanager
def atomic_write(path: str | Path, fsync: bool = False, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends.

    Readers see either the old or the new file, never a partial one. If the block raises or writes
    nothing, ``path`` does not change. The temporary file is always removed. Several processes may
    write the same path at the same time; the last one determines its content. A killed process
    leaves its temporary file, which the next process that writes to the directory removes. An
    OSError without a file name, such as of a full disk, gets the name of ``path``.

    Args:
        path: a file in an existing directory.
        fsync: flush the content to disk before the replacement, so that even a power failure
            leaves the old or the new file.
        suffix: end of the temporary name, for libraries that choose the format by it.
    """
    temporary = _new_temporary(Path(path).parent, suffix)
    try:
        with errors_name(path, temporary):
            yield temporary
            if temporary.exists():
                if fsync:
                    with temporary.open("r+b") as file:
                        os.fsync(file.fileno())
                os.replace(temporary, path)
    finally:
        # os.replace does nothing if both names are hard links to the same file.
        temporary.unlink(missing_ok=True)


def _new_temporary(folder: Path, suffix: str = "") -> Path:
    """Remove the temporary files of killed processes from a directory, and return a new name."""
    if str(folder) not in _checked_folders:  # once per process: a folder may have many files
        _checked_folders.add(str(folder))
        remove_abandoned(folder)
    return temporary_path(folder, suffix)


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return a new name in a directory: process id, a checksum of the host, random digits."""
    return folder / f".part-{os.getpid():08x}{_host()}{uuid.uuid4().hex[:16]}{suffix}"


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of killed processes from a directory.

    Only regular files with a name of :func:`temporary_path` are removed, and only if their process
    has ended or, where this is unknown, an hour after their last change.
    """
    with suppress(OSError):  # the folder is missing or unreadable
        for entry in list(os.scandir(folder)):
            if re.match(TEMPORARY, entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # renamed by its process, or owned by another user
                    if _is_abandoned(Path(entry.path)):
                        os.unlink(entry.path)


def _is_abandoned(path: Path) -> bool:
    digits = path.name.removeprefix(".part-")
    if digits[8:16] == _host() and not psutil.pid_exists(int(digits[:8], 16)):
        return True
    # Its process may run on another machine, or its number may belong to another process by now.
    return path.lstat().st_mtime < time.time() - UNFINISHED_SECONDS


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def check_writable(path: str | Path) -> None:
    """Raise an OSError now if a file cannot be written, instead of after long work.

    Args:
        path: the file, which is not changed.
    """
    temporary = _new_temporary(Path(path).parent)
    with errors_name(path, temporary):
        try:
            temporary.touch()
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def errors_name(path: str | Path, temporary: Path | None = None) -> Iterator[None]:
    """Add the name of a file to an OSError without one, such as one for a full disk.

    Args:
        path: the file that is written.
        temporary: the temporary file, whose name is replaced by ``path`` in errors.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        # Raise a new error, because the attributes of PyAV's errors are read-only.
        raise OSError(error.errno, error.strerror, str(path)) from error


def no_follow(path: str | Path, flags: int) -> int:
    """Open a file as ``os.open`` does, but raise an OSError for a symbolic link.

    Directories may be downloads. A link in one, such as from a log file to a file of the user, must
    not decide which file is changed. Also an ``opener`` of ``open``.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        text = "a symbolic link is not followed to a file that is changed; delete the link"
        raise OSError(errno.ELOOP, text, str(path)) from None


def open_to_append(path: str | Path, errors: str = "strict") -> TextIO:
    """Open a UTF-8 text file for appending, unless it is a symbolic link."""
    return open(path, "a", encoding="utf-8", errors=errors, opener=no_follow)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; see :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def end_last_line(path: Path, is_complete: Callable[[str], bool]) -> str:
    """Complete or remove an unfinished last line, so that lines can be appended to a file.

    A killed writer may leave a line without a line break. The line break is added if the line is
    complete; otherwise the line is removed.

    Args:
        path: a file, which may be missing.
        is_complete: called with the text of the last line.

    Returns:
        The removed text; empty if nothing was removed.
    """
    try:
        with open(path, "r+b", opener=no_follow) as file:
            file.seek(_last_line_start(file))
            start, line = file.tell(), file.read().decode("utf-8", "replace")
            if not line:
                return ""
            if is_complete(line):
                file.write(b"\n")
                return ""
            file.truncate(start)
            return line
    except FileNotFoundError:
        return ""


def _last_line_start(file: BinaryIO) -> int:
    """Search backwards in blocks for the last line break, and return the position after it."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - BLOCK_SIZE, 0)
        file.seek(start)
        if (offset := file.read(end - start).rfind(b"\n")) >= 0:
            return start + offset + 1
        end = start
    return 0
