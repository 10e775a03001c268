"""Run the staged notebooks one after another through papermill: ``sam2kit run`` and ``make demo``.

The notebooks do the work and hand over through files in one run folder; this module only starts
them, passes parameters, keeps the executed copies and a ``status.json``, and stops at the first
that fails. A second call on the same folder goes on from there.
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
from sam2kit.config.schema import Config
from sam2kit.pipeline.kernel import execute
from sam2kit.pipeline.status import Status, locked
from sam2kit.utils.errors import PipelineError
from sam2kit.utils.paths import open_run_dir
from sam2kit.utils.processes import sigterm_interrupts

OWN_PARAMETERS = ("run_dir", "config_file", "resume")


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
    folder = Path(__file__).parent.parent.parent / "notebooks"
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

    Stages that were done before in the same folder, with the same notebook, parameters and
    configuration, are left as they are, up to the first that is not; a training goes on from its
    last checkpoint.

    Args:
        config_file: the configuration that the stages compose, up to the one that trains.
        parameters: further notebook parameters, each passed to the stages that have it.
        stages: the numbers that the notebooks' names begin with, in the order to run.
        run_dir: by default a new dated folder under the configuration's ``output_dir``.

    Raises:
        ConfigError: the configuration cannot be composed.
        CheckpointError: a checkpoint is missing or cannot be fetched.
        PipelineError: an unknown stage or parameter, or a folder in use, before anything runs; or
            a notebook that failed. Its executed copy is kept, with the error in it.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the kernel has been ended.
    """
    config = load_config(config_file, parameters.get("overrides", ()))
    sources = _find_notebooks(stages)
    accepted = _accepted_parameters(sources, parameters)
    _find_checkpoints(config, set().union(*accepted.values()))
    # A kernel's own working folder may differ, so that it is told absolute paths.
    run_dir = open_run_dir(run_dir, config.output_dir).absolute()
    config_file = Path(config_file).absolute()
    own = {"run_dir": str(run_dir), "config_file": str(config_file), "resume": True}
    given = {**parameters, **own}
    with locked(run_dir) as lock, sigterm_interrupts():
        status = Status(run_dir, [s.stem for s in sources], {"config_file": str(config_file)})
        with status.kept():
            for n, source in enumerate(sources):
                values = {k: v for k, v in given.items() if k in accepted[source]}
                inputs = _inputs(source, values, config)
                target = run_dir / source.name
                if _is_done(source.stem, inputs, target, status):
                    continue
                _keep_failed(target, status.before.get(source.stem, {}))
                logger.info("stage {} ({} of {})", source.stem, n + 1, len(sources))
                with status.of(source.stem, inputs=inputs):
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
        raise PipelineError(f"stages {list(stages)}: name one or more of {names} by number")
    return [by_number[stage] for stage in stages]


def _accepted_parameters(
    sources: Sequence[Path], parameters: Mapping[str, Any]
) -> dict[Path, set[str]]:
    """The parameters of each notebook; papermill itself would only warn of an unknown one.

    Raises:
        PipelineError: a parameter that no notebook has, or of another type than its default.
    """
    found = {source: papermill.inspect_notebook(str(source)) for source in sources}
    for source, names in found.items():
        if "run_dir" not in names:
            raise PipelineError(f"{source}: its cell tagged 'parameters' must set run_dir")
    known = sorted(set().union(*found.values()) - set(OWN_PARAMETERS))
    for name, value in parameters.items():
        if name in OWN_PARAMETERS:
            raise PipelineError(f"parameter {name!r} is the pipeline's own; pass it as an argument")
        if name not in known:
            raise PipelineError(
                f"unknown parameter {name!r}: the chosen notebooks have {', '.join(known)}"
            )
        for source, names in found.items():
            if name in names and not _alike(value, _literal(names[name]["default"])):
                raise PipelineError(
                    f"parameter {name!r} is {value!r}, and {source.stem} has "
                    f"{names[name]['default']} for it; give a value of that kind (as JSON)"
                )
    return {source: set(names) for source, names in found.items()}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None  # which takes any value


def _alike(value: Any, default: Any) -> bool:
    if default is None or isinstance(value, type(default)):
        return not isinstance(value, bool) or default is None or isinstance(default, bool)
    return isinstance(default, float) and isinstance(value, int)


def _find_checkpoints(config: Config, parameters: set[str]) -> None:
    """Find, and fetch if need be, what the chosen stages will load.

    Raises:
        CheckpointError: names the key, and what is missing or cannot be fetched.
    """
    wanted = {"model.checkpoint": config.model.checkpoint} if "resume" in parameters else {}
    if "checkpoint" in parameters:
        wanted |= {f"evaluation.compare.{k}": v for k, v in config.evaluation.compare.items()}
    for key, checkpoint in wanted.items():
        if checkpoint is not None:
            from sam2kit.models.checkpoints import find_checkpoint

            find_checkpoint(checkpoint, key)


def _inputs(source: Path, values: Mapping[str, Any], config: Config) -> dict[str, str]:
    """A digest of each thing that a stage's results depend on, files in the run folder apart."""
    cells = [cell.source for cell in nbformat.read(source, as_version=4).cells]
    own = {name: value for name, value in values.items() if name not in OWN_PARAMETERS}
    inputs = {"notebook": json.dumps(cells), "parameters": json.dumps(own, sort_keys=True)}
    if "config_file" in values:
        inputs["configuration"] = to_yaml(config, comments=False)
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in inputs.items()}


def _is_done(name: str, inputs: dict[str, str], target: Path, status: Status) -> bool:
    """Whether a stage need not run; what it is that is new, if not, is logged."""
    before, now = status.before.get(name), status.stages[name]
    if before is None or before["state"] == "waiting":
        return False
    if before["state"] != "done":
        logger.info("stage {} was {}: it runs again", name, before["state"])
    elif now["state"] != "done":
        logger.info("stage {} was done, but an earlier one has run since: it runs again", name)
    elif not target.exists():
        logger.info("stage {} was done, but {} is gone: it runs again", name, target.name)
    elif changed := [k for k in inputs if inputs[k] != before["inputs"].get(k)]:
        logger.info("stage {} was done, but its {} changed: it runs again", name, changed)
    else:
        logger.info("stage {} was done with the same inputs: skipped", name)
        return True
    return False


def _keep_failed(target: Path, before: Mapping[str, Any]) -> None:
    """Move the notebook of a stage that did not end aside, so that it is not written over."""
    if target.exists() and before.get("state") in ("failed", "interrupted"):
        kept = f"{target.stem}.{before['state']}"
        names = (target.with_name(f"{kept}-{number}.ipynb") for number in count(1))
        target.rename(next(name for name in names if not name.exists()))


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
