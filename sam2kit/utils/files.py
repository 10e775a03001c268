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
    """Give a path beside ``path`` to write to, which takes its name when the block ends.

    A reader finds the old file or the new one, never a part. Where the block raises or writes
    nothing, ``path`` stays as it was. The temporary file is removed in any case.

    Args:
        path: a file in an existing folder.
        fsync: wait until the content is on the disk, so that a machine that goes down keeps the
            old file or the new one, too.
        temporary: by default ``path`` with ``.part`` appended, which a killed process leaves behind
            and the next one overwrites. Processes that write the same path at the same time need
            a name each.
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
        # Also where replacing did nothing, because both names are links to the same file.
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file with :func:`atomic_write`, in UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
