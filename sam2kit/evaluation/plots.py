"""Plot scores: J over time, paired differences, J&F under noisy prompts.

Functions return figures and do not display them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from sam2kit.evaluation.scores import DataSetScores
from sam2kit.utils.text import figure_text
from sam2kit.viz.plots import LEGEND_LABEL, LINE_COLORS, WIDTH, curves

MAX_NAMED_BARS = 40  # more names would overlap


def over_time(trackers: Sequence[DataSetScores], video: str, first: int = 0) -> Figure:
    """Plot J over the frames of one video, one line per tracker.

    A point is the mean over the objects scored in the frame; the line has a gap if there are none.
    Triangles mark the frames in which the first tracker was prompted.

    Args:
        trackers: scores on the same videos, first those of the tracker under evaluation.
        video: name of the video.
        first: index of the first frame, if the video was cut from a longer recording.
    """
    videos = {t.tracker: t.by_name()[video] for t in trackers}
    lines = {}
    for name, scores in videos.items():
        counts = scores.scored.sum(1)
        sums = np.where(scores.scored, scores.J, 0).sum(1)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        lines[name] = list(range(first, first + len(mean))), mean.tolist()
    figure = curves({"": lines}, "frame")
    figure.set_size_inches(WIDTH, 2.5)
    (axes,) = figure.axes
    prompted = np.flatnonzero(videos[trackers[0].tracker].prompted.any(1)) + first
    axes.plot(prompted, [1.06] * len(prompted), "v", color="black", markersize=5, label="prompted")
    axes.set(ylabel="J", ylim=(-0.02, 1.12), title="")
    columns = 3 if max(map(len, lines)) <= LEGEND_LABEL else 1
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return figure


def robustness_chart(robustness: Mapping[str, Mapping[float, float | None]]) -> Figure:
    """Plot J&F over the level of prompt noise, one line per tracker.

    Args:
        robustness: mean J&F by tracker and noise level; None leaves a gap.
    """
    lines = {
        name: (list(levels), [np.nan if v is None else v for v in levels.values()])
        for name, levels in robustness.items()
    }
    figure = curves({"": lines}, "prompt noise")
    figure.set_size_inches(WIDTH, 2.6)
    figure.axes[0].set(ylabel="J&F")
    figure.axes[0].xaxis.set_major_locator(AutoLocator())
    return figure


def paired_chart(
    pairs: Mapping[str, tuple[float, Sequence[float]]], names: tuple[str, str], x_label: str = "J&F"
) -> Figure:
    """Plot two scores per video, connected by a line, with the largest gain first.

    Args:
        pairs: maps each video to its first score and one or more second scores (for example, of
            several seeds); the line ends at their mean.
        names: labels of the first and the second score.
        x_label: label of the x axis.

    Raises:
        ValueError: there are no pairs.
    """
    if not pairs:
        raise ValueError("at least one pair is required")
    ordered = sorted(pairs.items(), key=lambda pair: pair[1][0] - np.mean(pair[1][1]))
    figure = Figure((WIDTH, 0.9 + 0.24 * len(ordered)), dpi=120, layout="constrained")
    axes = figure.subplots()
    better, worse = LINE_COLORS[0] / 255, LINE_COLORS[1] / 255
    for y, (_, (first, second)) in enumerate(ordered):
        mean = float(np.mean(second))
        color = better if mean > first else worse
        axes.plot([first, mean], [y, y], color=color, linewidth=1.5, zorder=1)
        axes.scatter(second, [y] * len(second), s=10, color=color, alpha=0.5, zorder=2)
        axes.scatter(mean, y, s=30, color=color, zorder=3, label=names[1] if y == 0 else None)
        axes.scatter(
            *(first, y), s=30, facecolor="white", edgecolor="black", zorder=3,
            label=names[0] if y == 0 else None,
        )  # fmt: skip
    labels = [_short_text(name) for name, _ in ordered]
    axes.set_yticks(range(len(ordered)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=figure_text(x_label))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def difference_chart(found: Mapping[str, Any]) -> Figure:
    """Plot the differences between two trackers as sorted bars, one per object.

    The dashed line is the mean and the grey band its interval. Up to :data:`MAX_NAMED_BARS` bars
    are labelled with video and object.

    Args:
        found: a result of :func:`sam2kit.evaluation.statistics.paired_differences`.
    """
    values = [row["difference"] for row in found["differences"]]
    figure = Figure((WIDTH, 2.3), dpi=120, layout="constrained")
    axes = figure.subplots()
    better, worse = LINE_COLORS[0] / 255, LINE_COLORS[1] / 255
    axes.bar(range(len(values)), values, color=[better if v > 0 else worse for v in values])
    axes.axhline(0, color="black", linewidth=0.8)
    if found["mean"] is not None:
        axes.axhline(found["mean"], color="black", linestyle="--", linewidth=1)
    if found["low"] is not None:
        axes.axhspan(found["low"], found["high"], color="grey", alpha=0.25)
    axes.set_xlim(-0.6, max(len(values), 8) - 0.4)  # keep the bars narrow if there are only a few
    axes.set(xticks=[], xlabel="objects, sorted", ylabel=f"difference in {found['score']}")
    if 0 < len(values) <= MAX_NAMED_BARS:
        rows = found["differences"]
        names = [_short_text(f"{row['video']}: {row['object']}") for row in rows]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        figure.set_size_inches(WIDTH, 2.3 + 0.055 * max(map(len, names)))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _short_text(name: str) -> str:
    """Return up to 28 characters of a name for an axis: its beginning and its end."""
    return figure_text(name if len(name) <= 28 else f"{name[:13]}…{name[-14:]}")
