"""Every command on a full disk, in a read-only folder, with few open files, and with odd values."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_helpers import COMMANDS, SMALL
from data_helpers import make_davis, save_video
from loguru import logger

from sam2kit.cli.main import main


@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    """Lower a limit of the operating system for this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def error_output(capsys, *argv: str) -> str:
    """Run a command that must exit with code 2, and return its error, which is one short line."""
    assert main(list(argv)) == 2
    err = capsys.readouterr().err
    error = err.splitlines()[-1]
    assert "Traceback" not in err and error.startswith("error: ") and len(error) < 1000
    return error


@pytest.fixture(autouse=True)
def no_handlers():
    """Remove the log handlers of earlier tests, whose streams are closed."""
    logger.remove()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_error_with_a_path(tmp_path, capsys, name):
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    command = COMMANDS[name](tmp_path, out)
    # Of the files of a training run, 3,000 bytes break the checkpoints.
    with limit(resource.RLIMIT_FSIZE, 300 if name in ("track", "training-set") else 3000):
        assert str(out) in error_output(capsys, *command)
    assert not [path for path in out.parent.rglob("*") if ".part" in path.name]


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no folder that not even root may write to")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_read_only_folder_is_one_error_with_a_path(tmp_path, capsys, name):
    assert "/sys" in error_output(capsys, *COMMANDS[name](tmp_path, Path("/sys/sam2kit")))


LONG = "x" * 100_000
NANO = ["--model-checkpoint", "nano"]


@pytest.mark.parametrize(
    "argv",
    [
        [LONG],
        ["train", "--run-dir", LONG, *SMALL],
        ["train", "--config", LONG],
        ["train", "--data-path", LONG],
        ["train", "--max-epochs", LONG],
        ["train", "--create-config", f"{LONG}.yaml"],
        ["train", f"--{LONG}"],
        ["train", f"seed={LONG}"],
        ["train", f"seed={'1' * 100_000}"],
        ["train", f"model.trainable_modules={'[' * 3000}xxxx{']' * 3000}"],
        ["train", f"{LONG}=1"],
        ["train", LONG],
        ["train", f"dataset={LONG}"],
        ["train", f"dataset.type={LONG}"],
        ["train", *SMALL, f"model.trainable_modules=[{LONG}]"],
        ["train", *SMALL, f"output_dir={LONG}", "model.checkpoint=random"],
        ["submit", "--run-dir", LONG, *SMALL, "--cluster", "local", "model.checkpoint=random"],
        ["evaluate", "--model-checkpoint", LONG],
        ["evaluate", "--predictions", LONG],
        ["evaluate", *NANO, "--compare", f"{LONG}={LONG}"],
        ["evaluate", *NANO, "--protocol", LONG],
        ["evaluate", *NANO, "--output-dir", LONG, *SMALL],
        ["track", LONG, "--box", "1,1,9,9", *NANO],
        ["track", "a.mp4", "--box", LONG, *NANO],
        ["track", "a.mp4", "--point", f"{LONG}=1,1", "--output-dir", "out", "--mask", LONG, *NANO],
        ["track", "a.mp4", "--prompts", LONG, *NANO],
        ["track", "a.mp4", "--box", "1,1,9,9", *NANO, "--output-dir", LONG],
        ["training-set", LONG, "--to", "out"],
        ["annotate", LONG],
        ["annotate", "a.mp4", *NANO, "--no-lab", "--run-dir", LONG],
        ["doctor", LONG],
        ["doctor", "data", "--html", LONG],
        ["convert", "data", LONG, "--to", "davis"],
        ["convert", "data", "out", "--to", LONG],
        ["export", LONG, "out.pt"],
        ["export", "nano", f"{LONG}.pt"],
        ["export", "nano", "out.pt", "--format", LONG],
        ["replay", LONG],
        ["features", "--list", f"features.folder={LONG}"],
        ["run", "--run-dir", LONG, *SMALL],
        ["run", "-p", f"{LONG}=1", *SMALL],
        ["run", "--stages", LONG],
        ["sweep", *SMALL, f"seed=1,{LONG}"],
        ["sweep", *SMALL, f"seed=1,{'1' * 100_000}"],
        ["sweep", "--sweep-dir", LONG],
    ],
    ids=lambda argv: " ".join(a[:20] for a in argv)[:60],
)
def test_long_values_are_not_repeated_whole(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    make_davis(tmp_path / "data", {"a": 2})
    save_video(tmp_path / "a.mp4", [0, 50])
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    error = err[err.index("error: ") :]
    assert len(error) < 1000 and any(part in error for part in ("xxxx", "1111", "[[[["))


def test_a_run_directory_with_an_odd_name(tmp_path, capsys):
    run = tmp_path / "run {lr} {0} %d $x\nERROR all data lost"
    assert main(["train", "--run-dir", str(run), *SMALL, *RANDOM, "trainer.max_epochs=1"]) == 0
    assert (run / "best.ckpt").is_file()
    lines = capsys.readouterr().err.splitlines() + (run / "train.log").read_text().splitlines()
    assert len(lines) > 5 and not any(line.startswith("ERROR") for line in lines)


RANDOM = ["model.checkpoint=random", "trainer.audit=off", "dataset.num_workers=0"]
FEW_FILES = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from sam2kit.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "name", [n if n == "train" else pytest.param(n, marks=pytest.mark.slow) for n in COMMANDS]
)
def test_forty_open_files(tmp_path, name):
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    command = [sys.executable, "-c", FEW_FILES, *COMMANDS[name](tmp_path, out)]
    if name == "train":
        command.append("dataset.num_workers=4")
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr
    if done.returncode:
        assert done.returncode == 2 and "ulimit -n" in done.stderr
