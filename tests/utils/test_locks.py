"""Directory locks: one process owns a directory, and the lock of a dead process is free."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from sam2kit.utils import locks
from sam2kit.utils.errors import PipelineError
from sam2kit.utils.locks import HOLDER, Owner, check_free, for_children, is_locked, locked

HOLD = """
import sys, time
from pathlib import Path
from sam2kit.utils.locks import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()


def test_second_process_is_rejected_and_the_first_is_named(tmp_path, other):
    start = time.monotonic()
    for attempt in (lambda: Owner().take(tmp_path), lambda: check_free(tmp_path)):
        with pytest.raises(PipelineError, match=f"in use by process {other.pid} on ") as error:
            attempt()
        assert error.value.hint
    assert is_locked(tmp_path) and time.monotonic() - start < 5


def test_lock_of_a_killed_process_does_not_block(tmp_path, other):
    other.kill()
    other.wait()
    assert not is_locked(tmp_path)
    check_free(tmp_path)
    with Owner() as owner:
        owner.take(tmp_path / "missing")
        assert not is_locked(tmp_path)
        owner.take(tmp_path)
        owner.take(tmp_path)  # once is enough
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_child_may_use_what_its_parent_has_locked(tmp_path):
    command = [sys.executable, "-c", HOLD.replace("time.sleep(60)", ""), str(tmp_path)]
    with locked(tmp_path):
        assert subprocess.run(command, env=for_children()).returncode == 0
        stranger = {k: v for k, v in os.environ.items() if k != HOLDER}
        done = subprocess.run(command, env=stranger, capture_output=True, text=True)
    assert done.returncode != 0 and f"process {os.getpid()} on " in done.stderr


def test_file_systems_without_locks_are_reported(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(locks.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    lines = []
    sink = locks.logger.add(lines.append)
    with locked(tmp_path):
        pass
    locks.logger.remove(sink)
    assert len(lines) == 1 and str(tmp_path) in lines[0]


def test_directory_that_is_not_writable(tmp_path):
    with pytest.raises(PipelineError, match="cannot be locked") as error, locked(tmp_path / "no"):
        pass
    assert error.value.hint
