"""Compare evaluations of several runs, for ``sam2kit compare`` and ``05_compare_runs``.

Runs are compared by paired differences on their common videos, using the scores in
``metrics.json``. Nothing is tracked again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from matplotlib.figure import Figure

from sam2kit.config.schema import MACHINE, options
from sam2kit.data.splits import SplitVideo
from sam2kit.evaluation.plots import paired_chart
from sam2kit.evaluation.scores import BEFORE, SCHEMA_VERSION
from sam2kit.evaluation.statistics import (
    MIN_VIDEOS,
    NO_INTERVAL,
    by_video,
    difference_summary,
    holm,
    interval_text,
    power_text,
    seed_summary,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.readers import check_types, damage_is, read_json, read_yaml
from sam2kit.utils.text import markdown_text, plural, visible_text
from sam2kit.viz.plots import interval_chart, save_figure
from sam2kit.viz.tables import Table

LEADERBOARD = "leaderboard.json"
Key = tuple[str, tuple[str, int]]  # video; object and number of scored frames
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


class _Gain(TypedDict):
    gain: float | None
    gain_interval: list[float | None] | None


class _Group(_Gain):
    rank: int | None
    overrides: list[str]
    seeds: list[str]
    done: int
    trials: list[str]
    seed_spread: float | None
    p_corrected: float | None


_GroupScore = TypedDict("_GroupScore", {"J&F": float | None})


class _ScoredGroup(_Group, _GroupScore):
    pass


class _Leaderboard(TypedDict):
    trials: list[_Trial]


class _Groups(TypedDict):
    groups: list[_ScoredGroup]


@dataclass(frozen=True)
class EvaluatedRun:
    """The result of a ``sam2kit evaluate`` call.

    Attributes:
        name: the shortest suffix of the directory's path that is unique among the runs.
        metrics: the content of ``metrics.json``. Videos with the name of another run's video, but
            other frames, are numbered: ``NAME (2)``.
        seed: the seed of training, or None for weights that do not come from a run.
        settings: all training settings in the run's ``config.yaml`` except for the seed, with a
            checksum of the training videos, or None if there is no such file. Runs with equal
            settings only differ in their seed.
    """

    name: str
    metrics: dict[str, Any]
    seed: int | None = None
    settings: str | None = None

    @property
    def tracker(self) -> str:
        """The tracker under evaluation (the first tracker)."""
        return next(iter(self.metrics["trackers"]))

    @property
    def kind(self) -> str:
        """Convention and protocol; scores with different values are not comparable."""
        return json.dumps([self.metrics[key] for key in ("convention", "protocol")], sort_keys=True)

    def scores(self, tracker: str) -> dict[Key, float]:
        """Return J&F by video, object and number of scored frames; empty for other trackers.

        Scores over different numbers of frames have different keys, so they are never compared.
        """
        scores = {}
        with damage_is(DataError, f"metrics.json of {self.name}", "evaluate the run again"):
            for video, content in self.metrics["videos"].items():
                if tracker != self.tracker:
                    content = content.get("trackers", {}).get(tracker, {})
                for identity, values in content.get("objects", {}).items():
                    if values["J&F"] is None:
                        continue
                    if not math.isfinite(values["J&F"]):
                        raise ValueError(f"J&F of {visible_text(video)} is {values['J&F']}")
                    scores[video, (identity, values["frames"])] = float(values["J&F"])
        return scores


def find_runs(folders: Iterable[str | Path]) -> list[EvaluatedRun]:
    """Find evaluations in directories and their subdirectories.

    Returns:
        The runs of each directory, sorted by path, without duplicates.

    Raises:
        DataError: a directory is missing or contains no evaluation, or an evaluation has another
            schema version.
    """
    metrics_by_path: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        files = sorted(folder.rglob("metrics.json"))
        if not files:
            raise DataError(
                f"{folder} contains no metrics.json",
                hint="run sam2kit evaluate first, or pass its output directory",
            )
        metrics_by_path |= {file.parent.resolve(): read_metrics(file.parent) for file in files}
    for path, metrics in metrics_by_path.items():
        if not metrics["trackers"]:
            message = f"{path / 'metrics.json'} has no scores of trackers"
            raise DataError(message, key="trackers", hint="evaluate the run again")
    if not metrics_by_path:
        raise DataError("no runs to compare", hint="pass at least one directory")
    # An evaluation in RUN/evaluation, as in the documentation, is named after the run.
    shown = {p: p.parent if p.name == "evaluation" else p for p in metrics_by_path}
    if len(set(shown.values())) < len(shown):
        shown = {path: path for path in metrics_by_path}
    names = _unique_names(list(shown.values()))
    _number_videos(metrics_by_path)
    return [
        EvaluatedRun(names[shown[path]], metrics, *_seed_and_settings(path, metrics))
        for path, metrics in metrics_by_path.items()
    ]


def _number_videos(results: Mapping[Path, dict[str, Any]]) -> None:
    """Rename videos with the name of another evaluation's video, but other frames."""
    known: dict[str, list[SplitVideo]] = {}  # the different videos of each name
    for path, metrics in results.items():
        videos = {}
        with damage_is(DataError, path / "metrics.json", "evaluate the run again"):
            for name, scores in metrics["videos"].items():
                # Earlier versions did not store the content; then the name decides.
                video = SplitVideo(name, (0, 0), tuple(scores.get("content", ())))
                others = known.setdefault(name, [])
                same = (n for n, other in enumerate(others) if video.same_video(other))
                number = next(same, len(others))
                if number == len(others):
                    others.append(video)
                elif not others[number].content:
                    others[number] = video
                videos[f"{name} ({number + 1})" if number else name] = scores
        metrics["videos"] = videos


def _seed_and_settings(folder: Path, metrics: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Return the seed and the other settings of training.

    Args:
        folder: the directory with ``config.yaml``, the configuration of the evaluation.
        metrics: the content of ``metrics.json``. Its ``training`` is missing in those of earlier
            versions; then the seed of the evaluation is returned.
    """
    file, hint = folder / "config.yaml", "evaluate the run again"
    try:
        content = read_yaml(file, hint=hint, error=DataError)
    except FileNotFoundError:
        return None, None
    scopes = {key: declared.metadata["scope"] for key, declared in options().items()}
    values = {}
    with damage_is(DataError, file, hint):
        for section, value in content.items():
            # Exclude evaluation settings, which do not affect training.
            if section in ("evaluation", "valdataset", "testdataset", "features", "seed"):
                continue
            entries = value if isinstance(value, dict) else {"": value}
            for name, entry in entries.items():
                key = f"{section}.{name}".rstrip(".")
                if scopes.get(key) != MACHINE:
                    values[key] = entry
        seed = content.get("seed")
        if "training" in metrics:
            training = metrics["training"] or {}
            seed, values["training videos"] = training.get("seed"), training.get("videos")
    return seed, json.dumps(values, sort_keys=True, default=str)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read ``metrics.json`` in a directory.

    Raises:
        DataError: the file cannot be read, is damaged, or has another schema version.
    """
    return _read_result(folder / "metrics.json", SCHEMA_VERSION, "evaluate the run again", _Metrics)


def _read_result(file: Path, version: int, hint: str, kind: Any) -> dict[str, Any]:
    """Read a JSON file and check its schema version and value types."""
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
    """Name each path by the smallest number of trailing parts that makes all names unique."""
    names: dict[Path, str] = {}
    count = 0
    while len(set(names.values())) < len(paths):
        count += 1
        names = {path: "/".join(path.parts[-count:]) for path in paths}
    return names


def leaderboard_rows(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the leaderboards of all sweeps in directories, one row per trial.

    Subdirectories are searched, too. Trials are in leaderboard order: the best first, those without
    a score last. Without a sweep, there are no rows.

    Raises:
        DataError: a leaderboard cannot be read or has another schema version.
    """
    return [row for sweep in _leaderboards(folders) for row in trial_rows(*sweep)]


def _leaderboards(folders: Iterable[str | Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a unique name and the content of each leaderboard in directories."""
    files = {file.resolve() for folder in folders for file in Path(folder).rglob(LEADERBOARD)}
    hint = "run the sweep again"
    for folder, name in _unique_names(sorted(file.parent for file in files)).items():
        content = _read_result(folder / LEADERBOARD, 1, hint, _Leaderboard)
        if "groups" in content:  # earlier versions have none
            check_types(content, _Groups, folder / LEADERBOARD, hint)
        yield name, content


def trial_rows(sweep: str, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of :func:`leaderboard_rows` for one leaderboard.

    Args:
        sweep: name of the sweep.
        content: the content of ``leaderboard.json``.
    """
    rows = []
    for trial in content["trials"]:
        row = {"sweep": sweep, "rank": trial["rank"], "trial": trial["name"]}
        # Shorten errors, which may span many lines, to fit into a cell.
        error = visible_text(" ".join((trial["error"] or "").split()), 160)
        rows.append(row | _mean_and_interval(trial) | {"state": trial["state"], "error": error})
    return rows


def leaderboard_groups(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Return the leaderboards of all sweeps in directories, one row per setting.

    Trials that only differ in their seed have the same setting. Gains are relative to the starting
    model, and p is corrected for the number of settings. Leaderboards of earlier versions have no
    such rows.

    Raises:
        DataError: see :func:`leaderboard_rows`.
    """
    return [row for sweep in _leaderboards(folders) for row in setting_rows(*sweep)]


def setting_rows(sweep: str, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of :func:`leaderboard_groups` for one leaderboard; see :func:`trial_rows`."""
    rows = []
    for group in content.get("groups", ()):
        low, high = group["gain_interval"] or (None, None)
        setting = visible_text(", ".join(group["overrides"]) or "the same", 120)
        rows.append(
            {"sweep": sweep, "rank": group["rank"], "setting": setting}
            | {"seeds": f"{group['done']} of {len(group['trials'])}", "J&F": group["J&F"]}
            | {"gain": None if group["gain"] is None else f"{group['gain']:+.3f}"}
            | {"95% interval": interval_text(low, high)}
            | {"p": group["p_corrected"], "between seeds": group["seed_spread"]}
        )
    return rows


def group_trials(
    folder: Path, trials: Mapping[str, Sequence[str]], done: Iterable[str]
) -> list[dict[str, Any]]:
    """Group the finished trials of a sweep by setting (without the seed), best group first.

    Args:
        folder: the directory of the trials.
        trials: overrides by name of the trial.
        done: names of the finished trials that have a ``metrics.json``.

    Returns:
        One entry per setting: ``rank``, ``overrides`` without the seed, ``seeds``, ``trials``,
        number of trials ``done``, mean ``J&F``, and the gain over the starting model as ``gain``,
        ``gain_interval``, ``seed_spread`` and ``p_corrected``.

    Raises:
        DataError: a ``metrics.json`` is damaged.
    """
    finished = set(done)
    names: dict[tuple[str, ...], list[str]] = {}
    for name, overrides in trials.items():
        setting = tuple(o for o in overrides if not _is_seed(o))
        names.setdefault(setting, []).append(name)
    groups = []
    for setting, members in names.items():
        runs = [
            EvaluatedRun(name, read_metrics(folder / name), seed=number)
            for number, name in enumerate(members)
            if name in finished and (folder / name / "metrics.json").exists()
        ]
        runs = [run for run in runs if run.metrics["trackers"]]
        gain = RunGroup("", runs).gains() if runs else None
        scores = [run.metrics["trackers"][run.tracker]["J&F"] for run in runs]
        scores = [score for score in scores if score is not None]
        seeds = [o.partition("=")[2] for n in members for o in trials[n] if _is_seed(o)]
        groups.append(
            {"rank": None, "overrides": list(setting), "seeds": seeds, "trials": members}
            | {"done": len(runs), "J&F": float(np.mean(scores)) if scores else None}
            | {"gain": gain and gain["mean"], "p": gain and gain["p"]}
            | {"gain_interval": [gain["low"], gain["high"]] if gain else None}
            | {"seed_spread": gain and gain["seed_spread"]}
        )
    for group, p in zip(groups, holm([group.pop("p") for group in groups]), strict=True):
        group["p_corrected"] = p
    groups.sort(key=lambda group: (group["J&F"] is None, -(group["J&F"] or 0)))
    for rank, group in enumerate(groups, start=1):
        group["rank"] = None if group["J&F"] is None else rank
    return groups


def _is_seed(override: str) -> bool:
    return override.lstrip("+").partition("=")[0] == "seed"


def _mean_and_interval(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns ``J&F`` and ``95% interval``, None if undefined."""
    interval = interval_text(*_interval(scores), signed=False)
    return {"J&F": scores["J&F"], "95% interval": interval}


def _interval(scores: Mapping[str, Any]) -> tuple[float | None, float | None]:
    interval: Sequence[float | None] = scores["J&F_interval"] or ()
    if len(interval) != 2 or None in interval:
        return None, None
    return interval[0], interval[1]


def comparison_rows(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """Return one row per tracker and run with means over objects and the interval of J&F."""
    columns = ("J", "F", "false_absence", "recovery", "scored_objects")
    return [
        {"run": run.name, "tracker": tracker}
        | _mean_and_interval(means)
        | {column: means[column] for column in columns}
        for run in runs
        for tracker, means in run.metrics["trackers"].items()
    ]


def comparison_figure(runs: Sequence[EvaluatedRun]) -> Figure:
    """Plot J&F of every tracker and run with its interval."""
    groups = {
        run.name: {
            tracker: dict(zip(("mean", "low", "high"), (s["J&F"], *_interval(s)), strict=True))
            for tracker, s in run.metrics["trackers"].items()
        }
        for run in runs
    }
    return interval_chart(groups, "J&F with 95% interval")


def comparison_warnings(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Return the reasons why the runs' scores are not comparable; empty if they are.

    Convention, protocol and videos of each run must be the same as for the first run.
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


@dataclass(frozen=True)
class RunGroup:
    """Evaluations of runs that only differ in their seed, or of a single run.

    Attributes:
        name: the common part of the runs' names.
        runs: one run per seed.
    """

    name: str
    runs: Sequence[EvaluatedRun]

    def scores(self) -> dict[Key, float]:
        """Return J&F of the objects that are scored in all runs, averaged over seeds."""
        by_run = [run.scores(run.tracker) for run in self.runs]
        common = set.intersection(*(set(s) for s in by_run))
        return {key: float(np.mean([s[key] for s in by_run])) for key in common}

    def gains(self) -> dict[str, Any] | None:
        """Return :func:`~sam2kit.evaluation.statistics.seed_summary` over the starting model.

        Returns None if an evaluation has no starting model.
        """
        differences = {}
        for run in self.runs:
            scores, start = run.scores(run.tracker), run.scores(BEFORE)
            if not start:
                return None
            differences[run.name if run.seed is None else run.seed] = {
                key: scores[key] - start[key] for key in scores if key in start
            }
        return seed_summary(differences)


@dataclass(frozen=True)
class DataSetComparison:
    """Comparison of runs on a dataset of common videos.

    Attributes:
        groups: the runs, grouped by seed.
        gains: one row per group: ``run``, number of ``seeds``, mean ``J&F``, and the gain over the
            starting model as in :func:`sam2kit.evaluation.statistics.seed_summary`, with
            ``p_corrected``. A negative gain on a second dataset indicates forgetting.
        pairs: one row per pair of groups: ``run``, ``other``, and the difference on the common
            objects as in :func:`sam2kit.evaluation.statistics.difference_summary`, with
            ``p_corrected`` and ``unpaired``, the number of objects that only one group scores, or
            that are scored on different numbers of frames.
    """

    groups: Sequence[RunGroup]
    gains: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def videos(self) -> list[str]:
        """The names of all videos, sorted."""
        return sorted({v for group in self.groups for run in group.runs for v in _videos(run)})

    @property
    def title(self) -> str:
        """The number of videos, and the first few names."""
        names = [visible_text(name, 40) for name in self.videos[:3]]
        more = ", …" if len(self.videos) > len(names) else ""
        return f"{plural(len(self.videos), 'video')}: {', '.join(names)}{more}"

    def gain_table(self) -> Table:
        """Return the gains over the starting model as a table."""
        return Table(
            [
                {"run": row["run"], "seeds": row["seeds"], "J&F": row["J&F"]}
                | {"gain": row["gain"] and f"{row['gain']['mean']:+.3f}"}
                | _difference_cells(row["gain"] or {}, row["p_corrected"])
                | {"between seeds": (row["gain"] or {}).get("seed_spread")}
                for row in self.gains
            ]
        )

    def pair_table(self) -> Table | None:
        """Return the differences between runs as a table, or None if there is only one run."""
        rows = [
            {"run": row["run"], "minus": row["other"]}
            | {"difference": None if row["mean"] is None else f"{row['mean']:+.3f}"}
            | _difference_cells(row, row["p_corrected"])
            | {key: row[key] for key in ("better", "worse", "unpaired")}
            for row in self.pairs
        ]
        return Table(rows) if rows else None

    def notes(self) -> list[str]:
        """Return caveats about the numbers."""
        compared = [row["gain"] for row in self.gains if row["gain"]] + self.pairs
        notes = self._leaks()
        notes += [NO_INTERVAL] if any(c["videos"] < MIN_VIDEOS for c in compared) else []
        if len(self.groups) > 1:
            notes.append(
                "p is corrected for the number of rows of its table (Holm). The best of several "
                "runs is biased upward: evaluate it on other videos."
            )
        if compared:
            notes.append(power_text(compared[0]["spread"], compared[0]["videos"]))
        return [note for note in notes if note]

    def _leaks(self) -> list[str]:
        """Return warnings about runs whose checkpoint was trained or selected on these videos."""
        warnings = []
        for key, use in (("trained_on", "trained"), ("selected_on", "selected")):
            names = []
            for run in (run for group in self.groups for run in group.runs):
                with damage_is(DataError, f"metrics.json of {run.name}", "evaluate the run again"):
                    if (run.metrics.get("split") or {}).get(key):
                        names.append(visible_text(run.name))
            if names:
                some = ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")
                warnings.append(
                    f"Warning: checkpoints were {use} on videos scored here ({some}). Their scores "
                    "are biased upward."
                )
        return warnings

    def figure(self) -> Figure | None:
        """Plot scores per video for two runs, or before and after training for a single run.

        With several runs, the pair with the largest mean difference is shown. Returns None if there
        are no pairs.
        """
        paired = [row for row in self.pairs if row["mean"] is not None]
        if paired:
            row = max(paired, key=lambda row: abs(row["mean"]))
            groups = {group.name: group for group in self.groups}
            names = row["other"], row["run"]
            first = groups[names[0]].scores()
            seconds = [run.scores(run.tracker) for run in groups[names[1]].runs]
        else:
            (group, *_), names = self.groups, (BEFORE, self.groups[0].runs[0].tracker)
            first = group.runs[0].scores(BEFORE)
            seconds = [run.scores(run.tracker) for run in group.runs]
        common = set(first).intersection(*seconds)
        videos = sorted({key[0] for key in common})
        if not videos:
            return None

        def mean(scores: Mapping[Key, float], video: str) -> float:
            return float(np.mean([scores[key] for key in common if key[0] == video]))

        pairs = {v: (mean(first, v), [mean(s, v) for s in seconds]) for v in videos}
        return paired_chart(pairs, names, "J&F of each video")

    def text(self, markdown: bool = False) -> str:
        """Return title, tables and notes as plain text or Markdown."""
        tables = [table for table in (self.gain_table(), self.pair_table()) if table is not None]
        heads = ["Gain over the starting model (negative: forgetting)", "Differences between runs"]
        parts = [f"## {markdown_text(self.title)}" if markdown else self.title]
        for head, table in zip(heads, tables, strict=False):
            parts += [f"{head}:", table.markdown() if markdown else str(table)]
        return "\n\n".join([*parts, *self.notes()]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Return rows and video names as JSON-serializable values."""
        groups = {g.name: [run.name for run in g.runs] for g in self.groups}
        content = {"videos": self.videos, "runs": groups, "gains": self.gains, "pairs": self.pairs}
        return json.loads(json.dumps(content))


def compare_on_videos(runs: Sequence[EvaluatedRun]) -> list[DataSetComparison]:
    """Compare runs by paired differences on their common videos.

    Evaluations belong to one dataset if they share videos (directly or through others), convention
    and protocol. Runs that only differ in their seed are grouped, and the scores of each object are
    averaged over seeds. All groups are compared in pairs, with p-values corrected for the number of
    comparisons (Holm).

    Returns:
        One comparison per dataset, in the order of the runs.

    Raises:
        DataError: a ``metrics.json`` is damaged.
    """
    comparisons = []
    for members in _data_sets(runs):
        groups = _group_seeds(members)
        gains = [group.gains() for group in groups]
        gains = [gain if gain and gain["mean"] is not None else None for gain in gains]
        gain_rows: list[dict[str, Any]] = []
        corrected = holm([gain["p"] if gain else None for gain in gains])
        for group, gain, p in zip(groups, gains, corrected, strict=True):
            scores = list(group.scores().values())
            mean = float(np.mean(scores)) if scores else None
            row = {"run": group.name, "seeds": len(group.runs), "J&F": mean}
            gain_rows.append({**row, "gain": gain, "p_corrected": p})
        pairs = [_pair(one, other) for one, other in combinations(groups, 2)]
        for row, p in zip(pairs, holm([row["p"] for row in pairs]), strict=True):
            row["p_corrected"] = p
        comparisons.append(DataSetComparison(groups, gain_rows, pairs))
    return comparisons


def write_comparison(comparisons: Sequence[DataSetComparison], folder: Path) -> Path:
    """Write ``comparison.json``, ``comparison.md`` and one figure per dataset.

    Returns:
        The path of ``comparison.md``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, comparison in enumerate(comparisons, start=1):
        parts.append(comparison.text(markdown=True))
        if (figure := comparison.figure()) is not None:
            save_figure(figure, folder / f"comparison_{number}.png")
            parts[-1] += f"\n![J&F of each video](comparison_{number}.png)\n"
    content = {"schema_version": 1, "data_sets": [c.to_dict() for c in comparisons]}
    write_text(folder / "comparison.json", json.dumps(content, indent=1) + "\n")
    write_text(folder / "comparison.md", "# Comparison of runs\n\n" + "\n".join(parts))
    return folder / "comparison.md"


def check_comparable(comparisons: Sequence[DataSetComparison]) -> None:
    """Check that there is a comparison between runs, unless there is only one run.

    Raises:
        DataError: no two runs have common videos that were scored on the same number of frames with
            the same convention and protocol; the message names the difference.
    """
    runs = [run for c in comparisons for group in c.groups for run in group.runs]
    if any(row["objects"] for c in comparisons for row in c.pairs):
        return
    groups = {run.settings or run.name for run in runs}
    if len(groups) < 2:
        return
    one = runs[0]
    other = next(r for r in runs if (r.settings or r.name) != (one.settings or one.name))
    where = f"{one.name} and {other.name}"
    if not set(_videos(one)) & set(_videos(other)):
        raise DataError(
            f"{where} have no common videos",
            key="valdataset",
            hint="evaluate both on the same videos: sam2kit evaluate --model-checkpoint RUN "
            "--data-path DIR. Clips generated for validation depend on seed: use the same --seed",
        )
    for key in ("convention", "protocol"):
        if one.metrics[key] != other.metrics[key]:
            raise DataError(
                f"{where} were evaluated with different values of {key}",
                key=f"evaluation.{key}",
                value=str([visible_text(str(r.metrics[key]), 120) for r in (one, other)]),
                hint="evaluate one of them again with the settings of the other",
            )
    raise DataError(
        f"{where} have no common objects that were scored on the same number of frames",
        key="frames",
        hint="evaluate one of them again with the settings of the other",
    )


def _videos(run: EvaluatedRun) -> list[str]:
    return list(run.metrics["videos"])


def _data_sets(runs: Sequence[EvaluatedRun]) -> list[list[EvaluatedRun]]:
    """Partition runs by common videos, convention and protocol."""
    sets: list[tuple[str, set[str], list[EvaluatedRun]]] = []
    for run in runs:
        videos = set(_videos(run))
        joined = [s for s in sets if s[0] == run.kind and s[1] & videos]
        members = [member for _, _, others in joined for member in others]
        sets = [s for s in sets if s not in joined]
        sets.append((run.kind, videos.union(*(s[1] for s in joined)), [*members, run]))
    order = {id(run): n for n, run in enumerate(runs)}
    lists = [sorted(members, key=lambda run: order[id(run)]) for _, _, members in sets]
    return sorted(lists, key=lambda members: order[id(members[0])])


def _group_seeds(runs: Sequence[EvaluatedRun]) -> list[RunGroup]:
    """Group runs that only differ in their seed, and give each group a unique name."""
    by_settings: dict[Any, list[EvaluatedRun]] = {}
    for number, run in enumerate(runs):
        key = (run.settings, tuple(sorted(_videos(run)))) if run.settings else number
        by_settings.setdefault(key, []).append(run)
    members: list[list[EvaluatedRun]] = []
    for group in by_settings.values():
        # Runs with equal seeds differ in something that the configuration does not contain.
        distinct = len({run.seed for run in group}) == len(group)
        members += [group] if distinct else [[run] for run in group]
    names = [_common_name([run.name for run in group]) for group in members]
    names = [
        f"{name} ({names[:n].count(name) + 1})" if names.count(name) > 1 else name
        for n, name in enumerate(names)
    ]
    return [RunGroup(name, group) for name, group in zip(names, members, strict=True)]


def _common_name(names: Sequence[str]) -> str:
    """Return a single run's name, or the common prefix and suffix of several joined by ``*``."""
    begin = os.path.commonprefix(list(names))
    if len(names) == 1:
        return begin
    end = os.path.commonprefix([name[len(begin) :][::-1] for name in names])[::-1]
    return f"{begin}*{end}"


def _pair(one: RunGroup, other: RunGroup) -> dict[str, Any]:
    scores, others = one.scores(), other.scores()
    differences = {key: scores[key] - others[key] for key in scores if key in others}
    return {
        "run": one.name,
        "other": other.name,
        **difference_summary(by_video(differences)),
        "unpaired": len({key[:1] + key[1][:1] for key in scores.keys() ^ others.keys()}),
    }


def _difference_cells(summary: Mapping[str, Any], p: float | None) -> dict[str, Any]:
    return {
        "95% interval": interval_text(summary.get("low"), summary.get("high")),
        "p": p,
        "objects": summary.get("objects"),
        "videos": summary.get("videos"),
    }
