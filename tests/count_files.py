"""Count the package's files that one training step and one evaluation use.

Run as ``python tests/count_files.py`` in the root of the repository. It measures two commands, each
in its own process:

* ``sam2kit train`` with the quick start's configuration and ``trainer.max_steps=1``, which
  composes the configuration, builds model and data, audits the gradients, takes one optimizer step,
  validates one batch and writes the checkpoints;
* ``sam2kit evaluate`` of that run on one validation video, including its report.

A file counts if the command calls at least one function that is defined in it, in any thread of
the process. Functions that are called during imports count; module and class bodies do not. The
report's templates count, because Jinja compiles them to functions. There are no loader workers, so
that their work happens in the measured process.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from inspect import CO_NEWLOCALS
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sam2kit"
TRAIN = [
    *("train", "--config", "configs/quickstart.yaml", "dataset.num_workers=0"),
    *("trainer.max_steps=1", "trainer.limit_val_batches=1"),
]


def record(result: Path, arguments: list[str]) -> None:
    """Run ``sam2kit ARGUMENTS`` in this process and write the list of used files to ``result``."""
    prefix = f"{PACKAGE}{os.sep}"
    files: set[str] = set()

    def add_file(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        # CO_NEWLOCALS is set for functions, not for module and class bodies.
        if event == "call" and code.co_flags & CO_NEWLOCALS:
            if code.co_filename.startswith(prefix):
                files.add(code.co_filename.removeprefix(prefix))

    sys.argv = ["sam2kit", *arguments]
    threading.setprofile(add_file)
    sys.setprofile(add_file)
    try:
        runpy.run_module("sam2kit", run_name="__main__")
    except SystemExit as exit_:
        if exit_.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    loaded = [name for name in sys.modules if name.split(".")[0] == "sam2kit"]
    result.write_text(json.dumps({"files": sorted(files), "loaded": len(loaded)}))


def count(title: str, arguments: list[str], folder: Path) -> None:
    """Record a command in a new process and print the files it used."""
    result = folder / "files.json"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "SAM2KIT_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, __file__, str(result), *arguments]
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stderr}")
    used = json.loads(result.read_text())
    print(f"{title}: functions of {len(used['files'])} files, {used['loaded']} modules loaded")
    for file in used["files"]:
        print(f"  {file}")


def main() -> None:
    """Train one step, evaluate one video, and print the files of both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, video = folder / "run", folder / "video.txt"
        video.write_text("person_hall\n")
        count("one training step", [*TRAIN, "--run-dir", str(run)], folder)
        evaluate = ["evaluate", "--model-checkpoint", str(run), f"valdataset.split={video}"]
        count("one video", [*evaluate, "--output-dir", str(folder / "evaluation")], folder)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        record(Path(sys.argv[1]), sys.argv[2:])
    else:
        main()
