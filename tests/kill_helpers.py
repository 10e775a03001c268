"""Run commands in processes that kill themselves at a chosen moment.

A server imports the package once and forks a child per command, so that a case takes about as long
as the work of the command. A child is killed by SIGKILL immediately before its Nth change of the
output folder (a file that it opens for writing, renames or deletes, or a folder), which reaches
every moment between two steps of writing. A time in seconds reaches the moments in between.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What the commands import; a child would need seconds for it.
IMPORTED = (
    "sam2kit.cli.main",
    "sam2kit.data.conversion",
    "sam2kit.data.doctor.report",
    "sam2kit.evaluation.evaluate",
    "sam2kit.models.exporter",
    "sam2kit.models.feature_precompute",
    "sam2kit.tracking.tracking_job",
    "sam2kit.tracking.training_set_job",
    "sam2kit.training.trainer",
    "sam2kit.widgets.prompt_session",
    "torch.utils.tensorboard",
)
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate")
MARKER = "SAM2KIT_KILL_TEST"  # environment variable by which remaining processes are found


class Server:
    """Start commands in children of a process that has imported the package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, MARKER: str(folder), "TMPDIR": str(folder / "tmp")}
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        (folder / "tmp").mkdir()
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )

    def close(self) -> None:
        self.process.communicate()

    @property
    def log(self) -> Path:
        """The output of the last command."""
        return self.folder / "output.log"

    def run(
        self,
        command: list[str] | str,
        out: Path,
        kill_at: int = 0,
        seconds: float = 0.0,
    ) -> tuple[int, int, str]:
        """Run a command to its end, or until it is killed.

        Args:
            command, out, kill_at: see :meth:`start`.
            seconds: seconds after which to kill it; 0: never.

        Returns:
            See :meth:`wait`.
        """
        pid = self.start(command, out, kill_at)
        if seconds:
            time.sleep(seconds)
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended
        return self.wait()

    def start(self, command: list[str] | str, out: Path, kill_at: int = 0) -> int:
        """Start a command in a process group of its own, and return its process number.

        Args:
            command: arguments of ``sam2kit``, or Python code.
            out: the folder whose changes are counted, or the beginning of the name of files.
            kill_at: number of the change before which to kill it; 0: none.
        """
        self.log.unlink(missing_ok=True)
        request = {"command": command, "out": str(out), "kill_at": kill_at, "log": str(self.log)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait(self) -> tuple[int, int, str]:
        """Wait for the end of the started command.

        Returns:
            The exit code (negative: a signal), the number of changes, and the output.
        """
        assert self.process.stdout is not None
        code, changes = map(int, self.process.stdout.readline().split())
        return code, changes, self.log.read_text(errors="replace")

    def remaining(self) -> list[int]:
        """Return the processes of commands that have ended, without the server itself."""
        marker = f"{MARKER}={self.folder}".encode()
        pids = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_ours = marker in (folder / "environ").read_bytes().split(b"\0")
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:  # it ended in the meantime, or belongs to another user
                continue
            if is_ours and state != "Z" and int(folder.name) != self.process.pid:
                pids.append(int(folder.name))
        return pids

    def wait_for_the_end(self, seconds: float = 60.0) -> list[int]:
        """Wait until no process remains, and return those that do."""
        deadline = time.monotonic() + seconds
        while (pids := self.remaining()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return pids


def count_changes(out: str, kill_at: int) -> Callable[[], int]:
    """Count the changes of a folder by this process, and kill it before one of them."""
    process, changes = os.getpid(), 0
    temporary = os.path.join(os.path.dirname(out), ".part-")  # of a file with its own directory

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        if event == "open":
            is_change = bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        else:
            is_change = event in CHANGES
        if not is_change or os.getpid() != process:
            return
        paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        if any(os.path.abspath(os.fsdecode(path)).startswith((out, temporary)) for path in paths):
            changes += 1
            if changes == kill_at:
                os.kill(process, signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: changes


def serve() -> None:
    """Fork a child for each line of standard input, and print its pid and its exit code."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        if not (pid := os.fork()):
            os.setsid()
            return work(request, write)
        os.close(write)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        changes = os.read(read, 20).decode() or "0"
        os.close(read)
        print(os.waitstatus_to_exitcode(status), changes, flush=True)


def work(request: dict[str, Any], report: int) -> None:
    """Run a command in a forked child, and exit with its code."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
    for old, new in ((nowhere, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    changes = count_changes(request["out"], request["kill_at"])
    command = request["command"]
    try:
        if isinstance(command, str):
            exec(command, {"__name__": "__main__"})
            code = 0
        else:
            from sam2kit.cli.main import main

            code = main(command)
    finally:
        os.write(report, str(changes()).encode())
    raise SystemExit(code)


if __name__ == "__main__":
    serve()
