"""Start processes that exit when their parent process exits.

``python -m sam2kit.utils.processes MODULE ARGUMENT …`` runs a module like ``python -m MODULE`` and
exits as soon as the other end of its standard input is closed. The operating system closes it when
the parent dies, even by SIGKILL.
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def start(module: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Run a module in a new process that exits when this process exits.

    The new process has its own session, so Ctrl-C in the terminal reaches only the caller.

    Args:
        module: module name as for ``python -m``; the same interpreter runs it.
        arguments: command line arguments of the module.
        options: keyword arguments of ``subprocess.Popen``, such as ``env``.
    """
    command = [sys.executable, "-m", "sam2kit.utils.processes", module, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def end_with_parent() -> None:
    """Start a thread that exits this process when its standard input is closed."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        # sys.exit would only end this thread.
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, so that the process shuts down as after Ctrl-C."""
    # Python allows signal handlers only in the main thread.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("received SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
