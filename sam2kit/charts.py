"""Numbers as lines, points and tables; figures are returned, never shown, as in `viz`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sam2kit.scores import VideoScores
from sam2kit.tables import Table
from sam2kit.text import figure_text
from sam2kit.viz import PALETTE

LINE_COLORS = PALETTE[[6, 5, 4, 1, 2, 0]]  # those that can be told from white paper
WIDTH = 5.6  # inches, at which text can be read on a phone, too
LEGEND_LABEL = 30  # letters, of which three labels fit beside each other


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
) -> Figure:
    """Line plots beside each other.

    Args:
        panels: title of a panel to the lines in it: name of the line to its x and y values. A
            value that is not a number leaves a gap.

    Raises:
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("curves needs at least one panel")
    figure = Figure((4.2 * len(panels), 3.0), dpi=120, layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for number, (name, (x, y)) in enumerate(lines.items()):
            style = ("-", "--", ":")[number // len(LINE_COLORS) % 3]
            color = LINE_COLORS[number % len(LINE_COLORS)] / 255
            marker = "o" if len(x) <= 20 else None
            label = figure_text(name)
            axes.plot(x, y, style, color=color, label=label, marker=marker, markersize=3)
        axes.set(title=figure_text(title), xlabel=figure_text(x_label))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if any(lines):  # one without a name needs no legend
            axes.legend(fontsize=7, frameon=False)
    return figure


def training_curves(file: str | Path) -> Figure | None:
    """A run's ``metrics.csv``: losses in training and validation, and the validation IoU.

    None where there is nothing to draw yet. The learning rate is left out.
    """
    if not Path(file).exists():
        return None
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        title: {} for title in ("training loss", "validation loss", "validation IoU")
    }
    whole_lines = Path(file).read_text().rpartition("\n")[0]  # it may be in the middle of a line
    for row in csv.DictReader(whole_lines.splitlines()):
        for key in [k for k in row if row[k] and k not in ("epoch", "step", "learning_rate")]:
            title = list(panels)[key.startswith("val_") + (key == "val_iou")]
            x, y = panels[title].setdefault(key, ([], []))
            x.append(int(row["step"]))
            y.append(float(row[key]))
    shown = {title: dict(sorted(lines.items())) for title, lines in panels.items() if lines}
    return curves(shown) if shown else None


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows as Markdown; see :class:`~sam2kit.tables.Table`.

    Raises:
        ValueError: no rows.
    """
    return Table(rows).markdown()


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
    """What :func:`sam2kit.comparison.paired_differences` found: a bar an object, sorted.

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


def interval_chart(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], x_label: str) -> Figure:
    """Means with their intervals, a row for each name of each group.

    Args:
        groups: title of a group -> name -> ``mean`` and, where there are any, ``low``, ``high``.

    Raises:
        ValueError: no groups.
    """
    rows = [
        (group, name, value) for group, found in groups.items() for name, value in found.items()
    ]
    if not rows:
        raise ValueError("a chart of intervals needs at least one group")
    names = list(dict.fromkeys(name for _, name, _ in rows))
    figure = Figure((WIDTH, 0.6 + 0.26 * len(rows)), dpi=120, layout="constrained")
    axes = figure.subplots()
    for y, (_, name, value) in enumerate(rows):
        if value["mean"] is not None:
            color = LINE_COLORS[names.index(name) % len(LINE_COLORS)] / 255
            axes.plot(value["mean"], y, "o", color=color, markersize=5)
            if value.get("low") is not None:
                axes.plot([value["low"], value["high"]], [y, y], color=color, linewidth=2)
    labels = [f"{g}: {n}" if len(groups) > 1 else n for g, n, _ in rows]
    axes.set_yticks(range(len(rows)), list(map(figure_text, labels)))
    axes.tick_params(labelsize=8)
    axes.invert_yaxis()
    axes.set(xlabel=figure_text(x_label))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
