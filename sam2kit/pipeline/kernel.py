"""A notebook executed by papermill on this interpreter, with nothing left over afterwards."""

from __future__ import annotations

import os
import re
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

from sam2kit.utils.errors import PipelineError


def execute(source: Path, target: Path, values: Mapping[str, Any], lock: int) -> None:
    """Execute a notebook; what its cells print appears as they print it.

    Args:
        target: the executed copy, kept also where a cell fails.
        values: for the cell tagged ``parameters``.
        lock: a file descriptor that the kernel holds as long as it lives.

    Raises:
        PipelineError: a cell failed, or the kernel died.
    """
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=dict(values),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            store_widget_state=False,
            kernel_manager_class=type("Kernel", (OwnKernelManager,), {"lock": lock}),
        )
    except PapermillExecutionError as error:
        raise PipelineError(
            f"notebook {source.stem} failed in cell {error.cell_index}: {error.ename}: "
            f"{_plain(error.evalue)}; the executed copy with the traceback is {target}"
        ) from error
    except Exception as error:  # a kernel that died or did not start: papermill has no common base
        raise PipelineError(
            f"notebook {source.stem} failed: {type(error).__name__}: {_plain(str(error))}; what "
            f"was executed is in {target}"
        ) from error


def _plain(text: str) -> str:
    """Without the colours that IPython puts into messages."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


class OwnKernelManager(AsyncKernelManager):
    """Starts the running interpreter, and ends the kernel together with the processes it started.

    A kernel specification named ``python3`` may belong to another interpreter, and a kernel that is
    ended leaves its children (loader workers, launched training) behind. Where this process is
    killed, a shell that waits for that ends them all.
    """

    lock: int
    _group: int | None = None
    _guard: subprocess.Popen[bytes] | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=str(RESOURCES), **get_kernel_dict())

    async def start_kernel(self, **arguments: Any) -> None:  # type: ignore[override]
        if self.has_trait("transport_encryption"):  # newer kernels warn of unencrypted messages
            self.transport_encryption = "auto"
        await super().start_kernel(pass_fds=(self.lock,), **arguments)
        self._group = getattr(self.provisioner, "pgid", None)
        if self._group is not None and self._guard is None:
            end = (
                f"cat; kill -s KILL -- -{self._group}"  # at the end of input, thus of this process
            )
            self._guard = subprocess.Popen(
                ["sh", "-c", end], stdin=subprocess.PIPE, start_new_session=True
            )

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        await super().cleanup_resources(restart)
        if self._guard is not None and not restart:
            self._guard.kill()
            self._guard.communicate()
        if self._group is not None and not restart and self._group != os.getpgrp():
            try:
                os.killpg(self._group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of them have ended, as they should
