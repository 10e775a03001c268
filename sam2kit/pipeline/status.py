"""Read and write ``status.json``, the state of a run.

A run locks its directory for as long as it or its kernel lives. The operating system releases the
lock when a process dies, so "running" in a directory without a lock means "interrupted".
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

from sam2kit.utils.errors import KernelKilled, PipelineError
from sam2kit.utils.files import write_text
from sam2kit.utils.locks import is_locked
from sam2kit.utils.readers import check_types, read_json

SCHEMA_VERSION = 1


class _Stage(TypedDict):
    state: str


class _Status(TypedDict):
    state: str
    stages: dict[str, _Stage]


def read_status(run_dir: Path, held: bool = False) -> dict[str, Any] | None:
    """Read ``status.json``; the state of a killed run becomes ``interrupted``.

    Args:
        run_dir: the run directory.
        held: whether the caller holds the lock, which means that no other process is running.

    Returns:
        the content, described in docs/pipeline.md, or None if there is no such file.

    Raises:
        PipelineError: the file is damaged or was written by another version.
    """
    path = run_dir / "status.json"
    try:
        content = read_json(path, hint="delete it to run all stages again", error=PipelineError)
    except FileNotFoundError:
        return None
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise PipelineError(
            f"{path} does not have version {SCHEMA_VERSION}",
            key="schema_version",
            hint="delete the file to run all stages again, or choose another directory",
        )
    check_types(content, _Status, path, "delete it to run all stages again", PipelineError)
    # A running process holds the lock, so "running" without a lock means that it was killed.
    if content["state"] == "running" and (held or not is_locked(run_dir)):
        content["state"] = "interrupted"
        for stage in content["stages"].values():
            if stage["state"] == "running":
                stage |= {"state": "interrupted", "error": "its process was killed"}
    return content


class Status:
    """Write ``status.json`` at each change of state.

    Args:
        run_dir: the run directory, which this process has locked.
        names: the stages to run; entries of other stages are kept.
        about: additional entries of the file, such as the configuration file.

    Attributes:
        before: entries of the stages before this run, by name.
        stages: current entries of the stages, by name.
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
    def of_run(self) -> Iterator[None]:
        """Record the state of the whole run; an exception is recorded and re-raised."""
        with self._record(self.content):
            yield

    @contextmanager
    def of_stage(self, name: str, **about: Any) -> Iterator[None]:
        """Record the state of one stage; an exception is recorded and re-raised."""
        start = time.monotonic()
        stage = self.stages[name] = {"state": "running", "started": _now(), **about}
        # Later stages read the results of this stage, so their own results are stale now.
        for later in [n for n in self.stages if n > name]:
            self.stages[later] = {"state": "waiting" if later in self.names else "outdated"}
        with self._record(stage):
            try:
                yield
            finally:
                stage["seconds"] = round(time.monotonic() - start, 1)

    @contextmanager
    def _record(self, entry: dict[str, Any]) -> Iterator[None]:
        """Write the entry of a run or stage at its start and at its end."""
        self.write()
        try:
            yield
            entry["state"] = "done"
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | KernelKilled)
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
