"""Run directories, file names, and errors about paths that do not exist."""

from __future__ import annotations

import os
import re
import zlib
from datetime import datetime
from pathlib import Path

from sam2kit.utils.errors import ConfigError
from sam2kit.utils.text import close_names


def file_name(name: str) -> str:
    """Turn a name from a data set (a video's, say) into a file name, different for each name.

    It may hold anything: slashes and dots that lead out of the folder, or too many letters.
    """
    safe = re.sub(r"[^\w .()+-]", "_", name)[:60].strip(" .")
    return safe if safe == name else f"{safe}-{zlib.crc32(name.encode()):08x}"


def new_run_dir(output_dir: str | Path) -> Path:
    """Make ``OUTPUT_DIR/YYYY-MM-DD/HH-MM-SS``, with a counter when that second is taken."""
    now = datetime.now()
    day = Path(output_dir) / now.strftime("%Y-%m-%d")
    for attempt in range(1000):
        run_dir = day / (now.strftime("%H-%M-%S") + (f"-{attempt}" if attempt else ""))
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            continue
    raise ConfigError(f"no free run folder under {day}", key="output_dir")


def open_run_dir(run_dir: str | Path | None, output_dir: str | Path) -> Path:
    """``run_dir``, made if need be; where it is None, a new dated folder under ``output_dir``.

    Raises:
        ConfigError: nothing can be written there.
    """
    given = output_dir if run_dir is None else run_dir
    try:
        folder = new_run_dir(output_dir) if run_dir is None else Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(folder, os.W_OK):
            return folder
        reason = "no right to write"
    message = f"nothing can be written under {given} ({reason})"
    raise ConfigError(message, key="output_dir", value=str(given), hint="name another")


def missing(path: str | Path) -> str:
    """Say that ``path`` does not exist, and name its nearest folder and similar names there."""
    path = Path(path)
    parent, name = path.absolute().parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    names = sorted(e.name for e in parent.iterdir() if not e.name.startswith("."))
    near = close_names(name, names) or names[:5]
    listing = ", ".join(near) if near else "nothing, it is empty"
    return f"{path} does not exist; {parent} holds {listing}"
