"""Lock a directory to one process, with a lock that ends when the process dies."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sam2kit.utils.errors import PipelineError

LOCK_FILE = "run.lock"


@contextmanager
def locked(folder: Path, name: str = LOCK_FILE) -> Iterator[int]:
    """Lock a directory for this process, and for those that inherit the file descriptor.

    Args:
        folder: the directory.
        name: name of the lock file in it, which stays there.

    Yields:
        the file descriptor of the lock.

    Raises:
        PipelineError: another process holds the lock.
    """
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, folder)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {platform.node()}\n".encode())
        yield file
    finally:
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    """Acquire the lock.

    Another process may hold it for a moment to read the state, and a killed process releases it
    only when it and its kernel have ended, so try for some seconds.
    """
    start = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid, _, host = os.pread(file, 200, 0).decode().strip().partition(" ")
            wait = 1 if _may_be_alive(pid, host) else 15
            if time.monotonic() > start + wait:
                raise PipelineError(
                    f"{folder} is in use by process {pid} on {host}",
                    hint="wait for that process or end it, or choose another directory",
                ) from None
            time.sleep(0.1)


def _may_be_alive(pid: str, host: str) -> bool:
    """Return whether a process may be running; this is unknown for one on another machine."""
    return host != platform.node() or not pid.isdecimal() or psutil.pid_exists(int(pid))


def is_locked(folder: Path, name: str = LOCK_FILE) -> bool:
    """Return whether a process has locked a directory."""
    try:
        file = os.open(folder / name, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
