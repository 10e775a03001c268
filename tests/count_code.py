"""Count the package's lines of code, documentation and blank lines, in total and per module.

Run as ``python tests/count_code.py [DIRECTORY]``; the default is the package.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "sam2kit"
LAYOUT = {
    getattr(tokenize, kind)
    for kind in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")
}


class Lines(NamedTuple):
    """Line counts of a module.

    Attributes:
        code: lines that contain code.
        docs: lines of docstrings (including blank ones) and lines that contain only a comment.
        blank: all other lines.
    """

    code: int
    docs: int
    blank: int


def count_lines(text: str) -> Lines:
    """Count the lines of code, documentation and blank lines in a module's source."""
    code: set[int] = set()
    docs: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            docs.add(token.start[0])
        elif token.type not in LAYOUT:
            code.update(range(token.start[0], token.end[0] + 1))
    # A docstring is a STRING token, so it was counted as code above.
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docstring = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            code.difference_update(docstring)
            docs.update(docstring)
    docs -= code  # a line with code and a comment counts as code
    return Lines(len(code), len(docs), len(text.splitlines()) - len(code | docs))


def lines_of_code(text: str) -> int:
    """Count the lines that contain code, without blank lines, comments and docstrings."""
    return count_lines(text).code


def main(package: Path) -> None:
    """Print the counts of each module of ``package`` and their total."""
    modules = {
        file.relative_to(package).as_posix(): count_lines(file.read_text(encoding="utf-8"))
        for file in sorted(package.rglob("*.py"))
    }
    total = Lines(*(sum(column) for column in zip(*modules.values(), strict=True)))
    print(f"{'code':>7} {'docs':>7} {'blank':>7}  module")
    for name, lines in [*modules.items(), (f"total of {len(modules)} modules", total)]:
        print(f"{lines.code:7,} {lines.docs:7,} {lines.blank:7,}  {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
