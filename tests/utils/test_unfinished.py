"""Files that a killed process left behind are removed at the next start, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
