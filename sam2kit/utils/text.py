"""Escape untrusted text for tables, figures, pages, widgets and terminals.

Names of videos, objects, trackers and files come from data, and so do messages that quote them.
They may contain HTML, Markdown, TeX, control characters or ten thousand letters. All output code
passes such text through one of these functions; each of them starts with :func:`visible_text`.
"""

from __future__ import annotations

import difflib
import html
import re
import zlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

MAX_LENGTH = 1000  # characters of a table cell or message, about one screen
MAX_WORD = 200  # characters of a word, which is never wrapped; most paths are shorter
MAX_LABEL = 48  # characters of a label in a figure or a selection list, which is one line
MAX_LABEL_LINES = 4
MAX_NAMES = 15  # names that a message offers as choices

# Control characters, invisible characters, and characters that change the direction of the text
# around them (Trojan Source, CVE-2021-42574). Also lone surrogates: Python uses them in undecodable
# file names, and UTF-8 cannot encode them. The joiners U+200C and U+200D are allowed, because
# Persian and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")
# Markdown leaves an underscore inside a word and an ampersand outside an entity as they are.
_MARKDOWN = re.compile(
    r"[<>`*\[\]|~#!@$\\]|&(?=#|\w+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE
)
_MATH = "$\\"


def visible_text(
    value: object, max_length: int | None = MAX_LENGTH, multiline: bool = False
) -> str:
    """Return a value as plain text on one line in which every character is visible.

    Control, invisible and bidirectional control characters become escape sequences such as
    ``\\u202e``. An ellipsis replaces the middle of a text longer than ``max_length`` and of a word
    longer than :data:`MAX_WORD`.

    Args:
        value: object to convert with ``str``.
        max_length: maximum number of characters. None: no limit for the text and its words.
        multiline: whether to keep line breaks and tabs.
    """
    text = str(value)
    allowed = "\n\t" if multiline else ""
    text = _HIDDEN.sub(lambda match: match[0] if match[0] in allowed else _escape(match[0]), text)
    if max_length is None:
        return text
    return _shorten(_LONG_WORD.sub(lambda match: _shorten(match[0], MAX_WORD), text), max_length)


def label_text(value: object) -> str:
    """Return :func:`visible_text` shortened to :data:`MAX_LABEL` characters."""
    return visible_text(value, MAX_LABEL)


def html_text(value: object) -> str:
    """Return :func:`visible_text` escaped for HTML content or a quoted attribute.

    JupyterLab also typesets ``$...$`` in HTML. The enclosing element needs the class
    ``mathjax_ignore``, which :class:`sam2kit.viz.tables.Table` sets.
    """
    return html.escape(visible_text(value))


def markdown_text(value: object) -> str:
    """Return :func:`visible_text` with all special characters of Markdown as HTML entities.

    Backslash escapes are not safe, because two backslashes and a bracket start a formula in
    JupyterLab. JupyterLab also searches the rendered page for formulas, but not across elements,
    so each dollar sign and backslash gets an element of its own.
    """
    return _MARKDOWN.sub(_entity, visible_text(value))


def figure_text(value: object) -> str:
    """Return a label that matplotlib draws literally, with each line as :func:`label_text`.

    matplotlib parses text between dollar signs as TeX and raises an error if it is malformed, and
    legends omit labels that start with an underscore.
    """
    lines = str(value).split("\n")[:MAX_LABEL_LINES]
    text = "\n".join(label_text(line).replace("$", r"\$") for line in lines)
    return f" {text}" if text.startswith("_") else text


def cell_text(value: Any) -> Any:
    """Return a value for a cell of a CSV file; text is the whole :func:`visible_text`.

    Spreadsheets run cells that start with one of ``= + - @`` as formulas, which can start programs.
    An apostrophe before the text makes them show it.
    """
    if not isinstance(value, str):
        return value
    text = visible_text(value, None)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def text_checksum(text: str) -> int:
    """Return the CRC-32 of a text, also of names of files that are not UTF-8."""
    return zlib.crc32(text.encode(errors="surrogatepass"))


def log_format(line: str) -> Callable[[Any], str]:
    """Return a format function for loguru that indents the further lines of a message.

    Otherwise a name with a line break, such as a folder name, could add lines that look like
    separate records. Invisible characters are escaped.

    Args:
        line: loguru's format, in which ``{extra[text]}`` is the message.
    """

    def format(record: Any) -> str:
        text = visible_text(record["message"], None, multiline=True)
        record["extra"]["text"] = text.replace("\n", "\n  ")
        return f"{line}\n{{exception}}"

    return format


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _entity(match: re.Match[str]) -> str:
    entity = f"&#{ord(match[0])};"
    return f"<span>{entity}</span>" if match[0] in _MATH else entity


def _shorten(text: str, max_length: int) -> str:
    if len(text) <= max_length:
        return text
    tail = (max_length - 1) // 3
    return f"{text[: max_length - 1 - tail]}…{text[len(text) - tail :]}"


def close_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of the ``known`` names similar to ``name``, the closest first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def suggest(name: str, known: Collection[str]) -> str:
    """Return a hint with the known names closest to ``name``, or the first few if none is close."""
    if close := close_names(name, known):
        return f"did you mean {' or '.join(close)}?"
    more = ", ..." if len(known) > MAX_NAMES else ""
    return f"choose from {', '.join(list(known)[:MAX_NAMES])}{more}"


def plural(number: int, noun: str) -> str:
    """Return ``number`` with ``noun`` in the singular or plural: 1 object, 2 objects."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
