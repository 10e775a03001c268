"""Processes that do not outlive the one that started them.

``python -m sam2kit.utils.processes MODULE ARGUMENT …`` runs a module as ``python -m MODULE`` does,
and ends as soon as the process that holds the other end of its standard input has gone.
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
    """Run a module in a process of its own, which ends with this one.

    Interrupts from the terminal do not reach it, so that the caller decides what to do.

    Args:
        module: as for ``python -m``; the same interpreter runs it.
        options: ``subprocess.Popen``'s, such as ``env``.
    """
    command = [sys.executable, "-m", "sam2kit.utils.processes", module, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def end_with_parent() -> None:
    """Exit at once when the other end of standard input is closed, as when its holder dies."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, from which everything unwinds in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
