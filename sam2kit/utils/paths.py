"""Create run directories and file names, and describe paths that do not exist."""

from __future__ import annotations

import os
import re
import shlex
from datetime import datetime
from pathlib import Path

from sam2kit.utils.errors import ConfigError
from sam2kit.utils.text import close_names, text_checksum


def file_name(name: str) -> str:
    """Convert a name in a dataset, such as a video name, to a safe and unique file name.

    The name is untrusted: it may contain slashes, point outside the directory, or be too
    long for the file system. A changed name gets a checksum, so that different names never collide.
    """
    safe = re.sub(r"[^\w .()+-]", "_", name)[:60].strip(" .")
    return safe if safe == name else f"{safe}-{text_checksum(name):08x}"


def new_run_dir(output_dir: str | Path) -> Path:
    """Create the run directory ``OUTPUT_DIR/YYYY-MM-DD/HH-MM-SS``.

    A counter is appended if a run was started in the same second.

    Raises:
        ConfigError: no unused name was available.
    """
    now = datetime.now()
    day = Path(output_dir) / now.strftime("%Y-%m-%d")
    for attempt in range(1000):
        run_dir = day / (now.strftime("%H-%M-%S") + (f"-{attempt}" if attempt else ""))
        try:
            run_dir.mkdir(parents=True)
            return run_dir
        except FileExistsError:
            continue
    message, hint = f"no unused run directory under {day}", "choose another output_dir"
    raise ConfigError(message, key="output_dir", value=str(output_dir), hint=hint)


def open_run_dir(run_dir: str | Path | None, output_dir: str | Path) -> Path:
    """Create and return a run directory.

    Args:
        run_dir: directory to use; it may exist. If None, a new dated directory in ``output_dir``;
            see :func:`new_run_dir`.
        output_dir: parent of the dated directories.

    Raises:
        ConfigError: the directory cannot be created or is not writable.
    """
    target = output_dir if run_dir is None else run_dir
    try:
        folder = new_run_dir(output_dir) if run_dir is None else Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror
    else:
        if os.access(folder, os.W_OK):
            return folder
        reason = "no write permission"
    message = f"cannot write to {target} ({reason})"
    hint = "choose another directory"
    raise ConfigError(message, key="output_dir", value=str(target), hint=hint)


def unpack_hint(path: str | Path) -> str | None:
    """Return a hint with the command that unpacks an archive, or None for other files."""
    path = Path(path)
    name = path.name.lower()
    folder = path.parent / re.sub(r"(\.tar)?\.[^.]+$", "", path.name, flags=re.IGNORECASE)
    source, target = shlex.quote(str(path)), shlex.quote(str(folder))
    if name.endswith(".zip"):
        return f"unpack it: unzip {source} -d {target}"
    if name.endswith((".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")):
        return f"unpack it: mkdir -p {target} && tar -xf {source} -C {target}"
    if name.endswith((".7z", ".rar")):
        return f"unpack it: 7z x {source} -o{target}"
    return None


def missing(path: str | Path) -> str:
    """Describe a path that does not exist, and the content of its closest existing parent.

    The names most similar to the missing one are listed or, if there are none, the first few.
    """
    path = Path(path)
    parent, name = path.absolute().parent, path.name
    while not parent.is_dir():
        parent, name = parent.parent, parent.name
    names = sorted(e.name for e in parent.iterdir() if not e.name.startswith("."))
    similar = close_names(name, names) or names[:5]
    listing = f"contains {', '.join(similar)}" if similar else "is empty"
    return f"{path} does not exist; {parent} {listing}"
