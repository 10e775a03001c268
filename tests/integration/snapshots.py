"""Compare text with a file under ``snapshots/``, and describe the keys of JSON files.

``UPDATE_SNAPSHOTS=1 pytest tests/integration`` updates the files; review the diff before you commit
it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "snapshots"
UPDATE = os.environ.get("UPDATE_SNAPSHOTS") == "1"


def check_snapshot(name: str, text: str) -> None:
    """Compare ``text`` with the snapshot ``name``, after writing it if :data:`UPDATE` is set."""
    path = FOLDER / name
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.is_file(), f"no snapshot {name}; UPDATE_SNAPSHOTS=1 creates it"
    assert text == path.read_text(encoding="utf-8"), f"snapshot {name} has changed"


def key_tree(content: Any, names: Collection[str] = ()) -> str:
    """Describe a JSON document by its keys and types, with one line per path, sorted.

    ``a.b[].c: float | null`` means that ``c``, in the elements of the list ``b``, is a number or
    null. All elements of a list share their lines.

    Args:
        content: the result of ``json.loads``.
        names: keys that users choose, such as names of videos; each is written as ``*``.
    """
    types: dict[str, set[str]] = {}
    for path, kind in _leaves(content, "", set(names)):
        types.setdefault(path, set()).add(kind)
    return "".join(
        f"{path}: {' | '.join(sorted(kinds))}\n" for path, kinds in sorted(types.items())
    )


def _leaves(value: Any, path: str, names: set[str]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            key = "*" if key in names else key
            yield from _leaves(inner, f"{path}.{key}" if path else key, names)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from _leaves(inner, f"{path}[]", names)
    else:
        empty = {dict: "empty object", list: "empty list", type(None): "null"}
        yield path, empty.get(type(value), type(value).__name__)
