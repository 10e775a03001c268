"""Imports respect the layers, importing sam2kit is cheap, and no export hides a module."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sam2kit

ROOT = Path(__file__).parents[2]
PACKAGES = ["sam2kit"] + [
    module.name for module in pkgutil.walk_packages(sam2kit.__path__, "sam2kit.") if module.ispkg
]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("utils/text.py", "from sam2kit.cli.main import main", "Packages import downwards"),
        ("training/losses.py", "import matplotlib", "Training loads neither plots"),
        ("data/clip.py", "def f():\n    import sam2kit.data.loader", "No circular imports"),
    ],
)
def test_import_linter_rejects_a_forbidden_import(tmp_path, module, line, contract):
    # A copy of the package, to which a forbidden import is added.
    ignored = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(ROOT / "sam2kit", tmp_path / "sam2kit", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "sam2kit" / module).open("a") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    broken = [row for row in result.stdout.splitlines() if row.endswith("BROKEN")]
    assert result.returncode and any(contract in row for row in broken), result.stdout


@pytest.mark.parametrize("statement", ["import sam2kit", "from sam2kit.cli.main import main"])
def test_import_loads_no_heavy_package(statement):
    heavy = ("torch", "lightning", "matplotlib", "hydra", "omegaconf")
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_no_exported_name_hides_a_submodule(package):
    module = importlib.import_module(package)
    submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
    assert not submodules & set(getattr(module, "__all__", ()))
