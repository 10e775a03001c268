"""Compare the evaluations of several runs in one table and one figure, for ``05_compare_runs``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from matplotlib.figure import Figure

from sam2kit.evaluation.scores import SCHEMA_VERSION
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import check_types, read_json
from sam2kit.utils.text import visible_text
from sam2kit.viz.plots import interval_chart

LEADERBOARD = "leaderboard.json"
_Score = TypedDict("_Score", {"J&F": float | None, "J&F_interval": list[float | None] | None})


class _Means(_Score):
    J: float | None
    F: float | None
    false_absence: float | None
    recovery: float | None
    scored_objects: int | None


class _Metrics(TypedDict):
    schema_version: Literal[SCHEMA_VERSION]  # type: ignore[valid-type]
    trackers: dict[str, _Means]
    videos: dict[str, Any]
    convention: Any
    protocol: Any


class _Trial(_Score):
    rank: int | None
    name: str
    state: str
    error: str | None


class _Leaderboard(TypedDict):
    trials: list[_Trial]


@dataclass(frozen=True)
class EvaluatedRun:
    """The result of one ``sam2kit evaluate``.

    Attributes:
        name: the shortest end of the folder's path that is unique among the runs.
        metrics: the content of its ``metrics.json``.
    """

    name: str
    metrics: dict[str, Any]


def find_runs(folders: Iterable[str | Path]) -> list[EvaluatedRun]:
    """Find the evaluations in folders and their subfolders.

    Returns:
        The runs of each folder in the order of their paths; a run that several folders contain
        appears once.

    Raises:
        DataError: a folder is missing or has no evaluation, or an evaluation has another schema
            version.
    """
    metrics_by_path: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        files = sorted(folder.rglob("metrics.json"))
        if not files:
            raise DataError(
                f"{folder} contains no metrics.json",
                hint="run sam2kit evaluate first, or name a folder that it wrote",
            )
        metrics_by_path |= {file.parent.resolve(): _read_result(file) for file in files}
    for path, metrics in metrics_by_path.items():
        if not metrics["trackers"]:
            message = f"{path / 'metrics.json'} has no scores of trackers"
            raise DataError(message, key="trackers", hint="evaluate the run again")
    if not metrics_by_path:
        raise DataError("no run to compare", hint="name at least one folder")
    names = _unique_names(list(metrics_by_path))
    return [EvaluatedRun(name, metrics_by_path[path]) for path, name in names.items()]


def _read_result(
    file: Path,
    version: int = SCHEMA_VERSION,
    hint: str = "evaluate the run again",
    kind: Any = _Metrics,
) -> dict[str, Any]:
    """Read a JSON file and check its schema version and the types of its values.

    Raises:
        DataError: the file cannot be read, is damaged, or has another schema version; ``hint`` is
            the fix.
    """
    try:
        content = read_json(file, hint=hint, non_finite=True)
    except FileNotFoundError as error:
        raise DataError(f"{file} cannot be read ({error})", hint=hint) from error
    actual_version = content.get("schema_version") if isinstance(content, dict) else None
    if actual_version != version:
        raise DataError(
            str(file), key="schema_version", value=actual_version, expected=str(version), hint=hint
        )
    check_types(content, kind, file, hint)
    return content


def _unique_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Name each path by its last parts, as few as make all names different."""
    names: dict[Path, str] = {}
    count = 0
    while len(set(names.values())) < len(paths):
        count += 1
        names = {path: "/".join(path.parts[-count:]) for path in paths}
    return names


def leaderboard_rows(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the leaderboards of the sweeps in folders and their subfolders, one row per trial.

    The trials of a sweep are in the order of its leaderboard: the best first, those without a score
    last. Without a sweep there are no rows.

    Raises:
        DataError: a leaderboard cannot be read or has another schema version.
    """
    files = {file.resolve() for folder in folders for file in Path(folder).rglob(LEADERBOARD)}
    names = _unique_names(sorted(file.parent for file in files))
    rows = []
    for folder, name in names.items():
        for trial in _read_result(folder / LEADERBOARD, 1, "run the sweep again", _Leaderboard)[
            "trials"
        ]:
            row = {"sweep": name, "rank": trial["rank"], "trial": trial["name"]}
            # An error may span many lines; the table has one cell for it.
            error = visible_text(" ".join((trial["error"] or "").split()), 160)
            rows.append(row | _mean_and_interval(trial) | {"state": trial["state"], "error": error})
    return rows


def _mean_and_interval(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns ``J&F`` and ``95% interval``; None where there is no value."""
    low, high = _interval(scores)
    interval = None if low is None else f"{low:.3f} to {high:.3f}"
    return {"J&F": scores["J&F"], "95% interval": interval}


def _interval(scores: Mapping[str, Any]) -> tuple[float | None, float | None]:
    interval: Sequence[float | None] = scores["J&F_interval"] or ()
    if len(interval) != 2 or None in interval:
        return None, None
    return interval[0], interval[1]


def comparison_rows(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """Return one row per tracker and run: means over objects, and the interval of J&F."""
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
            tracker: dict(zip(("mean", "low", "high"), (s["J&F"], *_interval(s)), strict=True))
            for tracker, s in run.metrics["trackers"].items()
        }
        for run in runs
    }
    return interval_chart(groups, "J&F with 95% interval")


def comparison_warnings(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the reasons why the scores of the runs are not comparable; empty if they are.

    Each run is compared with the first: convention, protocol and videos must be the same.
    """
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
