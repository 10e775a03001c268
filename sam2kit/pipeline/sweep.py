"""A grid of pipeline runs and its leaderboard: ``sam2kit sweep``.

Each trial is a ``sam2kit run`` in a process and a folder of its own, ``SWEEP/trials/NNN_…``, whose
``status.json`` and ``metrics.json`` say all that is known of it, so a second call knows what is
left.
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
from typing import Any

from loguru import logger

from sam2kit.config.loading import COMMAND_LINE, load_config, to_yaml
from sam2kit.config.schema import Config
from sam2kit.config.validation import check_paths
from sam2kit.pipeline.status import SCHEMA_VERSION, is_locked, locked, read_status
from sam2kit.utils.errors import ConfigError, PipelineError
from sam2kit.utils.files import write_text
from sam2kit.utils.processes import sigterm_interrupts, start

METRIC = "J&F of the tracker 'after training' on the validation videos; higher is better"


@dataclass(frozen=True)
class Trial:
    """One point of the grid.

    Attributes:
        name: of its folder; begins with its number.
        overrides: what the grid sets here.
        config: the whole configuration.
    """

    name: str
    overrides: list[str]
    config: Config


def plan_trials(config_file: str | Path | None, overrides: Sequence[str]) -> list[Trial]:
    """The trials of a grid, the values of the last key changing fastest.

    Args:
        config_file: as :func:`sam2kit.config.loading.load_config`.
        overrides: some with several values in Hydra's grammar: ``key=a,b``, ``key=[a],[b]``,
            ``key=range(1,4)``.

    Raises:
        ConfigError: no override has several values; or a trial's configuration does not compose,
            lacks its data, or asks for several devices.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    fixed: list[str] = []
    axes: list[list[str]] = []
    for text in overrides:
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
            if not parsed.is_sweep_override():
                fixed.append(text)
                continue
            values = list(parsed.sweep_string_iterator())
        except (HydraException, NotImplementedError) as error:
            told = " ".join(str(error).split())
            raise ConfigError(
                f"{COMMAND_LINE}: cannot read {text!r}; write out the values, key=a,b ({told})"
            ) from error
        axes.append([f"{parsed.get_key_element()}={value}" for value in values])
    if not axes:
        raise ConfigError(
            f"{COMMAND_LINE}: no override has several values to try, such as optimizer.lr=1e-5,1e-4"
        )
    trials = []
    for number, point in enumerate(product(*axes), start=1):
        name = _name(number, point)
        try:
            config = load_config(config_file, [*fixed, *point])
            check_paths(config)
        except ConfigError as error:
            raise ConfigError(f"trial {name}: {error}") from error
        if config.trainer.devices not in ("1", "auto", "-1"):
            raise ConfigError(
                f"trainer.devices is {config.trainer.devices!r}, but each trial of a sweep has one "
                "device; drop it, or train on several devices without a sweep"
            )
        trials.append(Trial(name, list(point), config))
    return trials


def _name(number: int, point: Sequence[str]) -> str:
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
    """Run the trials that are missing, and keep the leaderboard up to date as they end.

    A trial that fails stops no other. What was interrupted goes on where it was.

    Args:
        sweep_dir: a new folder, or one that holds a sweep, which goes on.
        trials: of :func:`plan_trials`; None: those that ``sweep_dir`` holds, as they were begun.
        parameters, stages: as :func:`sam2kit.pipeline.runner.run_stages`, for each trial.
        jobs: trials at once; None: one for each GPU, or one.
        retry_failed: run failed trials again, too.

    Returns:
        the rows of the leaderboard (docs/pipeline.md), the best first.

    Raises:
        PipelineError: the folder holds no sweep, or another one, or is in use.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; the trials have been ended.
    """
    definition = sweep_dir / "sweep.json"
    if trials is None and not definition.exists():
        raise PipelineError(f"{sweep_dir} holds no sweep to go on with; give --config and values")
    sweep_dir.mkdir(parents=True, exist_ok=True)
    with locked(sweep_dir), sigterm_interrupts():
        if trials is not None:
            _define(sweep_dir, trials, {"parameters": dict(parameters or {}), "stages": stages})
        sweep = _Sweep(sweep_dir, json.loads(definition.read_text(encoding="utf-8")))
        try:
            sweep.run(jobs, retry_failed)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"go on with: sam2kit sweep --sweep-dir {sweep_dir}") from None
        finally:
            rows = sweep.write_leaderboard()
    print((sweep_dir / "leaderboard.md").read_text(encoding="utf-8"), flush=True)
    return rows


def _define(sweep_dir: Path, trials: Sequence[Trial], about: dict[str, Any]) -> None:
    """Write down what the sweep is; of one that is there, make sure that it is the same.

    Raises:
        PipelineError: it is another one.
    """
    about = about | {"trials": [{"name": t.name, "overrides": t.overrides} for t in trials]}
    text = json.dumps({"schema_version": SCHEMA_VERSION, **about}, indent=1) + "\n"
    files = {sweep_dir / "trials" / t.name / "trial.yaml": to_yaml(t.config, False) for t in trials}
    files[sweep_dir / "sweep.json"] = text  # last: it says that all are there
    if (sweep_dir / "sweep.json").exists():
        other = [f for f, new in files.items() if not f.exists() or f.read_text("utf-8") != new]
        if other:
            raise PipelineError(
                f"{sweep_dir} holds another sweep ({other[-1].relative_to(sweep_dir)} differs); "
                "name another folder, or give --sweep-dir alone to go on with what was begun"
            )
        return
    for file, new in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, new)


class _Sweep:
    """The trials of a folder and the processes that run them."""

    def __init__(self, folder: Path, definition: dict[str, Any]) -> None:
        self.folder = folder
        self.definition = definition
        self.trials = {t["name"]: t["overrides"] for t in definition["trials"]}
        self.running: dict[str, tuple[subprocess.Popen[str], str | None]] = {}

    def run(self, jobs: int | None, retry_failed: bool) -> None:
        kept = ("done",) if retry_failed else ("done", "failed")
        left = [name for name in self.trials if self.status(name)["state"] not in kept]
        logger.info("{} of {} trials to run in {}", len(left), len(self.trials), self.folder)
        free = self._slots(jobs) if left else []
        try:
            while left or self.running:
                while left and free:
                    self._start(left.pop(0), free.pop())
                for name, (process, slot) in list(self.running.items()):
                    if process.poll() is not None:
                        self._end(name, process.returncode)
                        free.append(slot)
                time.sleep(0.2)
        finally:
            for process, _ in self.running.values():
                process.terminate()
            for process, _ in self.running.values():
                process.wait()

    def _slots(self, jobs: int | None) -> list[str | None]:
        """The GPU of each job, by the name that CUDA_VISIBLE_DEVICES gives it; None without."""
        config = load_config(self.folder / "trials" / next(iter(self.trials)) / "trial.yaml")
        gpus = 0
        if config.trainer.accelerator in ("auto", "gpu", "cuda"):
            import torch

            gpus = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(n) for n in range(gpus)]
        return [names[n % gpus] if gpus else None for n in range(jobs or gpus or 1)]

    def _start(self, name: str, slot: str | None) -> None:
        folder = self.folder / "trials" / name
        stages = ",".join(map(str, self.definition["stages"]))
        arguments = ["--config", str(folder / "trial.yaml"), "--run-dir", str(folder)]
        for key, value in self.definition["parameters"].items():
            arguments += ["-p", f"{key}={json.dumps(value)}"]
        environment = os.environ | ({} if slot is None else {"CUDA_VISIBLE_DEVICES": slot})
        with (folder / "output.log").open("a", encoding="utf-8") as log:
            process = start(
                *("sam2kit", "run", *arguments, "--stages", stages),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self.running[name] = (process, slot)
        where = "" if slot is None else f" on GPU {slot}"
        logger.info("trial {} begins{}; its lines are in {}", name, where, folder / "output.log")
        self.write_leaderboard()

    def _end(self, name: str, code: int) -> None:
        process, _ = self.running.pop(name)
        assert process.stdin is not None
        process.stdin.close()
        folder = self.folder / "trials" / name
        status = self.status(name)
        if code and status["state"] != "failed" and not is_locked(folder):
            # It was refused before its first stage, or killed.
            lines = (folder / "output.log").read_text("utf-8", "replace").strip().splitlines()
            told = f"killed by signal {-code}" if code < 0 else "".join(lines[-1:])
            status |= {"schema_version": SCHEMA_VERSION, "state": "failed", "error": told}
            write_text(folder / "status.json", json.dumps(status, indent=1) + "\n")
        rows = {row["name"]: row for row in self.write_leaderboard()}
        score = rows[name]["J&F"]
        told = rows[name]["error"] if score is None else f"J&F {score:.3f}"
        logger.info("trial {} {}{}", name, rows[name]["state"], f": {told}" if told else "")

    def status(self, name: str) -> dict[str, Any]:
        found = read_status(self.folder / "trials" / name)
        return {"state": "waiting", "stages": {}} if found is None else found

    def write_leaderboard(self) -> list[dict[str, Any]]:
        """``leaderboard.json`` and ``.md``; the rows are those of the former."""
        from sam2kit.evaluation.compare_runs import leaderboard_rows
        from sam2kit.viz.tables import Table

        rows = [self._row(name) for name in self.trials]
        rows.sort(key=lambda row: (row["J&F"] is None, -(row["J&F"] or 0)))
        for rank, row in enumerate(rows, start=1):
            row["rank"] = None if row["J&F"] is None else rank
        content = {"schema_version": SCHEMA_VERSION, "metric": METRIC, "higher_is_better": True}
        text = json.dumps(content | {"trials": rows}, indent=1) + "\n"
        write_text(self.folder / "leaderboard.json", text)
        table = Table(leaderboard_rows([self.folder])).markdown()
        write_text(self.folder / "leaderboard.md", f"{METRIC}.\n\n{table}\n")
        return rows

    def _row(self, name: str) -> dict[str, Any]:
        folder = self.folder / "trials" / name
        status = self.status(name)
        state = "running" if name in self.running else status["state"]
        row = {"rank": None, "name": name, "overrides": self.trials[name], "state": state}
        row |= {"J&F": None, "J&F_interval": None, "run_dir": f"trials/{name}"}
        row["error"] = status.get("error") if state in ("failed", "interrupted") else None
        if state == "done" and (folder / "metrics.json").exists():
            trackers = json.loads((folder / "metrics.json").read_text("utf-8"))["trackers"]
            scores = trackers["after training"]
            row |= {"J&F": scores["J&F"], "J&F_interval": scores["J&F_interval"]}
        return row
