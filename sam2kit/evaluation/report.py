"""Write the results of an evaluation as JSON, CSV, COCO, HTML and images."""

from __future__ import annotations

import csv
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import sam2kit
from sam2kit.config.loading import to_yaml
from sam2kit.config.schema import Config
from sam2kit.data.sources.base import VideoSource, innermost
from sam2kit.data.sources.training_set import TrainingSet
from sam2kit.data.training_set import read_provenance
from sam2kit.data.writers import coco_json, write_coco
from sam2kit.evaluation.field_scores import field_summary
from sam2kit.evaluation.pictures import Example, compare_errors, draw_videos, show_objects
from sam2kit.evaluation.plots import difference_chart, over_time, robustness_chart
from sam2kit.evaluation.scored_split import ScoredSplit
from sam2kit.evaluation.scores import BEFORE, COPY, DataSetScores, VideoScores, summary
from sam2kit.evaluation.scores import metrics as score_metrics
from sam2kit.evaluation.statistics import (
    MIN_VIDEOS,
    NO_INTERVAL,
    by_motion,
    interval_text,
    paired_differences,
    power_text,
    score_interval,
)
from sam2kit.evaluation.tracker_runs import ResultFiles
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import atomic_write, write_text
from sam2kit.utils.paths import file_name
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import cell_text, plural, visible_text
from sam2kit.viz.html import render
from sam2kit.viz.overlays import ERROR_COLORS
from sam2kit.viz.plots import interval_chart

MAX_EXAMPLES = 3  # maximum number of worst and of best objects to show
MAX_VIDEOS_OVER_TIME = 12
PACKAGES = ("torch", "sam2", "numpy", "opencv-python-headless")
PROTOCOL_KEYS = ("protocol", "clicks", "reprompt_every", "noise", "noise_kinds", "tracker")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of several trackers on the same videos.

    Means, intervals and differences are computed on first access and cached.

    Attributes:
        config: the configuration of the evaluation.
        source: the videos with ground truth.
        trackers: one result per tracker, first the tracker under evaluation.
        output_dir: the directory of the results.
        files: the predicted masks, or None (default) if existing masks were scored.
        robustness: mean J&F by tracker and level of prompt noise.
        calibration: the tuned thresholds and the videos used for tuning, or None (default) without
            calibration.
        fields: by tracker and video, the result of
            :func:`sam2kit.evaluation.field_scores.field_scores`.
        split: use of the videos in training, or None (default) if unknown.
        training: ``seed`` and a checksum of the ``videos`` of the training run, or None (default)
            for weights that do not come from a run.

    Raises:
        DataError: the first tracker has no scored frame.
    """

    config: Config
    source: VideoSource
    trackers: Sequence[DataSetScores]
    output_dir: Path
    files: ResultFiles | None = None
    robustness: Mapping[str, Mapping[float, float | None]] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    fields: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    split: ScoredSplit | None = None
    training: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.means[self.trackers[0].tracker]["J&F"] is None:
            raise DataError(
                "no frame of the videos is scored under this convention",
                hint="choose another evaluation.convention, or videos with more annotated frames",
            )

    @cached_property
    def means(self) -> dict[str, dict[str, Any]]:
        """:func:`sam2kit.evaluation.scores.summary` over all videos, by tracker."""
        return {t.tracker: summary(t.videos) for t in self.trackers}

    @property
    def scores(self) -> dict[str, float]:
        """Mean J&F over all objects by tracker, from 0 to 1; NaN without a scored frame."""
        means = {name: means["J&F"] for name, means in self.means.items()}
        return {name: float("nan") if mean is None else mean for name, mean in means.items()}

    @cached_property
    def intervals(self) -> dict[str, dict[str, Any]]:
        """:func:`sam2kit.evaluation.statistics.score_interval` of J&F, by tracker."""
        return {t.tracker: score_interval(t) for t in self.trackers}

    @cached_property
    def differences(self) -> list[dict[str, Any]]:
        """:func:`sam2kit.evaluation.statistics.paired_differences` to every other tracker."""
        main, *others = self.trackers
        return [paired_differences(main, other) for other in others]

    @cached_property
    def motion(self) -> list[dict[str, Any]]:
        """:func:`sam2kit.evaluation.statistics.by_motion`: scores of moving and slow objects."""
        return by_motion(self.trackers)

    @cached_property
    def verdicts(self) -> list[str]:
        """Sentences that compare the first tracker with the standard baselines."""
        sentences = (_verdict(comparison) for comparison in self.differences)
        return [sentence for sentence in sentences if sentence]

    @cached_property
    def truth_note(self) -> str | None:
        """Warning about ground truth that was predicted by a model, or None."""
        return _truth_note(self.source, self.trackers[0])

    @property
    def absence_note(self) -> str | None:
        """Warning about scores that mostly measure the absence of objects, or None."""
        name = self.trackers[0].tracker
        return _absence_note(name, self.means[name])

    def first_frame(self, video: str) -> int:
        """Return the index of a video's first frame in the recording from which it was cut."""
        return self.source.frame_number(self.source.names.index(video), 0)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``; docs/evaluation.md lists the fields."""
        content = score_metrics(self.trackers)
        for name, interval in self.intervals.items():
            content["trackers"][name]["J&F_interval"] = [interval["low"], interval["high"]]
        for name, videos in self.fields.items():
            content["trackers"][name] |= field_summary(videos.values())
            for video, scores in videos.items():
                entry = content["videos"][video]
                (entry if name == content["tracker"] else entry["trackers"][name]).update(scores)
        for video in () if self.split is None else self.split.videos:
            if video.name in content["videos"]:
                content["videos"][video.name]["content"] = list(video.content)
        evaluation = asdict(self.config.evaluation)
        return content | {
            "protocol": {k: evaluation[k] for k in PROTOCOL_KEYS} if self.files else None,
            "seed": self.config.seed,
            "training": self.training,
            "split": None if self.split is None else self.split.to_dict(),
            "differences": {
                comparison["trackers"][1]: {
                    key: value for key, value in comparison.items() if key != "differences"
                }
                for comparison in self.differences
            },
            "motion": self.motion,
            "robustness": {
                name: {"noise": list(curve), "J&F": list(curve.values())}
                for name, curve in self.robustness.items()
            },
            "calibration": self.calibration,
        }


_BASELINES = {COPY: "copying the first mask", BEFORE: "the model before training"}
# Provenance values of training-set masks that were not drawn or clicked by a person.
_BY_MODEL = ("propagated", "automatic")


def _verdict(comparison: Mapping[str, Any]) -> str | None:
    """Describe whether a tracker is better than a baseline, or return None."""
    name, other = comparison["trackers"]
    mean, low, high = (comparison[key] for key in ("mean", "low", "high"))
    if other not in _BASELINES or mean is None:
        return None
    is_clear = low is not None and (low > 0 or high < 0)
    higher, lower = (
        ("is better than", "is worse than")
        if is_clear
        else ("scores higher than", "scores lower than")
    )
    verb = higher if mean > 0 else lower if mean < 0 else "scores the same as"
    interval = f", 95% interval {interval_text(low, high)}" if low is not None else ""
    text = f"{name} {verb} {_BASELINES[other]} (J&F {mean:+.3f}{interval})"
    if is_clear:
        return text
    reason = "with this few videos," if low is None else "the interval contains 0, so"
    return f"{text}; {reason} the difference may be due to chance"


def _absence_note(name: str, means: Mapping[str, Any]) -> str | None:
    """Describe how many scored masks are of absent objects, or return None if few are.

    Args:
        name: the tracker.
        means: its scores, see :func:`sam2kit.evaluation.scores.summary`.
    """
    frames, absent, present = (means[key] for key in ("frames", "absent", "present"))
    if 2 * absent <= frames:
        return None
    missed = means["called_absent"] - means["rightly_absent"]
    return (
        f"In {absent} of {frames} scored masks the object is absent. An empty mask scores 1 there, "
        "so J&F is high for a tracker that predicts nothing. "
        f"Of the {plural(present, 'mask')} that {'shows' if present == 1 else 'show'} the object, "
        f"{visible_text(name)} leaves {missed} empty (false_absence)."
    )


def _truth_note(source: VideoSource, main: DataSetScores) -> str | None:
    """Describe how much of the ground truth was predicted by a model, or return None."""
    made: Counter[str] = Counter()
    models: set[str] = set()
    for video in main.videos:
        if video.name not in source.names:
            continue
        i = source.names.index(video.name)
        stored, k, _ = innermost(source, i)
        if not isinstance(stored, TrainingSet):
            return None
        provenance = read_provenance(stored.root, stored.names[k])
        for t, o in np.argwhere(video.scored & video.truth_present).tolist():
            row = provenance.get(source.frame_number(i, t), {"objects": []})
            by_object = {entry["id"]: entry["made"] for entry in row["objects"]}
            kind = by_object.get(video.object_ids[o], "unknown")
            made[kind] += 1
            if kind in _BY_MODEL and row.get("model"):
                models.add(str(row["model"]))
    count = sum(made[kind] for kind in _BY_MODEL)
    if not count:
        return None
    model = visible_text(" and ".join(sorted(models)) or "a model")
    return (
        f"The ground truth of {count} of {sum(made.values())} scored masks was predicted by "
        f"{model} and accepted without correction. On these masks, the scores measure agreement "
        "with that model, not accuracy. Correct masks of these videos manually for an independent "
        "measure."
    )


def write_results(evaluation: Evaluation) -> None:
    """Write ``metrics.json``, ``objects.csv`` and ``report.html`` to the output directory.

    If the masks were predicted in this evaluation, also write ``coco/`` and, with
    ``evaluation.pictures``, the images of :func:`sam2kit.evaluation.pictures.draw_videos`.
    """
    folder, files = evaluation.output_dir, evaluation.files
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.json", json.dumps(evaluation.metrics, indent=1))
    write_csv(folder / "objects.csv", evaluation.trackers)
    write_report(evaluation)
    if files is None:
        return
    (folder / "coco").mkdir(exist_ok=True)
    for tracker in evaluation.trackers:
        videos = files.sav(tracker.tracker, [v.name for v in tracker.videos])
        path = folder / "coco" / f"{file_name(tracker.tracker)}.json"
        write_coco(path, (coco_json([video]) for video in videos))
    if evaluation.config.evaluation.pictures:
        draw_videos(evaluation.trackers, evaluation.source, files.masks, folder)


def write_csv(path: Path, trackers: Sequence[DataSetScores]) -> None:
    """Write one row per tracker, video and object, with the columns of ``VideoScores.objects``.

    Undefined scores, such as a mean over no frames, are empty cells.
    """
    rows = [
        {
            "tracker": cell_text(t.tracker),
            "video": cell_text(video.name),
            "object": cell_text(identity),
            **scores,
        }
        for t in trackers
        for video in t.videos
        for identity, scores in video.objects().items()
    ]
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["tracker", "video", "object"])
        writer.writeheader()
        writer.writerows(rows)


def write_report(evaluation: Evaluation) -> Path:
    """Write ``report.html``, a self-contained page, and return its path."""
    config, trackers, differences = evaluation.config, evaluation.trackers, evaluation.differences
    main, robustness = trackers[0], evaluation.robustness
    page = render(
        "report.html",
        main=main.tracker,
        videos=len(main.videos),
        verdicts=evaluation.verdicts,
        truth_note=evaluation.truth_note,
        absence_note=evaluation.absence_note,
        scored_frames=sum(int(video.scored.any(1).sum()) for video in main.videos),
        title_note=evaluation.split.title_note if evaluation.split else "",
        split_lines=evaluation.split.lines(len(main.videos)) if evaluation.split else [],
        prompted=evaluation.files is not None,
        convention=asdict(main.videos[0].convention),
        evaluation=asdict(config.evaluation),
        rows=score_rows(evaluation),
        field_rows=field_rows(evaluation),
        intervals=interval_chart({"": evaluation.intervals}, "J&F with 95% interval"),
        no_interval=NO_INTERVAL
        if evaluation.intervals[main.tracker]["videos"] < MIN_VIDEOS
        else None,
        power=power_text(differences[0]["spread"], differences[0]["videos"])
        if differences
        else None,
        motion=motion_rows(evaluation),
        differences=[(d, difference_chart(d)) for d in differences if d["objects"]],
        over_time=[
            (v.name, over_time(trackers, v.name, evaluation.first_frame(v.name)))
            for v in spread_videos(main)
        ],
        parts=[v.name for v in main.videos if evaluation.first_frame(v.name)],
        robustness=robustness_chart(robustness) if robustness else None,
        extremes=_extremes(evaluation),
        error_colors=ERROR_COLORS,
        config=to_yaml(config),
        versions={"sam2kit": sam2kit.__version__, "Python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    )
    path = evaluation.output_dir / "report.html"
    write_text(path, page)
    return path


def _extremes(evaluation: Evaluation) -> dict[str, list[Example]]:
    """Draw the worst and best objects, and the largest differences to the second tracker.

    Returns:
        Examples by title; empty for existing masks, or without ``evaluation.pictures``.
    """
    if evaluation.files is None or not evaluation.config.evaluation.pictures:
        return {}
    main, *others = evaluation.trackers
    pixels = evaluation.source, evaluation.files.masks
    worst, best = ranked_objects(main)
    extremes = {
        "Worst objects": show_objects(main, worst, *pixels),
        "Best objects": show_objects(main, best, *pixels),
    }
    if others:
        rows = evaluation.differences[0]["differences"]
        # The rows are sorted; with few objects, the two ends must not overlap.
        ends = [*rows[:MAX_EXAMPLES], *rows[MAX_EXAMPLES:][-MAX_EXAMPLES:]]
        title = f"Largest gains and losses: {main.tracker} against {others[0].tracker}"
        extremes[title] = compare_errors(main, others[0], ends, *pixels)
    return extremes


def score_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per tracker with means over all objects and the interval of J&F.

    Undefined values, such as a mean over no frames, are None.
    """
    columns = ("J", "F", "dice", "absent_precision", "absent_recall", "false_absence", "recovery")
    return [
        {"tracker": name, "J&F": means["J&F"]}
        | {bound: evaluation.intervals[name][bound] for bound in ("low", "high")}
        | {column: means[column] for column in columns}
        | {"objects": means["scored_objects"]}
        for name, means in evaluation.means.items()
    ]


def motion_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return rows for the moving and the slow half of the objects.

    Each row has the mean of a tracker on this half, and the difference between the first tracker
    and this one with its interval. Without the copied mask as a baseline, there are no rows.
    """
    unpaired = dict.fromkeys(("mean", "low", "high"))
    return [
        {"half": half["half"], "objects": half["objects"], "videos": half["videos"]}
        | {"tracker": tracker, "J&F": score}
        | {key: half["differences"].get(tracker, unpaired)[key] for key in unpaired}
        for half in evaluation.motion
        for tracker, score in half["scores"].items()
    ]


def field_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per tracker with field-specific scores, or no rows without them."""
    return [
        {"tracker": name} | scores
        for name, videos in evaluation.fields.items()
        if (scores := field_summary(videos.values()))
    ]


def spread_videos(main: DataSetScores, max_videos: int = MAX_VIDEOS_OVER_TIME) -> list[VideoScores]:
    """Return up to ``max_videos`` videos, evenly spaced from the worst to the best."""
    scored = [(summary([v])["J&F"], v) for v in main.videos]
    ordered = [v for _, v in sorted((p for p in scored if p[0] is not None), key=lambda p: p[0])]
    return [ordered[n] for n in evenly_spaced(len(ordered), max_videos)]


def ranked_objects(
    main: DataSetScores, max_objects: int = MAX_EXAMPLES
) -> tuple[list[tuple[VideoScores, int]], list[tuple[VideoScores, int]]]:
    """Return the worst and the best objects by J&F.

    Args:
        main: the scores of a tracker.
        max_objects: maximum length of each list.

    Returns:
        The worst objects (worst first) and the best objects (best first) as pairs of a video and an
        index into its ``object_ids``. No object is in both lists.
    """
    scored = [
        (s["J&F"], video, o)
        for video in main.videos
        for o, s in enumerate(video.objects().values())
        if s["J&F"] is not None
    ]
    ordered = [(video, o) for _, video, o in sorted(scored, key=lambda entry: entry[0])]
    count = min(max_objects, -(-len(ordered) // 2))
    return ordered[:count], ordered[count:][::-1][:max_objects]
