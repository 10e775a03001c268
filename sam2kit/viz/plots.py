"""Plot curves and intervals as matplotlib figures, without displaying them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sam2kit.utils.errors import DataError
from sam2kit.utils.metrics_table import read_rows
from sam2kit.utils.text import figure_text
from sam2kit.viz.overlays import PALETTE

LINE_COLORS = PALETTE[[6, 5, 4, 1, 2, 0]]  # without yellow, which is invisible on white
WIDTH = 5.6  # inches; wider figures are not legible on a phone
LEGEND_LABEL = 30  # maximum number of characters; three such labels fit on one line


def curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    x_label: str = "step",
) -> Figure:
    """Draw line plots side by side, up to four in a row.

    Args:
        panels: maps the title of each panel to its lines, and the name of each line to its x and y
            values. NaN leaves a gap in the line.
        x_label: label of the x axes.

    Raises:
        ValueError: there are no panels.
    """
    if not panels:
        raise ValueError("at least one panel is required")
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure((4.2 * columns, 3.0 * rows), dpi=120, layout="constrained")
    all_axes = [figure.add_subplot(rows, columns, i + 1) for i in range(len(panels))]
    for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
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
        if any(lines):  # no legend for a single line with an empty name
            # Place the legend below the axes, where it cannot cover a line.
            axes.legend(
                fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2
            )
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, for the screen, and as PDF, for a paper.

    Args:
        figure: the figure.
        path: the file without extension; a ``.png`` extension is ignored.

    Returns:
        The path of the PNG; the PDF is beside it.

    Raises:
        DataError: the files cannot be written.
    """
    png = Path(str(path).removesuffix(".png") + ".png")
    try:
        figure.savefig(png)
        # Omit the creation time, so that a repeated evaluation writes an identical PDF.
        figure.savefig(png.with_suffix(".pdf"), metadata={"CreationDate": None})
    except OSError as error:
        raise DataError(
            f"{png} cannot be written ({error.strerror})",
            hint="free some disk space, or choose a writable directory",
        ) from error
    return png


def training_curves(file: str | Path) -> Figure | None:
    """Plot the training losses, validation losses and validation IoU of a run.

    Args:
        file: ``metrics.csv`` of the run. The learning rate is not plotted.

    Returns:
        The figure, or None if there is nothing to plot yet.
    """
    panels: dict[str, dict[str, tuple[list[int], list[float]]]] = {
        title: {} for title in ("training loss", "validation loss", "validation IoU")
    }
    for row in read_rows(file, live=True):
        for key in [k for k in row if row[k] and k not in ("epoch", "step", "learning_rate")]:
            title = list(panels)[key.startswith("val_") + (key == "val_iou")]
            x, y = panels[title].setdefault(key, ([], []))
            x.append(int(float(row["step"])))
            y.append(float(row[key]))
    non_empty = {title: dict(sorted(lines.items())) for title, lines in panels.items() if lines}
    return curves(non_empty) if non_empty else None


def interval_chart(groups: Mapping[str, Mapping[str, Mapping[str, Any]]], x_label: str) -> Figure:
    """Draw means with their intervals, one row per name of each group.

    Args:
        groups: maps the title of each group to its names, and each name to a dictionary with
            ``mean`` (not drawn if None) and, optionally, the bounds ``low`` and ``high``.
        x_label: label of the x axis.

    Raises:
        ValueError: there are no groups.
    """
    rows = [
        (group, name, value) for group, values in groups.items() for name, value in values.items()
    ]
    if not rows:
        raise ValueError("at least one group is required")
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
