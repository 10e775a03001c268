"""Execute a notebook with papermill on this interpreter, then stop all its processes."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError

from sam2kit.utils.errors import KernelKilled, PipelineError
from sam2kit.utils.locks import for_children

MIN_FILES = 128  # open files that this process and a kernel need


def execute(source: Path, target: Path, values: Mapping[str, Any], lock: int) -> None:
    """Execute a notebook and print the output of its cells as it arrives.

    Args:
        source: the notebook.
        target: the executed copy; it is also written if a cell fails.
        values: values for the cell tagged ``parameters``.
        lock: file descriptor that the kernel inherits and keeps open, so that the lock on it
            outlives this process.

    Raises:
        PipelineError: a cell failed, or the kernel died.
        KernelKilled: a signal killed the kernel.
    """
    exit_codes: list[int] = []
    attributes = {"lock": lock, "exit_codes": exit_codes}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < MIN_FILES:  # below 0: no limit
        raise PipelineError(
            f"a notebook needs {MIN_FILES} open files, but the limit is {files}",
            hint="raise the limit with: ulimit -n 4096",
        )
    if target.is_symlink():  # it is replaced, not the file that it leads to
        target.unlink()
    try:
        papermill.execute_notebook(
            literal_path(source),
            literal_path(target),
            parameters=dict(values),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            store_widget_state=False,
            kernel_manager_class=type("Kernel", (InterpreterKernelManager,), attributes),
        )
    except PapermillExecutionError as error:
        raise PipelineError(
            f"notebook {source.stem} failed in cell {error.cell_index}: {error.ename}: "
            f"{_plain(error.evalue)}",
            hint=f"see the traceback in the executed copy {target}",
        ) from error
    # The kernel died or did not start; papermill has no common base class for these errors.
    except Exception as error:
        # A negative code is a signal, for example from the system when memory is full.
        killed = any(code < 0 for code in exit_codes)
        raise (KernelKilled if killed else PipelineError)(
            f"notebook {source.stem} failed: {type(error).__name__}: {_plain(str(error))}",
            hint=f"see the cells executed so far in {target}",
        ) from error


def _plain(text: str) -> str:
    """Remove IPython's colour escape sequences from a message."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


class InterpreterKernelManager(AsyncKernelManager):
    """Start a kernel with the current interpreter and stop it together with its child processes.

    An installed kernel specification named ``python3`` may belong to another interpreter. When a
    kernel exits, its children (DataLoader workers, training ranks) keep running, so the whole
    process group is killed. If this process is killed, a waiting shell kills the group and removes
    the connection file.
    """

    lock: int
    exit_codes: list[int]
    _group: int | None = None
    _guard: subprocess.Popen[bytes] | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=str(RESOURCES), **get_kernel_dict())

    async def start_kernel(self, **arguments: Any) -> None:  # type: ignore[override]
        if self.has_trait("transport_encryption"):  # avoid a warning about unencrypted messages
            self.transport_encryption = "auto"
        arguments["env"] = {**(arguments.get("env") or {}), **for_children()}
        await super().start_kernel(pass_fds=(self.lock,), **arguments)
        self._group = getattr(self.provisioner, "pgid", None)
        if self._group is not None and self._guard is None:
            # cat returns when its standard input is closed, that is, when this process exits.
            end = 'cat; kill -s KILL -- "-$0"; rm -f -- "$1"'
            self._guard = subprocess.Popen(
                ["sh", "-c", end, str(self._group), self.connection_file],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    async def is_alive(self) -> bool:  # type: ignore[override]
        alive = await super().is_alive()
        code = await self.provisioner.poll() if self.provisioner is not None else None
        if code is not None:
            self.exit_codes.append(code)
        return alive

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        await super().cleanup_resources(restart)
        # A restarted kernel is in the same group, so keep the guard.
        if self._guard is not None and not restart:
            self._guard.kill()
            self._guard.communicate()
        if self._group is not None and not restart and self._group != os.getpgrp():
            try:
                os.killpg(self._group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all processes of the group have already exited


def literal_path(path: Path) -> str:
    """Escape a path for papermill, which replaces names in braces with parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")
