"""Run the staged notebooks one after another through papermill: ``sam2kit run`` and ``make demo``.

The notebooks do the work and hand over through files in one run folder; this module only starts
them, passes parameters, keeps the executed copies and a ``status.json``, and stops at the first
that fails.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from loguru import logger
from papermill.exceptions import PapermillExecutionError

from sam2kit.compose import compose
from sam2kit.errors import PipelineError
from sam2kit.run_dir import open_run_dir

OWN_PARAMETERS = ("run_dir", "config_file")


@dataclass(frozen=True)
class PipelineResult:
    """What the notebooks left behind.

    Attributes:
        run_dir: the folder of all results.
        notebooks: the executed notebooks, in order.
        results: the files that hand over between stages and that exist: checkpoint, pictures,
            ``metrics.json``, by a name to show.
        scores: mean J&F of each tracker on the validation videos; empty before stage 4.
    """

    run_dir: Path
    notebooks: list[Path]
    results: dict[str, Path]
    scores: dict[str, float]

    def __str__(self) -> str:
        width = max(map(len, ["executed notebooks", *self.results])) + 1
        lines = [f"{'run folder':{width}} {self.run_dir}"]
        lines += [f"{'executed notebook':{width}} {path}" for path in self.notebooks]
        lines += [f"{name:{width}} {path}" for name, path in self.results.items()]
        if self.scores:
            width = max(map(len, self.scores)) + 1
            lines += ["", "J&F on the validation videos, prompted frames left out"]
            lines += [f"  {name:{width}} {score:.3f}" for name, score in self.scores.items()]
        return "\n".join(lines)


def notebooks_dir() -> Path:
    """The repository's ``notebooks`` folder.

    Raises:
        PipelineError: the package is installed without the repository around it.
    """
    folder = Path(__file__).parent.parent / "notebooks"
    if not any(folder.glob("[0-9][0-9]_*.ipynb")):
        raise PipelineError(
            f"there are no staged notebooks in {folder}: they come with the repository, not with "
            "the installed package; clone the repository and install it with pip install -e ."
        )
    return folder


def run_stages(
    config_file: str | Path,
    parameters: Mapping[str, Any],
    stages: Sequence[int],
    run_dir: Path | None = None,
) -> PipelineResult:
    """Execute notebooks in order, all in one run folder, with this interpreter as their kernel.

    Args:
        config_file: the configuration that the stages compose, up to the one that trains.
        parameters: further notebook parameters, each passed to the stages that have it.
        stages: the numbers that the notebooks' names begin with, in the order to run.
        run_dir: by default a new dated folder under the configuration's ``output_dir``. Stages
            that were run before in the same folder need not be run again.

    Raises:
        ConfigError: the configuration cannot be composed.
        PipelineError: an unknown stage or parameter, before anything runs; or a notebook that
            failed. Its executed copy is kept, with the error in it.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the kernel has been ended.
    """
    config = compose(config_file, parameters.get("overrides", ()))
    sources = _find_notebooks(stages)
    accepted = _accepted_parameters(sources, parameters)
    # A kernel's own working folder may differ, so that it is told absolute paths.
    run_dir = open_run_dir(run_dir, config.output_dir).absolute()
    config_file = Path(config_file).absolute()
    status = _Status(run_dir / "status.json", [source.stem for source in sources])
    executed = []
    for source in sources:
        values = {k: v for k, v in parameters.items() if k in accepted[source]}
        own = {"run_dir": str(run_dir), "config_file": str(config_file)}
        values |= {k: v for k, v in own.items() if k in accepted[source]}
        executed.append(run_dir / source.name)
        logger.info("stage {}", source.stem)
        with status.of(source.stem), _sigterm_interrupts():
            _execute(source, executed[-1], values)
    result = PipelineResult(run_dir, executed, _existing_results(run_dir), _read_scores(run_dir))
    print(result, flush=True)
    return result


def _find_notebooks(stages: Sequence[int]) -> list[Path]:
    folder = notebooks_dir()
    by_number = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    unknown = [stage for stage in stages if stage not in by_number]
    if unknown or not stages:
        names = ", ".join(path.stem for path in by_number.values())
        raise PipelineError(f"stages {list(stages)}: name one or more of {names} by number")
    return [by_number[stage] for stage in stages]


def _accepted_parameters(
    sources: Sequence[Path], parameters: Mapping[str, Any]
) -> dict[Path, set[str]]:
    """The parameters of each notebook; papermill itself would only warn of an unknown one."""
    accepted = {source: set(papermill.inspect_notebook(str(source))) for source in sources}
    for source, names in accepted.items():
        if "run_dir" not in names:
            raise PipelineError(f"{source}: its cell tagged 'parameters' must set run_dir")
    known = sorted(set().union(*accepted.values()) - set(OWN_PARAMETERS))
    for name in parameters:
        if name in OWN_PARAMETERS:
            raise PipelineError(f"parameter {name!r} is the pipeline's own; pass it as an argument")
        if name not in known:
            raise PipelineError(
                f"unknown parameter {name!r}: the chosen notebooks have {', '.join(known)}"
            )
    return accepted


def _execute(source: Path, target: Path, values: Mapping[str, Any]) -> None:
    try:
        papermill.execute_notebook(
            str(source),
            str(target),
            parameters=dict(values),
            progress_bar=False,
            stdout_file=sys.stdout,  # what the cells print appears as they print it
            stderr_file=sys.stderr,
            store_widget_state=False,
            kernel_manager_class=OwnKernelManager,
        )
    except PapermillExecutionError as error:
        raise PipelineError(
            f"notebook {source.stem} failed in cell {error.cell_index}: {error.ename}: "
            f"{_plain(error.evalue)}; the executed copy with the traceback is {target}"
        ) from error
    except Exception as error:  # a kernel that died or did not start: papermill has no common base
        raise PipelineError(
            f"notebook {source.stem} failed: {type(error).__name__}: {_plain(str(error))}; what "
            f"was executed is in {target}"
        ) from error


def _plain(text: str) -> str:
    """Without the colours that IPython puts into messages."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()


class OwnKernelManager(AsyncKernelManager):
    """Starts the running interpreter, and ends the kernel together with the processes it started.

    A kernel specification named ``python3`` may belong to another interpreter, and a kernel that is
    ended leaves its children (loader workers, launched training) behind.
    """

    _group: int | None = None

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=str(RESOURCES), **get_kernel_dict())

    async def start_kernel(self, **arguments: Any) -> None:
        if self.has_trait("transport_encryption"):  # newer kernels warn of unencrypted messages
            self.transport_encryption = "auto"
        await super().start_kernel(**arguments)
        self._group = getattr(self.provisioner, "pgid", None)

    async def cleanup_resources(self, restart: bool = False) -> None:
        await super().cleanup_resources(restart)
        if self._group is not None and not restart and self._group != os.getpgrp():
            try:
                os.killpg(self._group, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all of them have ended, as they should


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, which papermill unwinds from in good order, ending the kernel."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt("ended by SIGTERM")

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Status:
    """``status.json``: which stage is in which state, since when, and why it failed."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.stages: dict[str, dict[str, Any]] = {name: {"state": "waiting"} for name in names}
        self._write()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Follow one stage; an exception sets its state and goes on."""
        stage, start = self.stages[name], time.monotonic()
        stage |= {"state": "running", "started": datetime.now().isoformat(timespec="seconds")}
        self._write()
        try:
            yield
            stage["state"] = "done"
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            stage |= {"state": "stopped" if stopped else "failed", "error": str(error)}
            raise
        finally:
            stage["seconds"] = round(time.monotonic() - start, 1)
            self._write()

    def _write(self) -> None:
        self.path.write_text(json.dumps({"stages": self.stages}, indent=1) + "\n")


def _existing_results(run_dir: Path) -> dict[str, Path]:
    names = {
        "checkpoint": "best.ckpt",
        "overlay picture": "overlay.png",
        "overlay GIF": "overlay.gif",
        "metrics": "metrics.json",
        "report": "report.html",
    }
    return {name: run_dir / file for name, file in names.items() if (run_dir / file).exists()}


def _read_scores(run_dir: Path) -> dict[str, float]:
    path = run_dir / "metrics.json"
    if not path.exists():
        return {}
    trackers = json.loads(path.read_text())["trackers"]
    return {name: scores["J&F"] for name, scores in trackers.items()}
