"""Every command is killed at any moment, and the next call finishes as if nothing had happened.

The results, files included, equal those of an undisturbed call, and no process remains. A case is
killed before one of its changes of the output folder, or at a time; see ``kill_helpers``. The
default tests kill each command twice in a row; the slow ones 25 times, each in a new folder.
``sam2kit run`` and ``sam2kit sweep`` work in other processes, so they are killed by the clock.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command_helpers import COMMANDS
from data_helpers import make_davis
from kill_helpers import Server

KILLS = 25
# Values that differ between two undisturbed calls.
TIMES = ("seconds", "added", "created", "started", "ended", "heartbeat", "pid", "revision")
ANNOTATE = """
from sam2kit.data.build import open_source
from sam2kit.models.checkpoints import load_model
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.widgets import prompt_session

prompt_session.SAVE_SECONDS = 0
source, store = open_source({data!r}), AnnotationStore({out!r})
model = load_model("nano")[1]
session = prompt_session.PromptSession(source, 0, model, store=store, model_name="nano")
for t in (0, 3):
    if (1, t) not in session.prompts:
        session.click(1, t, 4, 4)
session.rename(1, "bear")
list(session.propagate())
session.accept(range(session.num_frames))
"""


def annotate(root: Path, out: Path) -> str:
    data = make_davis(root / "data", {"a": 6})
    return ANNOTATE.format(data=str(data), out=str(out))


ALL: dict[str, Callable[[Path, Path], list[str] | str]] = {**COMMANDS, "annotator": annotate}
# Long ones: `make test` has other tests of their kills.
LONG = {"train", "evaluate", "export"}


def content(folder: Path) -> dict[str, Any]:
    """Return everything in a folder in comparable form, by path."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if ".tfevents." in name:  # TensorBoard writes one per process
            continue
        files[name] = None if path.is_dir() else comparable(path)
    return files


def comparable(path: Path) -> Any:
    """Return the content of a file without times and process numbers."""
    if path.suffix in (".log", ".lock") or path.name.endswith("lock"):
        return None
    if path.suffix in (".ckpt", ".pt"):
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        keys = ("model", "state_dict", "optimizer_states", "global_step")
        return digest({key: loaded.get(key) for key in keys})
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.suffix == ".jsonl":  # of a frame, the last line applies
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {row["frame"]: row for row in rows}
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, dict):
        return {key: digest(item) for key, item in value.items()}
    return [digest(item) for item in value] if isinstance(value, list | tuple) else value


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    assert server.wait_for_the_end() == []
    server.close()


# The proof in a new process takes several seconds; the slow tests include it.
QUICK_EXPORT = """
from sam2kit.models import exporter
exporter.prove = lambda *_: (0.0, 0.0)
exporter.export("nano", {out!r})
"""


@dataclass
class Case:
    """A command, and the result of an undisturbed call in the same folder."""

    server: Server
    command: list[str] | str
    out: Path
    expected: dict[str, Any]
    changes: int
    seconds: float

    def kill(self, at: int = 0, seconds: float = 0.0) -> None:
        """Run the command until it is killed; it may end before."""
        code, _, log = self.server.run(self.command, self.out.parent, at, seconds)
        assert code in (0, -signal.SIGKILL), log
        assert self.server.wait_for_the_end() == []

    def check_next_call(self, what: str) -> None:
        """Run the command to its end, and compare all files with those of an undisturbed call."""
        self.finish()
        assert content(self.out.parent) == self.expected, what
        # A killed process leaves the folder in which its loaders would have made sockets.
        left = (path for path in (self.server.folder / "tmp").iterdir())
        assert not [path for path in left if not path.name.startswith("pymp-")], what

    def finish(self) -> None:
        code, _, log = self.server.run(self.command, self.out.parent)
        # A result that was complete before the kill is not overwritten, as in any second call.
        is_complete = " exists " in log and content(self.out.parent) == self.expected
        assert code == 0 or is_complete, log

    def clear(self) -> None:
        shutil.rmtree(self.out.parent)
        self.out.parent.mkdir()


def prepare(server: Server, root: Path, name: str, quick: bool = False) -> Case:
    out = root / "results" / "out"
    out.parent.mkdir()
    command = ALL[name](root, out)
    if quick and name == "export":
        command = QUICK_EXPORT.format(out=f"{out}.pt")
    start = time.monotonic()
    code, changes, log = server.run(command, out.parent)
    seconds = time.monotonic() - start
    assert code == 0, log
    case = Case(server, command, out, content(out.parent), changes, seconds)
    case.clear()
    return case


# Killed trainings and evaluations are also in test_killed_runs, test_resume and test_evaluate.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in ALL],
)
def test_a_command_killed_twice_finishes_as_undisturbed(server, tmp_path, name):
    case = prepare(server, tmp_path, name, quick=True)
    generator = random.Random(name)
    assert case.changes > 2
    for part in (0.3, 0.7):
        case.kill(max(1, round(case.changes * generator.uniform(part - 0.2, part + 0.2))))
    case.check_next_call(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_a_command_killed_at_any_moment_finishes_as_undisturbed(server, tmp_path, name):
    case = prepare(server, tmp_path, name)
    generator = random.Random(f"{name} {os.environ.get('SAM2KIT_KILL_SEED', 1)}")
    for n in range(KILLS):
        case.clear()
        # Every second one at a time, which also reaches the middle of a file.
        if n % 2:
            moment = {"seconds": generator.uniform(0.05, case.seconds)}
        else:
            moment = {"at": generator.randint(1, case.changes)}
        case.kill(**moment)
        case.check_next_call(f"{name}, killed at {moment}")
