"""Numbers as lines, points and tables; figures are returned, never shown, as in `viz`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sam2kit.viz import PALETTE

LINE_COLORS = PALETTE[[6, 5, 4, 1, 2, 0]]  # those that can be told from white paper


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
            axes.plot(x, y, style, color=color, label=name, marker=marker, markersize=3)
        axes.set(title=title, xlabel=x_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:
            axes.legend(fontsize=7, frameon=False)
    return figure


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows with the same keys as a Markdown table; fractional numbers get three digits.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a table needs at least one row")

    def line(cells: Iterable[object]) -> str:
        texts = (f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    head = [line(rows[0]), line("---" for _ in rows[0])]
    return "\n".join(head + [line(row[key] for key in rows[0]) for row in rows])
