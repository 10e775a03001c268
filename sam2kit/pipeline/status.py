"""Write ``status.json`` and lock a run directory to one process.

A run holds a lock on its directory as long as it or its kernel lives. The operating system releases
the lock of a process that dies, so "running" in a directory without a lock means interrupted.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from sam2kit.utils.errors import PipelineError
from sam2kit.utils.files import write_text

SCHEMA_VERSION = 1


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold ``folder`` for this process and those that inherit the file descriptor that is given.

    Raises:
        PipelineError: another process holds it.
    """
    file = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(file, folder)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} {platform.node()}\n".encode())
        yield file
    finally:
        os.close(file)


def _lock(file: int, folder: Path) -> None:
    """Lock, after a moment where the state is being read or a killed holder is still ending."""
    start = time.monotonic()
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid, _, host = os.pread(file, 200, 0).decode().strip().partition(" ")
            wait = 1 if _may_live(pid, host) else 15
            if time.monotonic() > start + wait:
                raise PipelineError(
                    f"{folder} is in use by process {pid} on {host}; wait for it or end it, or "
                    "name another folder"
                ) from None
            time.sleep(0.1)


def _may_live(pid: str, host: str) -> bool:
    """Whether a process runs; of another machine's process this cannot be known."""
    return host != platform.node() or not pid.isdecimal() or psutil.pid_exists(int(pid))


def is_locked(folder: Path) -> bool:
    """Whether some process holds ``folder``."""
    try:
        file = os.open(folder / "run.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def read_status(run_dir: Path, held: bool = False) -> dict[str, Any] | None:
    """What ``status.json`` says (docs/pipeline.md), with what was killed as ``interrupted``.

    Args:
        held: by the caller itself, so that nobody else can be running.

    Returns:
        None where there is no such file.

    Raises:
        PipelineError: it is not one that this version writes.
    """
    path = run_dir / "status.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise PipelineError(f"{path} cannot be read ({error}); delete it to run anew") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise PipelineError(
            f"{path}: schema_version must be {SCHEMA_VERSION}; delete the file to run anew, or "
            "name another folder"
        )
    if content["state"] == "running" and (held or not is_locked(run_dir)):
        content["state"] = "interrupted"
        for stage in content["stages"].values():
            if stage["state"] == "running":
                stage |= {"state": "interrupted", "error": "its process was killed"}
    return content


class Status:
    """Write ``status.json`` at each change.

    Args:
        run_dir: the folder, which this process holds (:func:`locked`).
        names: the stages that are to run; what is known of others stays.
        about: further entries, such as the configuration file.
    """

    def __init__(self, run_dir: Path, names: Sequence[str], about: dict[str, Any]) -> None:
        self.path = run_dir / "status.json"
        self.before = (read_status(run_dir, held=True) or {"stages": {}})["stages"]
        done = {n: stage for n, stage in self.before.items() if stage["state"] == "done"}
        self.stages = self.before | {n: {"state": "waiting"} for n in names} | done
        self.names = names
        self.content = {"schema_version": SCHEMA_VERSION, "state": "running", **about}
        self.content |= {"pid": os.getpid(), "host": platform.node(), "started": _now()}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Record the state of the whole run; an exception sets it and is raised again."""
        with self._recorded(self.content):
            yield

    @contextmanager
    def of(self, name: str, **about: Any) -> Iterator[None]:
        """Record the state of one stage; an exception sets it and is raised again."""
        start = time.monotonic()
        stage = self.stages[name] = {"state": "running", "started": _now(), **about}
        for later in [n for n in self.stages if n > name]:  # what they found is no longer so
            self.stages[later] = {"state": "waiting" if later in self.names else "outdated"}
        with self._recorded(stage):
            try:
                yield
            finally:
                stage["seconds"] = round(time.monotonic() - start, 1)

    @contextmanager
    def _recorded(self, entry: dict[str, Any]) -> Iterator[None]:
        """Write the state of ``entry``, a run or a stage, at its start and at its end."""
        self.write()
        try:
            yield
            entry["state"] = "done"
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            entry |= {"state": "interrupted" if stopped else "failed", "error": str(error)}
            raise
        finally:
            entry["ended"] = _now()
            self.write()

    def write(self) -> None:
        """Write the file; ``heartbeat`` is the time of the last write."""
        stages = {name: self.stages[name] for name in sorted(self.stages)}
        content = self.content | {"heartbeat": _now(), "stages": stages}
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
