"""Format rows as HTML, plain-text or Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sam2kit.utils.text import html_text, markdown_text, visible_text

# MathJax skips elements of these classes (the first in JupyterLab, the second in older front ends).
LITERAL = 'class="mathjax_ignore tex2jax_ignore"'


class TrustedMarkdown(str):
    """Markdown from source code, which tables do not escape; never use it for data."""


class Table:
    """A table that notebooks show as HTML, terminals as plain text and files as Markdown.

    ``str()`` returns plain text and :meth:`markdown` a Markdown table. Floats have three decimals,
    and None is shown as a dash.

    Args:
        rows: one mapping of column names to cells per row, with the keys of the first row.

    Raises:
        ValueError: there are no rows.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        if not rows:
            raise ValueError("a table needs at least one row")
        self.rows = list(rows)

    def _cells(self, escape: Callable[[object], str]) -> list[list[str]]:
        """Return the texts of all rows, the header first."""
        keys = list(self.rows[0])

        def text(cell: object) -> str:
            if isinstance(cell, float):
                return f"{cell:.3f}"
            return "–" if cell is None else escape(cell)

        return [list(map(escape, keys)), *([text(row[key]) for key in keys] for row in self.rows)]

    def _lines(self, escape: Callable[[object], str]) -> str:
        """Return the table as lines with vertical bars."""
        head, *rows = self._cells(escape)
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])

    def markdown(self) -> str:
        """Return a Markdown table, with all text but :class:`TrustedMarkdown` escaped."""

        def escape(cell: object) -> str:
            return str(cell) if isinstance(cell, TrustedMarkdown) else markdown_text(cell)

        return self._lines(escape)

    def _repr_html_(self) -> str:
        head, *rows = self._cells(html_text)
        body = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in rows)
        head_row = f"<tr><th>{'</th><th>'.join(head)}</th></tr>"
        return f"<table {LITERAL}><thead>{head_row}</thead><tbody>{body}</tbody></table>"

    _repr_markdown_ = markdown

    def __str__(self) -> str:
        return self._lines(visible_text)

    __repr__ = __str__


class Caption:
    """A bold caption above a figure."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return f"<p {LITERAL}><strong>{html_text(self.text)}</strong></p>"

    def _repr_markdown_(self) -> str:
        return f"**{markdown_text(self.text.strip())}**"

    def __repr__(self) -> str:
        return visible_text(self.text)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows as a Markdown table; see :class:`~sam2kit.viz.tables.Table`.

    Raises:
        ValueError: there are no rows.
    """
    return Table(rows).markdown()
