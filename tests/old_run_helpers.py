"""Fixtures of an old run directory: unpacked per test, and evaluated once per session."""

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
    """Skip tests of recorded values on CPUs whose results differ too much from them."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        pytest.skip(f"values were recorded with AVX2 and AVX512; this CPU has {capability}")


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    """Run directory of an older version, in a working directory for its relative paths."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Path("run")


@pytest.fixture(scope="session")
def old_evaluation(temporary_cache, same_arithmetic, tmp_path_factory) -> Iterator[Path]:
    """Directory of an evaluation of the old run with every optional part enabled."""
    work, previous = tmp_path_factory.mktemp("evaluated"), Path.cwd()
    unpack(work)
    torch.set_num_threads(1)
    os.chdir(work)  # the monkeypatch fixture has function scope
    try:
        evaluate_checkpoint("run", make_old_run.EVALUATION, Path("evaluation"))
    finally:
        os.chdir(previous)
    yield work / "evaluation"


def unpack(folder: Path) -> None:
    """Unpack the old run and link its clips next to it."""
    with tarfile.open(make_old_run.ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    (folder / "data_samples").symlink_to(make_old_run.SAMPLES)
