"""Files that a killed process left behind are removed at the next start, and nothing else."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from sam2kit.utils import locks
from sam2kit.utils.errors import PipelineError
from sam2kit.utils.unfinished import publish, remove_leftovers, unfinished

KILLED = """
import os, signal, sys
from pathlib import Path
from sam2kit.utils import unfinished as u
out = Path(sys.argv[1])
moves = int(sys.argv[2])
replace = os.replace
def killed(old, new):
    global moves
    if Path(new).name != "published.json":
        if moves == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        moves -= 1
    replace(old, new)
with u.unfinished(out) as folder:
    (folder / "a.pt").write_text("weights")
    (folder / "a.yaml").write_text("model")
    os.replace = killed
    u.publish({folder / "a.pt": out, folder / "a.yaml": out.with_suffix(".yaml")})
"""


@pytest.mark.parametrize("moves", [0, 1])
def test_killed_process_leaves_nothing(tmp_path, moves):
    (tmp_path / "mine.pt").write_text("mine")
    out = tmp_path / "a.pt"
    command = [sys.executable, "-c", KILLED, str(out), str(moves)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert list(tmp_path.glob("a.pt.unfinished-*")) and out.exists() == (moves == 1)
    remove_leftovers(out)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.pt"]


def test_published_file_that_was_replaced_is_kept(tmp_path):
    out = tmp_path / "a.pt"
    subprocess.run([sys.executable, "-c", KILLED, str(out), "1"])
    out.write_text("the user's own file")
    remove_leftovers(out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_folders_of_others_are_kept(tmp_path):
    out = tmp_path / "out"
    mine, linked = tmp_path / "out.unfinished-1", tmp_path / "out.unfinished-2"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "run.lock").touch()
    linked.symlink_to(tmp_path / "target")
    with unfinished(out) as folder:
        (folder / "x").touch()
        remove_leftovers(out)  # of a process that is still running: this one
        assert (folder / "x").exists()
        publish({folder / "x": out})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"out", "out.unfinished-1", "out.unfinished-2", "target"}
    assert (mine / "thesis.tex").exists() and os.path.exists(linked / "run.lock")


def test_folders_of_processes_killed_between_two_steps(tmp_path):
    out = tmp_path / "out"
    # No process has this number: killed before it locked the folder, or when it had emptied it.
    (tmp_path / "out.unfinished-99999999").mkdir()
    with unfinished(out) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.parent.name]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [0, 3600], ids=["now", "clock-moved-back"])
def test_a_second_process_is_rejected_and_the_first_is_named(tmp_path, seconds):
    out = tmp_path / "out"
    code = "import sys; from pathlib import Path; from sam2kit.utils.unfinished import unfinished\n"
    code += "with unfinished(Path(sys.argv[1])): print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout.readline() == b"ready\n"
        folder = tmp_path / f"out.unfinished-{first.pid}"
        locked_at = time.time() + seconds
        os.utime(folder / "run.lock", (locked_at, locked_at))
        with pytest.raises(PipelineError, match=f"process {first.pid} ") as error:
            with unfinished(out):
                pass
        assert error.value.hint and folder.is_dir()
        first.kill()
    with unfinished(out):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("seconds", "rejected"), [(-10, True), (0, True), (10, False)])
def test_processes_that_start_at_the_same_time(tmp_path, monkeypatch, seconds, rejected):
    other = tmp_path / "out.unfinished-1"
    other.mkdir()
    times = {other: 100 + seconds}
    monkeypatch.setattr("sam2kit.utils.unfinished._lock_time", lambda path: times.get(path, 100))
    with locks.locked(other):  # has not created its files yet
        error = pytest.raises(PipelineError, match=str(other)) if rejected else nullcontext()
        with error, unfinished(tmp_path / "out"):
            pass


def test_without_locks_no_folder_of_others_is_removed(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.pt"), "0"])
    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with unfinished(tmp_path / "a.pt"):
        pass
    assert len(list(tmp_path.glob("a.pt.unfinished-*"))) == 1
