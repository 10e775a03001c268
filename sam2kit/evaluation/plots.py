"""Plot scores: J over time, paired differences.

Figures are returned, never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sam2kit.evaluation.scores import VideoScores
from sam2kit.viz.plots import LEGEND_LABEL, LINE_COLORS, WIDTH, curves


def over_time(trackers: Mapping[str, VideoScores]) -> Figure:
    """J over the frames of one video, the mean over the objects that count, for each tracker.

    Triangles mark the frames on which an object was prompted (the first tracker's). A frame that
    counts for no object leaves a gap.

    Raises:
        ValueError: no trackers.
    """
    lines = {}
    for name, video in trackers.items():
        counts = video.scored.sum(1)
        sums = np.where(video.scored, video.J, 0).sum(1)
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        lines[name] = list(range(len(mean))), mean.tolist()
    figure = curves({"": lines}, "frame")
    figure.set_size_inches(WIDTH, 2.5)
    (axes,) = figure.axes
    prompted = np.flatnonzero(next(iter(trackers.values())).prompted.any(1))
    axes.plot(prompted, [1.06] * len(prompted), "v", color="black", markersize=5, label="prompted")
    axes.set(ylabel="J", ylim=(-0.02, 1.12), title="")
    columns = 3 if max(map(len, lines)) <= LEGEND_LABEL else 1
    axes.legend(fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns)
    return figure


def difference_chart(found: Mapping[str, Any]) -> Figure:
    """What :func:`sam2kit.evaluation.statistics.paired_differences` found: a bar an object, sorted.

    The line is the mean, the band its interval.
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
    axes.set_xlim(-0.6, max(len(values), 8) - 0.4)  # a few bars stay bars
    axes.set(xticks=[], xlabel="objects, sorted", ylabel=f"difference in {found['score']}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
