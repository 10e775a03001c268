"""Modules of training do not import plots, reports, the tracker or widgets."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

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
# One process for all modules: sys.modules only grows, so the last check would cover all, but the
# first module after which a check fails is the one to look at.
IMPORT = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module("sam2kit.training." + name)
    print(json.dumps([name, [m for m in sys.modules if m.startswith("sam2kit")]]))
"""


def test_modules_import_only_what_training_needs():
    command = [sys.executable, "-c", IMPORT, *MODULES]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    assert [name for name, _ in rows] == MODULES
    for name, loaded in rows:
        assert f"sam2kit.training.{name}" in loaded
        rooms = [m for m in loaded for room in FORBIDDEN if m == room or m.startswith(f"{room}.")]
        evaluation = {m for m in loaded if m.startswith("sam2kit.evaluation")} - EVALUATION
        assert not rooms and not evaluation, name
