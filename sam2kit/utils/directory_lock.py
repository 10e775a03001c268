"""Lock a directory to one process.

The operating system releases the lock of a process that dies, so no stale lock blocks a directory,
and a process can pass its lock on to a child (a notebook's kernel), which then holds it, too.
The package filelock can do neither name the holder nor pass a lock on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from loguru import logger

from sam2kit.utils.errors import PipelineError

LOCK_FILE = "run.lock"
HOLDER = "SAM2KIT_LOCK_HOLDER"
"""Environment variable of a child: process id and host of the process that locked for it."""
# File systems without locks, such as some network mounts, report one of these.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Lock a directory for this process, and for those that inherit the file descriptor.

    A process may lock a directory that is locked by the process in :data:`HOLDER` of its
    environment, such as a training that a pipeline started. On a file system without locks a
    warning is logged. The file ``run.lock`` remains; without a holder it is no lock.

    Args:
        folder: an existing directory.

    Yields:
        The file descriptor of the lock, or -1 if the process in :data:`HOLDER` has the lock.

    Raises:
        PipelineError: another process holds the lock, which the message names, or the directory is
            not writable.
    """
    file = _acquire(folder)
    if file is None:
        yield -1
        return
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)
        yield file
    finally:
        os.close(file)


class Owner(ExitStack):
    """Own a directory until the end of a ``with`` block, from when it exists."""

    _folder: Path | None = None

    def take(self, folder: Path | None) -> None:
        """Lock a directory, unless it does not exist yet or was taken before.

        Raises:
            PipelineError: see :func:`locked`.
        """
        if self._folder is None and folder is not None and folder.is_dir():
            self.enter_context(locked(folder))
            self._folder = folder


def check_free(folder: Path) -> None:
    """Reject a directory that another process has locked.

    Raises:
        PipelineError: see :func:`locked`.
    """
    if is_locked(folder):
        with locked(folder):
            pass


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked a directory."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:  # no such file, or one that this user cannot lock
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _acquire(folder: Path) -> int | None:
    """Acquire the lock; None: the process in :data:`HOLDER` has it.

    Another process may hold it for a moment to read the state, and a killed process releases it
    only when it and its kernel have ended, so try for some seconds.
    """
    start = time.monotonic()
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PipelineError(
            f"{folder} cannot be locked ({error.strerror})", hint="choose another directory"
        ) from error
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                logger.warning("{} cannot be locked ({})", folder, error.strerror)
                return file
            pid, _, host = os.pread(file, 200, 0).decode(errors="replace").strip().partition(" ")
            wait = 1 if _may_be_alive(pid, host) else 15
            # For a moment the file may still name the previous holder.
            if os.environ.get(HOLDER) == f"{pid} {host}":
                os.close(file)
                return None
            if time.monotonic() > start + wait:
                os.close(file)
                raise PipelineError(
                    f"{folder} is in use by process {pid} on {host}",
                    hint="wait for that process or end it, or choose another directory",
                ) from None
            time.sleep(0.1)


def for_children() -> dict[str, str]:
    """Return an environment whose processes may use the directories that this one has locked."""
    inherited = os.environ.get(HOLDER)
    return {**os.environ, HOLDER: inherited or f"{os.getpid()} {platform.node()}"}


def _may_be_alive(pid: str, host: str) -> bool:
    """Return whether a process may be running; this is unknown for one on another machine."""
    return host != platform.node() or not pid.isdecimal() or psutil.pid_exists(int(pid))
