"""Evaluations of any number of runs in one table and one picture, for ``05_compare_runs``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sam2kit.evaluation.scores import SCHEMA_VERSION
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text
from sam2kit.viz.plots import interval_chart

LEADERBOARD = "leaderboard.json"


@dataclass(frozen=True)
class EvaluatedRun:
    """A folder that ``sam2kit evaluate`` wrote.

    Attributes:
        name: the end of its path that tells it from the others.
        metrics: what its ``metrics.json`` holds.
    """

    name: str
    metrics: dict[str, Any]


def find_runs(folders: Iterable[str | Path]) -> list[EvaluatedRun]:
    """The evaluations in some folders and below them, in the order of their paths.

    Raises:
        DataError: a folder that is missing or holds no evaluation, or one of another schema.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        files = sorted(folder.rglob("metrics.json"))
        if not files:
            raise DataError(f"{folder} holds no metrics.json; sam2kit evaluate writes one")
        found |= {file.parent.resolve(): _read(file) for file in files}
    if not found:
        raise DataError("no run to compare; name at least one folder")
    names = _names(list(found))
    return [EvaluatedRun(name, found[path]) for path, name in names.items()]


def _read(
    file: Path, version: int = SCHEMA_VERSION, remedy: str = "evaluate the run again"
) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict) or content.get("schema_version") != version:
        raise DataError(f"{file}: field 'schema_version' must be {version}; {remedy}")
    return content


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """The ends of the paths with as many parts as it takes to make them all different."""
    names: dict[Path, str] = {}
    count = 0
    while len(set(names.values())) < len(paths):
        count += 1
        names = {path: "/".join(path.parts[-count:]) for path in paths}
    return names


def leaderboard_rows(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The leaderboards of the sweeps in some folders and below them: a row for each trial.

    The best of a sweep first, then those without a score. No rows where there is no sweep.

    Raises:
        DataError: a leaderboard that cannot be read.
    """
    files = {file.resolve() for folder in folders for file in Path(folder).rglob(LEADERBOARD)}
    names = _names(sorted(file.parent for file in files))
    rows = []
    for folder, name in names.items():
        for trial in _read(folder / LEADERBOARD, 1, "run the sweep again")["trials"]:
            row = {"sweep": name, "rank": trial["rank"], "trial": trial["name"]}
            error = visible_text(" ".join((trial["error"] or "").split()), 160)
            rows.append(row | _mean_and_interval(trial) | {"state": trial["state"], "error": error})
    return rows


def _mean_and_interval(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return two columns of a table; None where there is no score, or no interval."""
    low, high = scores["J&F_interval"] or (None, None)
    interval = None if low is None else f"{low:.3f} to {high:.3f}"
    return {"J&F": scores["J&F"], "95% interval": interval}


def comparison_rows(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """Return a row per tracker of each run: the means over objects, the interval of J&F."""
    columns = ("J", "F", "false_absence", "recovery", "scored_objects")
    return [
        {"run": run.name, "tracker": tracker}
        | _mean_and_interval(means)
        | {column: means[column] for column in columns}
        for run in runs
        for tracker, means in run.metrics["trackers"].items()
    ]


def comparison_figure(runs: Sequence[EvaluatedRun]) -> Figure:
    """Plot J&F of every tracker of every run, with its interval."""
    groups = {
        run.name: {
            tracker: dict(zip(("mean", "low", "high"), (s["J&F"], *s["J&F_interval"]), strict=True))
            for tracker, s in run.metrics["trackers"].items()
        }
        for run in runs
    }
    return interval_chart(groups, "J&F with 95% interval")


def comparison_warnings(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Why the scores of the runs may not be set against each other; none if they may."""
    first, *others = runs
    warnings = []
    for run in others:
        ours, theirs = first.metrics, run.metrics
        different = [key for key in ("convention", "protocol") if ours[key] != theirs[key]]
        if ours["videos"].keys() != theirs["videos"].keys():
            different.append("videos")
        if different:
            warnings.append(f"{run.name} and {first.name} differ in {', '.join(different)}")
    return warnings
