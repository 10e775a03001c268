"""Format rows as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sam2kit.utils.text import html_text, markdown_text, visible_text

# JupyterLab's MathJax, and older front ends, leave elements of these classes alone.
LITERAL = 'class="mathjax_ignore tex2jax_ignore"'


class TrustedMarkdown(str):
    """A cell that holds Markdown on purpose, written in code; never text that comes from data."""


class Table:
    """Rows with the same keys; floats get three digits, None a dash.

    A notebook shows it as HTML; ``str()`` gives plain text for terminals and :meth:`markdown` a
    table for files.

    Raises:
        ValueError: no rows.
    """

    def __init__(self, rows: Sequence[Mapping[str, object]]) -> None:
        if not rows:
            raise ValueError("a table needs at least one row")
        self.rows = list(rows)

    def _cells(self, escape: Callable[[object], str]) -> list[list[str]]:
        """The texts of all cells, the header first."""
        keys = list(self.rows[0])

        def text(cell: object) -> str:
            if isinstance(cell, float):
                return f"{cell:.3f}"
            return "–" if cell is None else escape(cell)

        return [list(map(escape, keys)), *([text(row[key]) for key in keys] for row in self.rows)]

    def _lines(self, escape: Callable[[object], str]) -> str:
        head, *rows = self._cells(escape)
        return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])

    def markdown(self) -> str:
        """A table in which text is shown as it is; a :class:`TrustedMarkdown` is kept."""

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
    """A line above a figure, shown in bold."""

    def __init__(self, text: str) -> None:
        self.text = text

    def _repr_html_(self) -> str:
        return f"<p {LITERAL}><strong>{html_text(self.text)}</strong></p>"

    def _repr_markdown_(self) -> str:
        return f"**{markdown_text(self.text.strip())}**"

    def __repr__(self) -> str:
        return visible_text(self.text)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Format rows as Markdown; see :class:`~sam2kit.viz.tables.Table`.

    Raises:
        ValueError: no rows.
    """
    return Table(rows).markdown()
