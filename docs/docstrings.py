"""Adapt docstrings to MkDocs: replace Sphinx roles by links, split entries of several arguments."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`(~?)([^`]+)`")
SECTION = re.compile(r"^(\s*)(?:Args|Attributes):$")
SHARED_ENTRY = re.compile(r"^(\s*)(\*{0,2}\w+(?:, \*{0,2}\w+)+):(.*)$")


def replace_roles(text: str) -> str:
    """Replace each role, such as ``:class:`Config```, by inline code.

    The code links to the object if the reference has an entry for it.
    """
    return ROLE.sub(_link, text)


def _link(match: re.Match[str]) -> str:
    shortened, path = match[1], match[2]
    label = path.rpartition(".")[2] if shortened else path
    return f'<autoref identifier="{path}" optional><code>{label}</code></autoref>'


def split_arguments(text: str) -> str:
    """Split ``height, width: pixels.`` in an Args section into one entry per argument.

    griffe, which parses the docstrings, supports only one argument per entry.
    """
    result: list[str] = []
    margin: int | None = None  # indentation of the section title; None outside a section
    lines = text.split("\n")
    for n, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if section := SECTION.match(line):
            margin = len(section[1])
        elif margin is not None and line.strip() and indent <= margin:
            margin = None
        entry = SHARED_ENTRY.match(line)
        if margin is None or not entry:
            result.append(line)
            continue
        # The last argument keeps the continuation lines; the others get copies of them.
        continuation = []
        for following in lines[n + 1 :]:
            if not following.strip() or len(following) - len(following.lstrip()) <= indent:
                break
            continuation.append(following)
        *others, last = entry[2].split(", ")
        for name in others:
            result += [f"{entry[1]}{name}:{entry[3]}", *continuation]
        result.append(f"{entry[1]}{last}:{entry[3]}")
    return "\n".join(result)


class Docstrings(griffe.Extension):
    """A griffe extension that applies both functions to every docstring."""

    def on_instance(self, *, node: Any, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = replace_roles(split_arguments(obj.docstring.value))
