"""Plot lines and intervals; figures are returned, never shown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sam2kit.utils.text import figure_text
from sam2kit.viz.overlays import PALETTE

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
