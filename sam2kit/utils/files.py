"""Write files atomically."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(
    path: str | Path, fsync: bool = False, temporary: Path | None = None
) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` when the block ends.

    Readers see either the old or the new file, never a partial one. If the block raises or writes
    nothing, ``path`` does not change. The temporary file is always removed.

    Args:
        path: a file in an existing directory.
        fsync: flush the content to disk before the replacement, so that even a power failure
            leaves the old or the new file.
        temporary: temporary path. None (default): ``path`` with the suffix ``.part``. A killed
            process leaves it behind and the next one overwrites it. Processes that may write the
            same path at the same time need different temporary paths.
    """
    temporary = temporary or Path(f"{path}.part")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        if temporary.exists():
            if fsync:
                with temporary.open("r+b") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        # os.replace does nothing if both names are hard links to the same file.
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically; see :func:`atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cut_last_line(path: Path) -> str:
    """Remove a last line without a line break, which a process that was killed has left.

    Returns:
        the removed text; empty if the file is complete or missing.
    """
    try:
        with path.open("r+b") as file:
            start, size = 0, file.seek(0, os.SEEK_END)
            # Searched from the end in blocks, because the file can be large.
            for position in range(max(size - 4096, 0), -4096, -4096):
                file.seek(max(position, 0))
                block = file.read(4096 + min(position, 0))
                if (offset := block.rfind(b"\n")) >= 0:
                    start = max(position, 0) + offset + 1
                    break
            file.seek(start)
            removed = file.read()
            if removed:
                file.truncate(start)
            return removed.decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
