"""Shared fixtures: a tiny model, and clips with moving objects."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from browser_helpers import lab, stop_lab  # noqa: F401
from loguru import logger
from old_run_helpers import old_evaluation, old_run, same_arithmetic  # noqa: F401

from sam2kit.config.schema import Config
from sam2kit.data.clip import ClipBatch, VideoClip, collate

if TYPE_CHECKING:
    from loguru import Message

LONG_TESTS = Path(__file__).parent / "long_tests.txt"
# Files with tests of more than ten seconds.
LONGEST = (
    "device/test_device_contract.py",
    "integration/test_killed_runs.py",
    "integration/test_killed_commands.py",
    "integration/test_docs.py",
    "integration/test_notebooks.py",
    "integration/test_old_run.py",
    "integration/test_packaging.py",
    "integration/test_signals.py",
    "integration/test_snapshots.py",
    "integration/test_whole_path.py",
    "training/test_launch.py",
    "training/test_planner.py",
    "training/test_slurm.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help="skip the browser tests and the files and tests that tests/long_tests.txt lists",
    )


def longest_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Order tests so that no worker waits for another at the end.

    xdist gives each worker an equal part of the list, in order. The first part begins with the
    browser tests, which share one JupyterLab, and each other part with some of the longest files.
    """
    files: dict[str, list[pytest.Item]] = {}
    rest: list[pytest.Item] = []
    for item in items:
        file = item.nodeid.partition("::")[0].removeprefix("tests/")
        if item.get_closest_marker("browser") is not None:
            file = "browser"
        (files.setdefault(file, []) if file in ("browser", *LONGEST) else rest).append(item)
    parts: list[list[pytest.Item]] = [[*files.pop("browser", [])], *([] for _ in range(1, workers))]
    for n, file in enumerate(name for name in LONGEST if name in files):
        parts[1 + n % (workers - 1) if workers > 1 else 0] += files[file]
    ordered: list[pytest.Item] = []
    for n, part in enumerate(parts):
        end = len(items) * (n + 1) // workers
        fill = max(end - len(ordered) - len(part), 0) if n + 1 < workers else len(rest)
        ordered += part + rest[:fill]
        rest = rest[fill:]
    return ordered


def _names(item: pytest.Item) -> set[str]:
    """Return the names of a test's file, of its function, and of the test with its parameters."""
    return {item.nodeid.partition("::")[0], item.nodeid.partition("[")[0], item.nodeid}


def _check_names(long: set[str], items: list[pytest.Item]) -> None:
    """Reject names in tests/long_tests.txt that the collected files no longer have."""
    names = set().union(*map(_names, items))
    unknown = [n for n in sorted(long - names) if n.partition("::")[0] in names]
    if unknown:
        raise pytest.UsageError(f"No such test; correct {LONG_TESTS}: {', '.join(unknown)}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    long = set(LONG_TESTS.read_text(encoding="utf-8").splitlines())
    if not any("::" in argument for argument in config.args):
        _check_names(long, items)
    if not config.getoption("quick"):
        items[:] = longest_first(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
        return
    quick: list[pytest.Item] = []
    skipped: list[pytest.Item] = []
    for item in items:
        is_long = bool(_names(item) & long) or item.get_closest_marker("browser") is not None
        (skipped if is_long else quick).append(item)
    config.hook.pytest_deselected(items=skipped)
    items[:] = quick


@pytest.hookimpl(trylast=True)  # after the fixtures of the test
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Stop JupyterLab after the last browser test: its kernels hold gigabytes."""
    if nextitem is None or nextitem.get_closest_marker("browser") is None:
        stop_lab()


@pytest.fixture(scope="session", autouse=True)
def temporary_cache(tmp_path_factory):
    """Store features in a temporary directory, also in the processes that tests start."""
    os.environ["SAM2KIT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def temporary_files(temporary_cache):
    """Remove what killed processes leave in the directory of temporary files.

    The directory is not in ``tmp_path``: names of sockets in it must be shorter than 104 bytes.
    """
    # Compiled code of earlier sessions is used again.
    compiled = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(
        Path(tempfile.gettempdir(), f"torchinductor_{getpass.getuser()}")
    )
    with tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as patch:
            # Compiled code of earlier sessions is used again.
            patch.setenv(
                "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(compiled))
            )
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
            yield


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread, so that results are reproducible and test workers share the cores."""
    torch.set_num_threads(1)


def _log_lines(level: str) -> Iterator[list[str]]:
    lines: list[str] = []

    def add(message: Message) -> None:
        lines.append(f"{message.record['level'].name} {message.record['message']}")

    sink = logger.add(add, level=level)
    yield lines
    logger.remove(sink)


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """Log lines of the test, each with its level: ``INFO text``."""
    yield from _log_lines("DEBUG")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """Log lines of the test from the level WARNING on."""
    yield from _log_lines("WARNING")


@pytest.fixture
def tiny_config() -> Config:
    """Nano model with random weights at 64 px, and initial biases with which it learns."""
    config = Config()
    config.model.size = "nano"
    config.model.checkpoint = "random"
    config.model.memory_attention_bias = 3.0
    config.model.object_score_bias = 3.0
    config.dataset.image_size = 64
    config.dataset.video_clip_length = 4
    config.dataset.num_workers = 0
    return config


@pytest.fixture
def toy_config(tiny_config) -> Config:
    """Training that takes seconds: synthetic clips of two frames of 32 px."""
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.image_size = 32
    tiny_config.dataset.video_clip_length = 2
    tiny_config.valdataset.synthetic_videos = 1
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.audit = "off"
    return tiny_config


def moving_clip(
    num_objects: int = 1, num_frames: int = 4, size: int = 64, seed: int = 0, name: str = "clip"
) -> VideoClip:
    """Make a clip of squares that move to the right over noise, one square per object."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 255, (num_frames, 3, size, size), generator=generator).to(torch.uint8)
    masks = torch.zeros(num_frames, num_objects, size, size, dtype=torch.bool)
    height = size // num_objects
    for t in range(num_frames):
        for o in range(num_objects):
            rows = slice(o * height + 1, (o + 1) * height - 1)
            columns = slice(4 + 4 * t + o, 4 + 4 * t + o + size // 3)
            masks[t, o, rows, columns] = True
            frames[t, :, rows, columns] //= 2 + o
    annotated = torch.ones(num_frames, num_objects, dtype=torch.bool)
    return VideoClip(frames, masks, annotated, name, list(range(num_frames)))


@pytest.fixture
def batch() -> ClipBatch:
    """Batch of two clips, with one object and with three objects."""
    return collate([moving_clip(1, seed=1, name="a"), moving_clip(3, seed=2, name="b")])
