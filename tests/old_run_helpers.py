"""An old run folder, unpacked and evaluated once for all tests."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import make_old_run
import pytest
import torch

from sam2kit.evaluation.evaluate import evaluate_checkpoint


@pytest.fixture(scope="session")
def same_arithmetic() -> None:
    """Skip where this CPU computes too differently from the one that recorded the values."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        pytest.skip(f"recorded values hold for AVX2 and AVX512, not for {capability}")


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    """The run folder of an older version, in the work folder that its relative paths need."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("run")


@pytest.fixture(scope="session")
def old_evaluation(own_cache, same_arithmetic, tmp_path_factory) -> Iterator[Path]:
    """The folder of an evaluation of the old run with every part switched on."""
    work, before = tmp_path_factory.mktemp("evaluated"), Path.cwd()
    unpack(work)
    torch.set_num_threads(1)
    os.chdir(work)
    try:
        evaluate_checkpoint("run", make_old_run.EVALUATION, Path("evaluation"))
    finally:
        os.chdir(before)
    yield work / "evaluation"


def unpack(folder: Path) -> None:
    """Unpack the old run and lay the sample data beside it."""
    with tarfile.open(make_old_run.ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "data_samples").symlink_to(make_old_run.ROOT / "data_samples")
