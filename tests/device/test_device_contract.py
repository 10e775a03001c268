"""Run the training, tracking and evaluation code on a stand-in for a GPU, in its own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def reason_to_skip() -> str | None:
    """Return why this version of torch cannot run the stand-in, or None."""
    try:
        from torch._C import _set_only_lift_cpu_tensors  # noqa: F401
        from torch.utils.backend_registration import (  # noqa: F401
            _setup_privateuseone_for_python_backend,
        )
    except ImportError as error:
        return f"this torch has no Python backend for PrivateUse1: {error}"
    return None


@pytest.mark.parametrize("part", ["training", "inference"])
def test_contract(part, tmp_path):
    """Registering a device changes the whole process, so the cases run in another one."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    paths = os.pathsep.join([str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [*command, "--basetemp", str(tmp_path / "cases"), str(FOLDER / f"case_{part}.py")],
        cwd=FOLDER.parents[1],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
