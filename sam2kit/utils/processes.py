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

# Otherwise torchrun leaves a directory of empty logs among the temporary files at each start.
NO_TORCHRUN_LOGS = f"--log-dir={os.devnull}"


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


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What terminals, ``timeout`` and SLURM send to a whole process group to stop a command."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM and SIGHUP, so that the process ends as after Ctrl-C.

    SIGHUP, which a closed terminal sends, stays ignored if it was ignored before (``nohup``).
    """
    # Python allows signal handlers only in the main thread.
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt(f"received {signal.Signals(number).name}")

    previous = {
        number: signal.signal(number, interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def without_stop_signals() -> Iterator[None]:
    """Keep :data:`STOP_SIGNALS` from child processes, so that only this process handles them.

    The signals are blocked in this thread, and children inherit the signal mask. This process
    receives them at the end of the block. Children that must exit when this process terminates
    them call :func:`end_when_terminated`.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def end_when_terminated() -> None:
    """Exit when the parent sends SIGTERM; ignore SIGTERM from others, such as ``timeout``.

    Call it in a child started within :func:`without_stop_signals`. A handler cannot tell who sent a
    signal, so a thread waits for it.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where the child ends with its parent
        threading.Thread(target=wait, name="end when terminated", daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
