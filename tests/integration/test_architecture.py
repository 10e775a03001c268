"""Imports respect the layers and are cheap, no export hides a module, and all files have limits."""

from __future__ import annotations

import ast
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


# Functions that read a file or a text without limits of size, nesting and pixels.
UNLIMITED = {
    "json": {"load", "loads"},
    "msgspec.json": {"decode"},
    "yaml": {"load", "safe_load"},
    "Image": {"open"},
    "cv2": {"imread"},
    "np": {"load", "fromfile"},
    "torch": {"load"},
    "av": {"open"},
    "ElementTree": {"parse", "fromstring"},
}
# Modules that define the limits, and calls on what the package itself has just written.
LIMITED = {
    "utils/readers.py",
    "data/pictures.py",
    "models/checkpoint_io.py",
    "data/sources/coco_index.py",  # a COCO JSON of any size, memory-mapped
    "data/sources/video_decoder.py",  # formats that cannot open other files
    "viz/video_writer.py",  # a file to write
    "data/sources/tiff.py",  # a page whose size was checked
    "data/synthetic/textures.py",  # a photo whose size was checked
    "training/resume.py",  # memory-mapped
    "models/exporter.py",
    "models/plain_sam2.py",
    "models/plain_transformers.py",
    "evaluation/compare_runs.py",  # a round trip through JSON
    "evaluation/tracker_runs.py",  # the same
    "cli/arguments.py",  # a value of the command line
}


def unlimited_calls(path: Path) -> list[int]:
    """Return the lines on which a module calls one of UNLIMITED."""
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in UNLIMITED.get(ast.unparse(call.func.value), ())
    ]


def test_files_are_read_within_limits():
    package = ROOT / "sam2kit"
    modules = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    lines = {name: calls for name, path in modules.items() if (calls := unlimited_calls(path))}
    assert {name: calls for name, calls in lines.items() if name not in LIMITED} == {}
    assert LIMITED - lines.keys() == set()  # the list is not outdated
