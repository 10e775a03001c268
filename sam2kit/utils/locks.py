"""Lock a file to one process, which other processes can name.

The operating system releases the lock of a process that dies, so no lock is ever left behind.
"""

from __future__ import annotations

import fcntl
import os
import platform
import time
from pathlib import Path

import psutil

WAIT_FOR_LIVING, WAIT_FOR_DEAD = 1, 15  # seconds to try for


class LockedError(Exception):
    """Raised if another process holds a lock.

    Attributes:
        pid: its process number, as text.
        host: name of its machine.
    """

    def __init__(self, pid: str, host: str) -> None:
        super().__init__(f"locked by process {pid} on {host}")
        self.pid, self.host = pid, host


def acquire(path: Path) -> int:
    """Lock a file, which is created if it is missing, and write the process number into it.

    Another process may hold the lock for a moment, and a killed process releases it only when it
    and the processes that it started have ended, so this tries for some seconds.

    Returns:
        the file descriptor of the lock; closing it releases the lock.

    Raises:
        LockedError: another process holds the lock.
        OSError: the file cannot be created, or its file system has no locks.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(file)
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)
    except BaseException:
        os.close(file)
        raise
    return file


def is_locked(path: Path) -> bool:
    """Return whether a process has locked a file."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def _wait(file: int) -> None:
    start = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid, _, host = os.pread(file, 200, 0).decode(errors="replace").strip().partition(" ")
            wait = WAIT_FOR_LIVING if _may_be_alive(pid, host) else WAIT_FOR_DEAD
            if time.monotonic() > start + wait:
                raise LockedError(pid, host) from None
            time.sleep(0.1)


def _may_be_alive(pid: str, host: str) -> bool:
    """Return whether a process may be running; this is unknown for one on another machine."""
    return host != platform.node() or not pid.isdecimal() or psutil.pid_exists(int(pid))
