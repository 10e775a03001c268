"""Report words that the project's texts avoid: ``python docs/check_words.py [PATH ...]``.

docs/word_list.txt has the words, the identifiers and the exceptions. Each match is printed as
``FILE:LINE: WORD``, and the exit code is 1 if there is any. Without paths, all texts of the
repository are checked, and exceptions that match nothing are reported too.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORD_LIST = ROOT / "docs" / "word_list.txt"
DEFAULT_PATHS = ("sam2kit", "docs", "notebooks", "tests", "configs", "benchmarks", "README.md")
DEFAULT_PATHS += ("CHANGELOG.md", "CONTRIBUTING.md")
SUFFIXES = (".py", ".pyi", ".md", ".ipynb", ".yaml", ".js", ".css")
CODE = "\x00"  # replaces code between comments and strings, so that no phrase spans it


class WordList(NamedTuple):
    """Content of word_list.txt.

    Attributes:
        words: pattern that matches every word and phrase.
        identifiers: names that variables must not have.
        exceptions: pairs of a file pattern and the word that is allowed there; ``*`` allows all.
    """

    words: re.Pattern[str]
    identifiers: frozenset[str]
    exceptions: list[tuple[str, str]]


class Match(NamedTuple):
    """A listed word in a file (relative to the repository) at a line (counted from 1)."""

    file: str
    line: int
    word: str


def read_list(path: Path = WORD_LIST) -> WordList:
    """Read the word list.

    Raises:
        ValueError: an exception has no reason.
    """
    sections: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if title := re.match(r"\[(\w+)\]", line):
            sections[title[1]] = []
        elif line.strip() and not line.startswith("#"):
            sections[list(sections)[-1]].append(line.strip())
    exceptions = []
    for line in sections["exceptions"]:
        file, word, reason = (*(part.strip() for part in line.split(":", 2)), "", "")[:3]
        if not reason:
            raise ValueError(f"{path}: {line!r} is not FILE: WORD: REASON")
        exceptions.append((file, word.lower()))
    # Longer phrases first; a line break, with an indentation, counts as a space.
    phrases = sorted(sections["words"], key=len, reverse=True)
    alternatives = "|".join(r"\s+".join(map(re.escape, phrase.split())) for phrase in phrases)
    pattern = re.compile(rf"(?<![\w-])(?:{alternatives})(?![\w-])", re.IGNORECASE)
    return WordList(pattern, frozenset(sections["identifiers"]), exceptions)


def check_file(path: Path, words: WordList) -> Iterator[Match]:
    """Yield every match in a file, exceptions included."""
    absolute = path.resolve()
    name = absolute.relative_to(ROOT).as_posix() if absolute.is_relative_to(ROOT) else str(path)
    text = path.read_text(encoding="utf-8")
    prose = text
    names: Iterator[tuple[int, str]] = iter(())
    if path.suffix in (".py", ".pyi"):
        prose, names = comments_and_strings(text), variables(text)
    elif path.suffix == ".ipynb":
        # A notebook stores a cell as one JSON string per line. Blank out the quotes and commas
        # between two of them, so that a phrase may span lines; the length stays the same.
        prose = re.sub(r'\\n",\n( *)"', r"    \n\1 ", text)
        names = notebook_variables(text)
    for match in words.words.finditer(prose):
        line = prose.count("\n", 0, match.start()) + 1
        yield Match(name, line, " ".join(match[0].lower().split()))
    for line, variable in names:
        if variable in words.identifiers:
            yield Match(name, line, variable)


def comments_and_strings(source: str) -> str:
    """Return Python source with everything except comments and strings blanked out.

    Code becomes :data:`CODE`; quotes and comment signs become spaces, so that a phrase is matched
    across adjacent strings or comment lines. Line numbers do not change.
    """
    lines = [[c if c.isspace() else CODE for c in line] for line in source.splitlines(True)]
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)  # Python 3.12 tokenizes f-strings in parts
    quotes = {getattr(tokenize, f"FSTRING_{name}", None) for name in ("START", "END")} - {None}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING, middle, *quotes):
            continue
        text = token.string
        if token.type == tokenize.COMMENT:
            text = re.sub(r"^#+", lambda sign: " " * len(sign[0]), text)
        elif token.type in quotes:
            text = " " * len(text)
        elif token.type == tokenize.STRING:
            ends = re.match(r"(?s)(\w*(?:\"\"\"|'''|\"|'))(.*?)(\"\"\"|'''|\"|')\Z", text)
            assert ends
            text = " " * len(ends[1]) + ends[2] + " " * len(ends[3])
        row, column = token.start
        for n, part in enumerate(text.split("\n")):
            begin = column if n == 0 else 0
            lines[row - 1 + n][begin : begin + len(part)] = part
    return "".join("".join(line) for line in lines)


def variables(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and name of every variable and argument that Python source defines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def notebook_variables(text: str) -> Iterator[tuple[int, str]]:
    """Yield the same for a notebook's code cells; the lines are those of its JSON file."""
    rows = text.splitlines()
    row = 0
    for cell in json.loads(text)["cells"]:
        source = cell["source"] if isinstance(cell["source"], list) else [cell["source"]]
        starts = []
        for line in source:  # locate each line of the cell in the file
            stored = json.dumps(line, ensure_ascii=False)
            row = next((n for n in range(row, len(rows)) if stored in rows[n]), row)
            starts.append(row + 1)
        if cell["cell_type"] == "code" and starts:
            code = re.sub(r"(?m)^[%!].*$", "", "".join(source))
            for line, name in variables(code):
                yield starts[min(line, len(starts)) - 1], name


def files_of(paths: list[Path]) -> Iterator[Path]:
    """Yield the files to check under the paths."""
    for path in paths:
        candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in candidates:
            skipped = {"__pycache__", ".ipynb_checkpoints"} & set(file.parts)
            if file.suffix in SUFFIXES and file.is_file() and not skipped:
                yield file


def main(arguments: list[str]) -> int:
    """Print the matches in the paths and return the exit code."""
    words = read_list()
    paths = [Path(argument) for argument in arguments] or [ROOT / name for name in DEFAULT_PATHS]
    unused = set(words.exceptions)
    count = 0
    for file in files_of(paths):
        for match in check_file(file, words):
            matching = [
                (pattern, word)
                for pattern, word in words.exceptions
                if fnmatch(match.file, pattern) and word in (match.word, "*")
            ]
            unused -= set(matching)
            if not matching:
                print(f"{match.file}:{match.line}: {match.word}")
                count += 1
    # A run over some files says nothing about the exceptions of the others.
    if not arguments:
        for pattern, word in sorted(unused):
            print(f"docs/word_list.txt: nothing matches the exception {pattern}: {word}")
        count += len(unused)
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
