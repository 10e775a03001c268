"""An evaluation as one HTML page that needs nothing beside it, and the figures on it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

import sam2kit
from sam2kit.config.loading import to_yaml
from sam2kit.config.schema import Config
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.evaluation.plots import difference_chart, over_time
from sam2kit.evaluation.scores import DataSetScores, VideoScores, summary
from sam2kit.evaluation.statistics import paired_differences, score_interval
from sam2kit.viz.html import render
from sam2kit.viz.overlays import ERROR_COLORS, WHITE, contact_sheet, error_overlay, overlay
from sam2kit.viz.plots import WIDTH, curves, interval_chart

ReadMasks = Callable[[str, str, int], Mapping[ObjectId, np.ndarray]]
"""Tracker, video, frame -> the tracker's masks, bool ``[H,W]`` by object."""
Robustness = Mapping[str, Mapping[float, float | None]]
"""Tracker -> level of prompt noise -> mean J&F."""

EXAMPLES = 3  # objects at either end
VIDEOS_OVER_TIME = 12
PACKAGES = ("torch", "sam2", "numpy", "opencv-python-headless")


@dataclass
class Example:
    """One object on one frame.

    Attributes:
        title: video and object.
        caption: the frame and its scores.
        images: ``[H,W,3]`` uint8 by what each shows.
    """

    title: str
    caption: str
    images: dict[str, np.ndarray]


def write_report(
    output_dir: str | Path,
    trackers: Sequence[DataSetScores],
    source: VideoSource,
    read_masks: ReadMasks | None,
    config: Config,
    robustness: Robustness | None = None,
) -> Path:
    """Write ``report.html``.

    Args:
        trackers: results on the same videos; the first is the one the report is about.
        source: the videos.
        read_masks: what the trackers gave; None leaves out the pictures of objects.
        config: of the evaluation, printed whole; its ``seed`` draws the intervals.
        robustness: J&F under noise of the prompts, where it was measured.

    Returns:
        The page.
    """
    main, *others = trackers
    found = differences(trackers, config.seed)
    extremes = {}
    if read_masks is not None:
        worst, best = ranked_objects(main)
        extremes["Worst objects"] = examples(main, worst, source, read_masks)
        extremes["Best objects"] = examples(main, best, source, read_masks)
        if others:
            title = f"Most gained and most lost: {main.tracker} against {others[0].tracker}"
            extremes[title] = comparisons(main, others[0], found[0], source, read_masks)
    pictured = spread_videos(main)
    page = render(
        "report.html",
        main=main.tracker,
        videos=len(main.videos),
        convention=asdict(main.videos[0].convention),
        evaluation=asdict(config.evaluation),
        rows=score_rows(trackers, config.seed),
        intervals=interval_figure(trackers, config.seed),
        differences=[(d, difference_chart(d)) for d in found if d["objects"]],
        over_time=[(v.name, over_time_figure(trackers, v.name)) for v in pictured],
        robustness=robustness_figure(robustness) if robustness else None,
        extremes=extremes,
        error_colors=ERROR_COLORS,
        config=to_yaml(config),
        versions={"sam2kit": sam2kit.__version__, "Python": platform.python_version()}
        | {name: version(name) for name in PACKAGES},
    )
    path = Path(output_dir) / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def score_rows(trackers: Sequence[DataSetScores], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each tracker: the means over all objects, J&F with its bootstrap interval.

    None where there is nothing to take a mean of.
    """
    rows = []
    for tracker in trackers:
        means = summary(tracker.videos)
        interval = score_interval(tracker, np.random.default_rng(seed))
        rows.append(
            {
                "tracker": tracker.tracker,
                "J&F": means["J&F"],
                "low": interval["low"],
                "high": interval["high"],
                **{k: means[k] for k in ("J", "F", "dice", "absent_precision", "absent_recall")},
                **{k: means[k] for k in ("false_absence", "recovery")},
                "objects": means["scored_objects"],
            }
        )
    return rows


def differences(trackers: Sequence[DataSetScores], seed: int = 0) -> list[dict[str, Any]]:
    """The first tracker against each of the others: their paired differences in J&F."""
    main, *others = trackers
    return [paired_differences(main, o, np.random.default_rng(seed)) for o in others]


def interval_figure(trackers: Sequence[DataSetScores], seed: int = 0) -> Figure:
    """J&F of each tracker with its interval."""
    found = {t.tracker: score_interval(t, np.random.default_rng(seed)) for t in trackers}
    return interval_chart({"": found}, "J&F with 95% interval, videos resampled")


def over_time_figure(trackers: Sequence[DataSetScores], video: str) -> Figure:
    """J over the frames of a video, one line a tracker."""
    return over_time({t.tracker: v for t in trackers for v in t.videos if v.name == video})


def robustness_figure(robustness: Robustness) -> Figure:
    """J&F over the level of prompt noise."""
    lines = {
        name: (list(levels), [np.nan if v is None else v for v in levels.values()])
        for name, levels in robustness.items()
    }
    figure = curves({"": lines}, "prompt noise")
    figure.set_size_inches(WIDTH, 2.6)
    figure.axes[0].set(ylabel="J&F")
    figure.axes[0].xaxis.set_major_locator(AutoLocator())
    return figure


def spread_videos(main: DataSetScores, most: int = VIDEOS_OVER_TIME) -> list[VideoScores]:
    """At most so many videos, evenly spread from the worst to the best."""
    scored = [(summary([v])["J&F"], v) for v in main.videos]
    ordered = [v for _, v in sorted((p for p in scored if p[0] is not None), key=lambda p: p[0])]
    steps = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[i] for i in dict.fromkeys(steps.tolist())]


def ranked_objects(
    main: DataSetScores, most: int = EXAMPLES
) -> tuple[list[tuple[VideoScores, int]], list[tuple[VideoScores, int]]]:
    """The worst and the best objects by J&F, as videos and positions in them; none is both."""
    scored = [
        (s["J&F"], video, o)
        for video in main.videos
        for o, s in enumerate(video.objects().values())
        if s["J&F"] is not None
    ]
    ordered = [(video, o) for _, video, o in sorted(scored, key=lambda entry: entry[0])]
    count = min(most, -(-len(ordered) // 2))
    return ordered[:count], ordered[count:][::-1][:most]


def examples(
    main: DataSetScores,
    objects: Sequence[tuple[VideoScores, int]],
    source: VideoSource,
    read_masks: ReadMasks,
) -> list[Example]:
    """Frame, truth, prediction and error of objects, each on its median and on its worst frame."""
    made = []
    for video, o in objects:
        identity, scored = video.object_ids[o], np.flatnonzero(video.scored[:, o])
        by_score = scored[video.J[scored, o].argsort(kind="stable")]
        for word, t in (("median", by_score[len(by_score) // 2]), ("worst", by_score[0])):
            frame, truth = _frame_and_truth(source, video.name, int(t), identity)
            prediction = _mask(read_masks(main.tracker, video.name, int(t)), identity, truth)
            images = {
                "frame": frame,
                "truth": _lit(frame, truth),
                "prediction": _lit(frame, prediction),
                "error": error_overlay(frame, prediction, truth),
            }
            caption = f"{word} frame, {t}: J {video.J[t, o]:.2f}, F {video.F[t, o]:.2f}"
            made.append(Example(f"{video.name}, object {identity}", caption, images))
    return made


def comparisons(
    main: DataSetScores,
    other: DataSetScores,
    found: Mapping[str, Any],
    source: VideoSource,
    read_masks: ReadMasks,
) -> list[Example]:
    """The errors of two trackers beside each other, where they differ most.

    Args:
        found: of :func:`sam2kit.evaluation.statistics.paired_differences`; the objects at both of
        its ends
            are shown, each on the frame on which J differs most in that direction.
    """
    made, rows = [], found["differences"]
    pairs = {t.tracker: {v.name: v for v in t.videos} for t in (main, other)}
    for row in [*rows[:EXAMPLES], *rows[EXAMPLES:][-EXAMPLES:]]:
        mine, theirs = (pairs[t.tracker][row["video"]] for t in (main, other))
        o, n = (v.object_ids.index(row["object"]) for v in (mine, theirs))
        gain = np.where(mine.scored[:, o], mine.J[:, o] - theirs.J[:, n], np.nan)
        t = int(np.nanargmax(gain if row["difference"] > 0 else -gain))
        frame, truth = _frame_and_truth(source, row["video"], t, row["object"])
        images = {"frame": frame, "truth": _lit(frame, truth)}
        for tracker in (other, main):
            mask = _mask(read_masks(tracker.tracker, row["video"], t), row["object"], truth)
            images[tracker.tracker] = error_overlay(frame, mask, truth)
        caption = f"J&F {row['difference']:+.2f}; frame {t}: J {theirs.J[t, n]:.2f} and "
        caption += f"{mine.J[t, o]:.2f}"
        made.append(Example(f"{row['video']}, object {row['object']}", caption, images))
    return made


def example_sheet(shown: Sequence[Example]) -> Figure:
    """Examples with the same kinds of images below each other."""
    rows = [list(example.images.values()) for example in shown]
    labels = [f"{e.title}\n" + e.caption.replace(": ", "\n").replace("; ", "\n") for e in shown]
    return contact_sheet(rows, labels, list(shown[0].images), cell_inches=2.2)


def _lit(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The frame, dark outside the mask: a colour laid over it can be lost in a scene of its own."""
    dark = np.where(mask[..., None], frame, frame // 3)
    return overlay(dark, mask[None], np.array([WHITE]), alpha=0)


def _frame_and_truth(
    source: VideoSource, video: str, t: int, identity: ObjectId
) -> tuple[np.ndarray, np.ndarray]:
    i = source.names.index(video)
    frame = source.read_frame(i, t)
    return frame, _mask(source.read_masks(i, t) or {}, identity, frame[..., 0])


def _mask(masks: Mapping[ObjectId, np.ndarray], identity: ObjectId, like: np.ndarray) -> np.ndarray:
    return masks.get(identity, np.zeros(like.shape, bool))
