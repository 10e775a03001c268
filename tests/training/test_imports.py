"""Modules of training do not import plots, reports, the tracker or widgets."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import sam2kit.training

MODULES = [module.name for module in pkgutil.iter_modules(sam2kit.training.__path__)]
EVALUATION = {"sam2kit.evaluation", "sam2kit.evaluation.metrics", "sam2kit.evaluation.boundary"}
FORBIDDEN = (
    "sam2kit.viz.plots",
    "sam2kit.tracking",
    "sam2kit.data.doctor",
    "sam2kit.widgets",
    "sam2kit.pipeline",
    "sam2kit.cli",
)
IMPORT = """
import importlib, json, sys
importlib.import_module("sam2kit.training." + sys.argv[1])
print(json.dumps([name for name in sys.modules if name.startswith("sam2kit")]))
"""


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_what_training_needs(name):
    command = [sys.executable, "-c", IMPORT, name]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    loaded = json.loads(output.splitlines()[-1])
    assert f"sam2kit.training.{name}" in loaded
    rooms = [m for m in loaded for room in FORBIDDEN if m == room or m.startswith(f"{room}.")]
    evaluation = {m for m in loaded if m.startswith("sam2kit.evaluation")} - EVALUATION
    assert not rooms and not evaluation
