"""Lock a file or a directory to one process, whose ID other processes can read.

The operating system releases the lock of a process that dies, so locks never become stale. A
process can share its lock with a child (a notebook's kernel). The package filelock supports neither
sharing a lock nor naming its holder.
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

from sam2kit.utils.errors import PipelineError, SAM2KitError
from sam2kit.utils.files import no_follow

LOCK_FILE = "run.lock"  # in a locked directory
HOLDER = "SAM2KIT_LOCK_HOLDER"
"""Environment variable of a child: process id and host of the process that locked for it."""
WAIT_FOR_LIVING, WAIT_FOR_DEAD = 1, 15  # seconds to wait for the holder
# File systems without locks, such as some network mounts, report one of these.
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(Exception):
    """Raised if another process holds a lock.

    Attributes:
        pid: process ID of the holder, as text.
        host: host name of the holder.
    """

    def __init__(self, pid: str, host: str) -> None:
        super().__init__(f"locked by process {pid} on {host}")
        self.pid, self.host = pid, host


def acquire(path: Path) -> int:
    """Create a file if it is missing, lock it, and write the process ID into it.

    Another process may hold the lock briefly, and a killed process releases it only when its
    children have exited too, so this function retries for some seconds.

    Returns:
        The file descriptor of the lock; closing it releases the lock.

    Raises:
        LockedError: another process holds the lock.
        OSError: the file cannot be created or is a link, or its file system has no locks.
    """
    file = no_follow(path, os.O_RDWR | os.O_CREAT)
    try:
        _wait(file)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


def take(
    folder: Path,
    name: str = LOCK_FILE,
    error: type[SAM2KitError] = PipelineError,
    key: str | None = None,
) -> int:
    """Lock a directory until the returned file is closed; see :func:`locked`.

    Returns:
        The file descriptor of the lock; -1 if the process in :data:`HOLDER` holds the lock, or if
        the file system has no locks.
    """
    about = {"key": key, "value": str(folder)} if key else {}
    try:
        return acquire(folder / name)
    except LockedError as fault:
        if os.environ.get(HOLDER) != f"{fault.pid} {fault.host}":
            raise error(
                f"{folder} is in use by process {fault.pid} on {fault.host}",
                hint="wait for that process, end it (for a notebook, shut down its kernel), or "
                "choose another directory",
                **about,
            ) from None
    except OSError as fault:
        if fault.errno not in _UNSUPPORTED:
            raise error(
                f"{folder} cannot be locked ({fault.strerror})",
                hint="choose another directory, or check permissions and free disk space",
                **about,
            ) from fault
        logger.warning(
            "{} cannot be locked ({}): do not use it in two processes at the same time",
            *(folder, fault.strerror),
        )
    return -1


@contextmanager
def locked(
    folder: Path,
    name: str = LOCK_FILE,
    error: type[SAM2KitError] = PipelineError,
    key: str | None = None,
) -> Iterator[int]:
    """Lock a directory for this process, and for processes that inherit the file descriptor.

    A process may also use a directory that the process in :data:`HOLDER` of its environment has
    locked; a pipeline starts training runs this way. On a file system without locks, a warning is
    logged. The lock file is not deleted; it locks nothing unless a process holds it.

    Args:
        folder: an existing directory.
        name: name of the lock file in it.
        error: class of the errors.
        key: flag or argument that names the directory, for errors. None (default): no key.

    Yields:
        The file descriptor of the lock; -1 if the process in :data:`HOLDER` holds the lock, or if
        the file system has no locks.

    Raises:
        SAM2KitError: of class ``error``: another process, which the message names, holds the lock,
            or the directory is not writable.
    """
    file = take(folder, name, error, key)
    try:
        yield file
    finally:
        if file >= 0:
            os.close(file)


class Owner(ExitStack):
    """Lock a directory, once it exists, until the end of a ``with`` block."""

    _folder: Path | None = None

    def take(self, folder: Path | None) -> None:
        """Lock a directory if it exists and this object has not locked it yet.

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


def is_locked(path: Path) -> bool:
    """Return whether a process has locked a file, or the file ``run.lock`` of a directory."""
    try:
        file = os.open(path / LOCK_FILE if path.is_dir() else path, os.O_RDWR)
    except OSError:  # no such file, or one that this user cannot lock
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    finally:
        os.close(file)
    return False


def for_children() -> dict[str, str]:
    """Return an environment for children that may use the directories locked by this process."""
    inherited = os.environ.get(HOLDER)
    return {**os.environ, HOLDER: inherited or f"{os.getpid()} {platform.node()}"}


def _wait(file: int) -> None:
    start = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, host = os.pread(file, 200, 0).decode(errors="replace").strip().partition(" ")
            wait = WAIT_FOR_LIVING if _may_be_alive(pid, host) else WAIT_FOR_DEAD
            # A child of the holder does not wait for it. For a moment, the file may still name the
            # previous holder, so this is checked again each time.
            if os.environ.get(HOLDER) == f"{pid} {host}" or time.monotonic() > start + wait:
                raise LockedError(pid, host) from None
            time.sleep(0.1)


def _may_be_alive(pid: str, host: str) -> bool:
    """Return whether a process may be running; which is unknown for another machine."""
    return host != platform.node() or not pid.isdecimal() or psutil.pid_exists(int(pid))
