"""Make text that comes from data safe to show: in tables, figures, pages, widgets and terminals.

Names of videos, objects, trackers and files, and messages that quote them, may hold anything: HTML,
Markdown, TeX, control characters, ten thousand letters. Everything that shows such text passes it
through one of these functions first; all of them begin with :func:`visible_text`.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Collection, Iterable

MAX_LENGTH = 1000  # of a cell or a message: what still fits on a screen
MAX_WORD = 200  # a word is not wrapped; longer than most paths
MAX_LABEL = 48  # in figures and lists to choose from, where a line has to fit
MAX_LABEL_LINES = 4
MAX_NAMES = 15  # that a message lists to choose from

# Control characters; invisible ones; those that change the direction of the text around them
# (Trojan Source, CVE-2021-42574); halves of surrogate pairs, which undecodable file names hold and
# UTF-8 cannot encode. The joiners U+200C and U+200D stay: Persian and emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}")
# An underscore within a word and an ampersand that begins no entity mean nothing in Markdown.
_MARKDOWN = re.compile(
    r"[<>`*\[\]|~#!@$\\]|&(?=#|\w+;)|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE
)
_MATH = "$\\"


def visible_text(
    value: object, max_length: int | None = MAX_LENGTH, multiline: bool = False
) -> str:
    """Return plain text on one line in which every character can be seen.

    Control, invisible and bidirectional control characters become escape sequences such as
    ``\\u202e``. A text longer than ``max_length`` loses its middle to an ellipsis, and so does a
    word longer than :data:`MAX_WORD`.

    Args:
        max_length: maximum number of characters. None: no limit, for words neither.
        multiline: keep line breaks and tabs as they are.
    """
    text = str(value)
    kept = "\n\t" if multiline else ""
    text = _HIDDEN.sub(lambda match: match[0] if match[0] in kept else _escape(match[0]), text)
    if max_length is None:
        return text
    return _shorten(_LONG_WORD.sub(lambda match: _shorten(match[0], MAX_WORD), text), max_length)


def label_text(value: object) -> str:
    """Return :func:`visible_text` of up to :data:`MAX_LABEL` characters."""
    return visible_text(value, MAX_LABEL)


def html_text(value: object) -> str:
    """Return :func:`visible_text` escaped for HTML, as content or as a quoted attribute.

    JupyterLab typesets ``$...$`` in HTML, too; the element around it needs the class
    ``mathjax_ignore``, which :class:`sam2kit.viz.tables.Table` sets.
    """
    return html.escape(visible_text(value))


def markdown_text(value: object) -> str:
    """Return :func:`visible_text` with every active character of Markdown as an HTML entity.

    Entities rather than backslashes, because two backslashes and a bracket begin a formula in
    JupyterLab. It also looks for formulas in the finished page, but not across elements.
    """
    return _MARKDOWN.sub(_entity, visible_text(value))


def figure_text(value: object) -> str:
    """Return a label that matplotlib draws literally, each line as :func:`label_text`.

    A pair of dollar signs would be parsed as TeX, which raises where it is malformed. A legend
    leaves out labels that begin with an underscore.
    """
    lines = str(value).split("\n")[:MAX_LABEL_LINES]
    text = "\n".join(label_text(line).replace("$", r"\$") for line in lines)
    return f" {text}" if text.startswith("_") else text


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
    """Return up to ``count`` of the ``known`` names that are like ``name``, the closest first."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.6)


def suggest(name: str, known: Collection[str]) -> str:
    """Return a half sentence with the names closest to ``name``, or with the first few of all."""
    if close := close_names(name, known):
        return f"did you mean {' or '.join(close)}?"
    more = ", ..." if len(known) > MAX_NAMES else ""
    return f"choose from {', '.join(list(known)[:MAX_NAMES])}{more}"


def plural(number: int, noun: str) -> str:
    """Return ``number`` with ``noun`` in the matching form: 1 object, 2 objects."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
