"""Run the pipeline for each point of a grid and rank the results, for ``sam2kit sweep``.

Each trial is a ``sam2kit run`` in its own process and directory ``SWEEP/trials/NNN_…``. Its state
is only stored in its ``status.json`` and ``metrics.json``, so a second call can resume the sweep.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from shlex import quote
from typing import Any, TypedDict, cast

from loguru import logger

from sam2kit.config.loading import COMMAND_LINE, literal_text, load_config, parse_override, to_yaml
from sam2kit.config.schema import Config
from sam2kit.config.validation import check_paths
from sam2kit.pipeline.status import SCHEMA_VERSION, read_status
from sam2kit.utils.errors import ConfigError, PipelineError
from sam2kit.utils.files import open_to_append, write_text
from sam2kit.utils.locks import is_locked, locked
from sam2kit.utils.processes import sigterm_interrupts, start
from sam2kit.utils.readers import check_types, read_json

GAIN_NOTE = (
    "*gain* is the improvement over the starting model on the same objects, averaged over the "
    "seeds of a setting; *p* is corrected for the number of settings (Holm). With fewer than {} "
    "videos, no interval is computed."
)
BEST_OF_MANY = (
    "The score of the best of {} settings on the same videos is biased upward: evaluate it on "
    "other videos before you rely on it."
)
METRIC = "J&F of the tracker '{}' on the validation videos; higher is better"


@dataclass(frozen=True)
class Trial:
    """One point of the grid.

    Attributes:
        name: name of the trial's directory, which starts with the trial's number.
        overrides: the overrides ``KEY=VALUE`` of this point.
        config: the complete configuration.
    """

    name: str
    overrides: list[str]
    config: Config


def plan_trials(config_file: str | Path | None, overrides: Sequence[str]) -> list[Trial]:
    """Compose the trials of a grid, in which the value of the last key changes fastest.

    Args:
        config_file: see :func:`sam2kit.config.loading.load_config`.
        overrides: ``KEY=VALUE``; at least one has several values in Hydra's grammar: ``key=a,b``,
            ``key=[a],[b]`` or ``key=range(1,4)``.

    Raises:
        ConfigError: no override has several values, or the configuration of a trial is invalid, has
            missing data or uses several devices.
    """
    from hydra.errors import HydraException

    fixed: list[str] = []
    axes: list[list[str]] = []
    for text in map(literal_text, overrides):
        parsed = parse_override(text)
        if not parsed.is_sweep_override():
            fixed.append(text)
            continue
        try:
            values = list(parsed.sweep_string_iterator())
        except (HydraException, NotImplementedError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"{COMMAND_LINE}: cannot read {text!r} ({reason})",
                hint="list the values as key=a,b",
            ) from error
        axes.append([f"{parsed.get_key_element()}={value}" for value in values])
    if not axes:
        raise ConfigError(
            f"{COMMAND_LINE}: no override has several values",
            hint="list the values to try, such as optimizer.lr=1e-5,1e-4",
        )
    trials = []
    for number, point in enumerate(product(*axes), start=1):
        name = _name(number, point)
        try:
            config = load_config(config_file, [*fixed, *point])
            check_paths(config)
        except ConfigError as error:
            raise ConfigError(
                f"trial {name}: {error}", hint="change the values of the grid"
            ) from error
        if config.trainer.devices not in ("1", "auto", "-1"):
            raise ConfigError(
                key="trainer.devices",
                value=config.trainer.devices,
                expected="1 in a sweep",
                hint="remove this override, or train on several devices without a sweep",
            )
        trials.append(Trial(name, list(point), config))
    generated = any(t.config.validation_dataset().type == "synthetic" for t in trials)
    if generated and len({t.config.seed for t in trials}) > 1:
        logger.warning(
            "The clips generated for validation depend on seed, so trials with different seeds "
            "cannot be compared. Validate on videos: set valdataset.type=auto and "
            "valdataset.data_path"
        )
    return trials


def _name(number: int, point: Sequence[str]) -> str:
    """Return a directory name of up to 64 characters with a trial's number and values."""
    parts = [
        f"{key.rpartition('.')[2]}-{value}" for key, _, value in (t.partition("=") for t in point)
    ]
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9.-]+', '_', '_'.join(parts)).strip('_')[:60]}"


def run_sweep(
    sweep_dir: Path,
    trials: Sequence[Trial] | None = None,
    parameters: Mapping[str, Any] | None = None,
    stages: Sequence[int] = (1, 2, 3, 4),
    jobs: int | None = None,
    retry_failed: bool = False,
) -> list[dict[str, Any]]:
    """Run the unfinished trials and update the leaderboard whenever one ends.

    A failed trial does not stop the others. Interrupted trials are resumed.

    Args:
        sweep_dir: a new directory, or the directory of a sweep to resume.
        trials: the result of :func:`plan_trials`. If None (default), the trials of the sweep in
            ``sweep_dir``.
        parameters, stages: see :func:`sam2kit.pipeline.runner.run_stages`; used for each trial.
        jobs: maximum number of parallel trials. If None (default), one per GPU, or one without a
            GPU.
        retry_failed: run failed trials again.

    Returns:
        the rows of the leaderboard (docs/pipeline.md), the best first.

    Raises:
        PipelineError: the directory contains no sweep or a different sweep, or is in use.
        KeyboardInterrupt: the sweep was stopped by Ctrl-C or SIGTERM; the trials have been stopped.
    """
    definition = sweep_dir / "sweep.json"
    if trials is None and not definition.exists():
        raise PipelineError(
            f"{sweep_dir} contains no sweep to resume",
            key="--sweep-dir",
            value=str(sweep_dir),
            hint="pass --config and overrides to start one",
        )
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with locked(sweep_dir), sigterm_interrupts():
        if trials is not None:
            _define(sweep_dir, trials, {"parameters": dict(parameters or {}), "stages": stages})
        sweep = _Sweep(sweep_dir, _read_definition(definition))
        # Writing the leaderboard needs torch, which cannot be imported again after an interrupt
        # during its import. Import it before the first trial starts.
        import sam2kit.evaluation.compare_runs  # noqa: F401

        try:
            sweep.run(jobs, retry_failed)
        except KeyboardInterrupt:
            command = f"sam2kit sweep --sweep-dir {quote(str(sweep_dir))}"
            raise KeyboardInterrupt(f"resume: {command}") from None
        finally:
            rows = sweep.write_leaderboard()
    print((sweep_dir / "leaderboard.md").read_text(encoding="utf-8"), flush=True)
    return rows


class _TrialDefinition(TypedDict):
    name: str
    overrides: list[str]


class _Definition(TypedDict):
    trials: list[_TrialDefinition]
    parameters: dict[str, Any]
    stages: list[int]


def _read_definition(path: Path) -> dict[str, Any]:
    """Read ``sweep.json``.

    Raises:
        PipelineError: the file is damaged.
    """
    hint = "start the sweep again in another directory"
    content = read_json(path, hint=hint, error=PipelineError)
    check_types(content, _Definition, path, hint, PipelineError)
    names = [trial["name"] for trial in content["trials"]]
    # The directory may come from someone else, and each name is used as a directory name.
    is_valid = all(re.fullmatch(r"\d{3,}_[A-Za-z0-9_.-]*", name) for name in names)
    if not names or not is_valid or len(set(names)) < len(names):
        raise PipelineError(
            f"{path} is damaged",
            key="trials",
            value=names,
            expected="at least one name such as 001_seed-1, without duplicates",
            hint=hint,
        )
    return cast("dict[str, Any]", content)


def _define(sweep_dir: Path, trials: Sequence[Trial], about: dict[str, Any]) -> None:
    """Write the definition of a sweep, or check that the existing definition is equal.

    Raises:
        PipelineError: the directory contains a different sweep.
    """
    about = about | {"trials": [{"name": t.name, "overrides": t.overrides} for t in trials]}
    text = json.dumps({"schema_version": SCHEMA_VERSION, **about}, indent=1) + "\n"
    files = {sweep_dir / "trials" / t.name / "trial.yaml": to_yaml(t.config, False) for t in trials}
    # Write this last: a directory with this file has the configurations of all trials.
    files[sweep_dir / "sweep.json"] = text
    if (sweep_dir / "sweep.json").exists():
        other = [f for f, new in files.items() if not f.exists() or f.read_text("utf-8") != new]
        if other:
            raise PipelineError(
                f"{sweep_dir} contains another sweep ({other[-1].relative_to(sweep_dir)} differs)",
                key="--sweep-dir",
                value=str(sweep_dir),
                hint="choose another directory, or resume that sweep by passing only --sweep-dir",
            )
        return
    for file, new in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, new)


class _Sweep:
    """Run the trials of a sweep in processes, one per slot (a GPU, or the CPU)."""

    def __init__(self, folder: Path, definition: dict[str, Any]) -> None:
        self.folder = folder
        self.definition = definition
        self.trials = {t["name"]: t["overrides"] for t in definition["trials"]}
        self.running: dict[str, tuple[subprocess.Popen[str], str | None]] = {}

    def run(self, jobs: int | None, retry_failed: bool) -> None:
        """Run the remaining trials; on an interrupt, stop the running ones."""
        finished = ("done",) if retry_failed else ("done", "failed")
        remaining = [name for name in self.trials if self.status(name)["state"] not in finished]
        logger.info("Running {} of {} trials in {}", len(remaining), len(self.trials), self.folder)
        free = self._slots(jobs) if remaining else []
        try:
            while remaining or self.running:
                while remaining and free:
                    self._start(remaining.pop(0), free.pop())
                for name, (process, slot) in list(self.running.items()):
                    if process.poll() is not None:
                        self._end(name, process.returncode)
                        free.append(slot)
                time.sleep(0.2)
        finally:
            # Signal all processes before waiting, so that they save their checkpoints in parallel.
            for process, _ in self.running.values():
                process.terminate()
            for process, _ in self.running.values():
                process.wait()

    def _slots(self, jobs: int | None) -> list[str | None]:
        """Return the CUDA_VISIBLE_DEVICES value of each job, or None for a job without a GPU."""
        config = load_config(self.folder / "trials" / next(iter(self.trials)) / "trial.yaml")
        # Import torch only if needed: this process does not train. Entries may be indices or UUIDs,
        # and torch numbers the visible GPUs from 0.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names, gpus = [name.strip() for name in visible if name.strip()], 0
        if config.trainer.accelerator in ("auto", "gpu", "cuda"):
            import torch

            gpus = torch.cuda.device_count()
            # One process sees one MIG slice, however many are listed.
            if gpus and names and all(name.startswith("MIG-") for name in names):
                gpus = len(names)
        names = names or [str(n) for n in range(gpus)]
        return [names[n % gpus] if gpus else None for n in range(jobs or gpus or 1)]

    def _start(self, name: str, slot: str | None) -> None:
        """Start ``sam2kit run`` for a trial."""
        folder = self.folder / "trials" / name
        stages = ",".join(map(str, self.definition["stages"]))
        arguments = ["--config", str(folder / "trial.yaml"), "--run-dir", str(folder)]
        for key, value in self.definition["parameters"].items():
            arguments += ["-p", f"{key}={json.dumps(value)}"]
        environment = os.environ | ({} if slot is None else {"CUDA_VISIBLE_DEVICES": slot})
        with open_to_append(folder / "output.log") as log:
            process = start(
                *("sam2kit", "run", *arguments, "--stages", stages),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.running[name] = (process, slot)
        device = "" if slot is None else f" on GPU {slot}"
        logger.info("Starting trial {}{}; log: {}", name, device, folder / "output.log")
        self.write_leaderboard()

    def _end(self, name: str, code: int) -> None:
        """Record the result of a trial whose process has ended."""
        process, _ = self.running.pop(name)
        assert process.stdin is not None
        process.stdin.close()
        folder = self.folder / "trials" / name
        status = self.status(name)
        # A killed trial counts as interrupted, so the next call resumes it.
        recorded = status["state"] in ("failed", "interrupted")
        if code and not recorded and not is_locked(folder):
            # It failed before its first stage, so it has not recorded the failure.
            lines = (folder / "output.log").read_text("utf-8", "replace").strip().splitlines()
            reason = f"killed by signal {-code}" if code < 0 else "".join(lines[-1:])
            status |= {"schema_version": SCHEMA_VERSION, "state": "failed", "error": reason}
            write_text(folder / "status.json", json.dumps(status, indent=1) + "\n")
        rows = {row["name"]: row for row in self.write_leaderboard()}
        score = rows[name]["J&F"]
        result = rows[name]["error"] if score is None else f"J&F {score:.3f}"
        logger.info("Trial {} {}{}", name, rows[name]["state"], f": {result}" if result else "")

    def status(self, name: str) -> dict[str, Any]:
        """Return the content of a trial's ``status.json``, or ``waiting`` if there is none."""
        content = read_status(self.folder / "trials" / name)
        return {"state": "waiting", "stages": {}} if content is None else content

    def write_leaderboard(self) -> list[dict[str, Any]]:
        """Write ``leaderboard.json`` and ``leaderboard.md``, and return the rows."""
        from sam2kit.evaluation.compare_runs import group_trials, setting_rows, trial_rows
        from sam2kit.evaluation.scores import AFTER
        from sam2kit.evaluation.statistics import MIN_VIDEOS
        from sam2kit.viz.tables import Table

        rows = [self._row(name) for name in self.trials]
        rows.sort(key=lambda row: (row["J&F"] is None, -(row["J&F"] or 0)))
        for rank, row in enumerate(rows, start=1):
            row["rank"] = None if row["J&F"] is None else rank
        metric = METRIC.format(AFTER)
        content = {"schema_version": SCHEMA_VERSION, "metric": metric, "higher_is_better": True}
        done = [row["name"] for row in rows if row["state"] == "done"]
        groups = group_trials(self.folder / "trials", self.trials, done)
        content |= {"groups": groups, "trials": rows}
        write_text(self.folder / "leaderboard.json", json.dumps(content, indent=1) + "\n")
        sweep = self.folder.resolve().name
        by_setting = Table(setting_rows(sweep, content)).markdown()
        table = Table(trial_rows(sweep, content)).markdown()
        notes = GAIN_NOTE.format(MIN_VIDEOS)
        if len(groups) > 1:
            notes += f" {BEST_OF_MANY.format(len(groups))}"
        text = f"{metric}.\n\n{by_setting}\n\n{notes}\n\nAll trials:\n\n{table}\n"
        write_text(self.folder / "leaderboard.md", text)
        return rows

    def _row(self, name: str) -> dict[str, Any]:
        """Return a trial's row of ``leaderboard.json``, without its rank."""
        from sam2kit.evaluation.compare_runs import read_metrics
        from sam2kit.evaluation.scores import AFTER

        folder = self.folder / "trials" / name
        status = self.status(name)
        state = "running" if name in self.running else status["state"]
        row = {"rank": None, "name": name, "overrides": self.trials[name], "state": state}
        row |= {"J&F": None, "J&F_interval": None, "run_dir": f"trials/{name}"}
        row["error"] = status.get("error") if state in ("failed", "interrupted") else None
        if state == "done" and (folder / "metrics.json").exists():
            scores = read_metrics(folder)["trackers"].get(AFTER)
            if scores:
                row |= {"J&F": scores["J&F"], "J&F_interval": scores["J&F_interval"]}
        return row
