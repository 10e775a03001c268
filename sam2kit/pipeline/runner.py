"""Run the staged notebooks in order through papermill, for ``sam2kit run`` and ``make demo``.

Notebooks exchange results as files in one run directory. This module executes them with parameters,
saves executed copies and ``status.json``, and stops at the first failure. A second call with the
same directory resumes there.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
import papermill
from loguru import logger

from sam2kit.config.loading import load_config, to_yaml
from sam2kit.config.schema import RANDOM, Config
from sam2kit.pipeline.kernel import execute, literal_path
from sam2kit.pipeline.status import Status
from sam2kit.utils.errors import PipelineError
from sam2kit.utils.locks import locked
from sam2kit.utils.paths import open_run_dir
from sam2kit.utils.processes import sigterm_interrupts

# Notebook parameters that the pipeline sets.
RESERVED_PARAMETERS = ("run_dir", "config_file", "resume")


@dataclass(frozen=True)
class PipelineResult:
    """The files and scores of a pipeline run.

    Attributes:
        run_dir: the run directory with all results.
        notebooks: the executed notebooks, in order.
        results: result files (checkpoint, overlays, ``metrics.json``, report) by display name.
        scores: mean J&F on the validation videos, from 0 to 1, by tracker; empty before stage 4.
    """

    run_dir: Path
    notebooks: list[Path]
    results: dict[str, Path]
    scores: dict[str, float]

    def __str__(self) -> str:
        width = max(map(len, ["executed notebooks", *self.results])) + 1
        lines = [f"{'run directory':{width}} {self.run_dir}"]
        lines += [f"{'executed notebook':{width}} {path}" for path in self.notebooks]
        lines += [f"{name:{width}} {path}" for name, path in self.results.items()]
        if self.scores:
            width = max(map(len, self.scores)) + 1
            lines += ["", "J&F on the validation videos, without prompted frames"]
            lines += [f"  {name:{width}} {score:.3f}" for name, score in self.scores.items()]
        return "\n".join(lines)


def notebooks_dir() -> Path:
    """Return the ``notebooks`` directory of the repository.

    Raises:
        PipelineError: the package is installed without the repository.
    """
    folder = Path(__file__).parent.parent.parent / "notebooks"
    if not any(folder.glob("[0-9][0-9]_*.ipynb")):
        raise PipelineError(
            f"no staged notebooks in {folder}; the installed package does not contain them",
            hint="clone the repository, and install it with pip install -e .",
        )
    return folder


def run_stages(
    config_file: str | Path,
    parameters: Mapping[str, Any],
    stages: Sequence[int],
    run_dir: Path | None = None,
) -> PipelineResult:
    """Execute notebooks in order in one run directory, with this interpreter as their kernel.

    Finished stages with unchanged notebook, parameters and configuration are skipped, up to the
    first stage that must run. An interrupted training resumes from its last checkpoint.

    Args:
        config_file: the configuration file that the stages compose.
        parameters: notebook parameters; each is passed to the stages that have it.
        stages: numbers at the start of the notebooks' names, in the order in which to run them.
        run_dir: the run directory. If None (default), a new dated directory in the configuration's
            ``output_dir``.

    Raises:
        ConfigError: the configuration cannot be composed.
        CheckpointError: a checkpoint is missing or cannot be downloaded.
        PipelineError: a stage or parameter is unknown or the run directory is in use (raised before
            anything runs), or a notebook failed (its executed copy contains the traceback).
        KeyboardInterrupt: the run was stopped by Ctrl-C or SIGTERM; the kernel has been stopped.
    """
    config = load_config(config_file, parameters.get("overrides", ()))
    sources = _find_notebooks(stages)
    accepted = _accepted_parameters(sources, parameters)
    _find_checkpoints(config, set().union(*accepted.values()))
    # Pass absolute paths, because a kernel may have another working directory.
    run_dir = open_run_dir(run_dir, config.output_dir).absolute()
    config_file = Path(config_file).absolute()
    reserved = {"run_dir": str(run_dir), "config_file": str(config_file), "resume": True}
    available = {**parameters, **reserved}
    with locked(run_dir) as lock, sigterm_interrupts():
        status = Status(run_dir, [s.stem for s in sources], {"config_file": str(config_file)})
        with status.of_run():
            for n, source in enumerate(sources):
                values = {k: v for k, v in available.items() if k in accepted[source]}
                inputs = _inputs(source, values, config)
                target = run_dir / source.name
                if _is_up_to_date(source.stem, inputs, target, status):
                    continue
                _rename_unfinished(target, status.before.get(source.stem, {}))
                logger.info("Running stage {} ({} of {})", source.stem, n + 1, len(sources))
                with status.of_stage(source.stem, inputs=inputs):
                    execute(source, target, values, lock)
    executed = [run_dir / source.name for source in sources]
    result = PipelineResult(run_dir, executed, _existing_results(run_dir), _read_scores(run_dir))
    print(result, flush=True)
    return result


def _find_notebooks(stages: Sequence[int]) -> list[Path]:
    folder = notebooks_dir()
    by_number = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    unknown = [stage for stage in stages if stage not in by_number]
    if unknown or not stages:
        names = ", ".join(path.stem for path in by_number.values())
        raise PipelineError(
            key="stages",
            value=list(stages),
            expected="numbers of existing stages",
            hint=f"choose from {names}",
        )
    return [by_number[stage] for stage in stages]


def _accepted_parameters(
    sources: Sequence[Path], parameters: Mapping[str, Any]
) -> dict[Path, set[str]]:
    """Return the parameter names of each notebook, and check the values.

    papermill only warns about unknown parameters.

    Raises:
        PipelineError: no notebook has the parameter, or its default has another type.
    """
    defaults = {source: papermill.inspect_notebook(literal_path(source)) for source in sources}
    for source, names in defaults.items():
        if "run_dir" not in names:
            raise PipelineError(
                f"{source} has no parameter run_dir",
                hint="set run_dir in the cell tagged 'parameters'",
            )
    known = sorted(set().union(*defaults.values()) - set(RESERVED_PARAMETERS))
    for name, value in parameters.items():
        if name in RESERVED_PARAMETERS:
            raise PipelineError(
                "this parameter is set by the pipeline",
                key=name,
                value=value,
                hint="pass it as an argument",
            )
        if name not in known:
            raise PipelineError(
                "unknown notebook parameter",
                key=name,
                value=value,
                hint=f"the selected notebooks have {', '.join(known)}",
            )
        for source, names in defaults.items():
            if name in names and not _same_type(value, _literal(names[name]["default"])):
                raise PipelineError(
                    f"parameter of {source.stem}",
                    key=name,
                    value=value,
                    expected=f"of the type of its default {names[name]['default']}",
                    hint="pass a value of that type, as JSON",
                )
    return {source: set(names) for source, names in defaults.items()}


def _literal(text: str) -> Any:
    """Evaluate the source of a parameter's default, or return None if it is not a literal."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None  # a default of None accepts any type


def _same_type(value: Any, default: Any) -> bool:
    """Return whether a value can replace a default; an integer can replace a float."""
    # bool is a subclass of int, but must not replace an int.
    if default is None or isinstance(value, type(default)):
        return not isinstance(value, bool) or default is None or isinstance(default, bool)
    return isinstance(default, float) and isinstance(value, int)


def _find_checkpoints(config: Config, parameters: set[str]) -> None:
    """Find or download the checkpoints that the selected stages load.

    Call this before the first stage, so that a missing file is reported immediately.

    Raises:
        CheckpointError: a checkpoint is missing or cannot be downloaded; the error names the key.
    """
    checkpoints = {}
    if "resume" in parameters:  # the stage that trains
        from sam2kit.models.initial_weights import resolve_initial_weights

        checkpoints["model.checkpoint"] = resolve_initial_weights(config).model.checkpoint
    if "checkpoint" in parameters:
        checkpoints |= {f"evaluation.compare.{k}": v for k, v in config.evaluation.compare.items()}
    for key, checkpoint in checkpoints.items():
        if checkpoint not in (None, RANDOM):
            from sam2kit.models.checkpoints import find_checkpoint

            find_checkpoint(checkpoint, key)


def _inputs(source: Path, values: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Return a digest of each of a stage's inputs, except files in the run directory."""
    cells = [cell.source for cell in nbformat.read(source, as_version=4).cells]
    named = {name: value for name, value in values.items() if name not in RESERVED_PARAMETERS}
    inputs = {"notebook": json.dumps(cells), "parameters": json.dumps(named, sort_keys=True)}
    if "config_file" in values:
        inputs["configuration"] = to_yaml(config, comments=False)
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in inputs.items()}


def _is_up_to_date(name: str, inputs: dict[str, str], target: Path, status: Status) -> bool:
    """Return whether a stage can be skipped, and log the reason if it must run again."""
    before, now = status.before.get(name), status.stages[name]
    if before is None or before["state"] == "waiting":
        return False
    if before["state"] != "done":
        logger.info("Repeating stage {}: its last state is {}", name, before["state"])
    elif now["state"] != "done":
        logger.info("Repeating stage {}: an earlier stage ran after it", name)
    elif not target.exists():
        logger.info("Repeating stage {}: {} is missing", name, target.name)
    elif changed := [k for k in inputs if inputs[k] != before["inputs"].get(k)]:
        logger.info("Repeating stage {}: its {} changed", name, changed)
    else:
        logger.info("Skipping stage {}: finished with the same inputs", name)
        return True
    return False


def _rename_unfinished(target: Path, before: Mapping[str, Any]) -> None:
    """Rename the executed copy of an unfinished stage, so that it is not overwritten."""
    if target.exists() and before.get("state") in ("failed", "interrupted"):
        prefix = f"{target.stem}.{before['state']}"
        names = (target.with_name(f"{prefix}-{number}.ipynb") for number in count(1))
        target.rename(next(name for name in names if not name.exists()))


def _existing_results(run_dir: Path) -> dict[str, Path]:
    names = {
        "checkpoint": "best.ckpt",
        "overlay image": "overlay.png",
        "overlay GIF": "overlay.gif",
        "metrics": "metrics.json",
        "report": "report.html",
    }
    return {name: run_dir / file for name, file in names.items() if (run_dir / file).exists()}


def _read_scores(run_dir: Path) -> dict[str, float]:
    if not (run_dir / "metrics.json").exists():
        return {}
    from sam2kit.evaluation.compare_runs import read_metrics

    return {name: scores["J&F"] for name, scores in read_metrics(run_dir)["trackers"].items()}
