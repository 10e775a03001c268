"""Write files beside their target, publish them at the end, and remove what a kill left behind.

The files are written to ``TARGET.unfinished-PID/files``. The folder also has the lock of its
process, so the next call for the same target can tell an abandoned folder from one in use.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from loguru import logger

from sam2kit.utils.errors import PipelineError
from sam2kit.utils.files import write_text
from sam2kit.utils.locks import LOCK_FILE, locked

_JOURNAL = "published.json"


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Yield a new folder for the files of ``target``; it is removed at the end of the block.

    Folders that killed processes left for this target are removed first.

    Raises:
        OSError: the folder cannot be created.
    """
    remove_leftovers(target)
    folder = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        with locked(folder):
            (folder / "files").mkdir()
            yield folder / "files"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(targets: Mapping[Path, Path]) -> None:
    """Rename files of an :func:`unfinished` folder to their targets, all or none.

    If the process is killed between two of them, :func:`remove_leftovers` removes the first.

    Args:
        targets: maps each file in the folder to the path that it gets.
    """
    folder = next(iter(targets)).parent.parent
    journal = {str(new.name): _identity(old) for old, new in targets.items()}
    write_text(folder / _JOURNAL, json.dumps(journal))
    for old, new in targets.items():
        os.replace(old, new)
    (folder / _JOURNAL).unlink()


def remove_leftovers(target: Path) -> None:
    """Remove the folders that killed processes left for a target, and what they published.

    Only folders that have the name and the lock file of :func:`unfinished` are removed, and only
    published files that have not been changed since.
    """
    pattern = rf"{re.escape(target.name)}\.unfinished-\d+"
    siblings = target.parent.iterdir() if target.parent.is_dir() else ()
    for folder in sorted(path for path in siblings if re.fullmatch(pattern, path.name)):
        if folder.is_symlink() or not (folder / LOCK_FILE).is_file():
            continue
        try:
            with locked(folder):
                _take_back(folder)
                shutil.rmtree(folder)
        except PipelineError:
            continue  # its process is still running
        logger.info("Removed {}, which an interrupted process had left", folder)


def _take_back(folder: Path) -> None:
    """Remove the files that the process of a folder had published before it was killed."""
    try:
        journal = json.loads((folder / _JOURNAL).read_text(encoding="utf-8"))
        identities = {str(name): identity for name, identity in journal.items()}
    except (OSError, ValueError, AttributeError):
        return
    for name, identity in identities.items():
        path = folder.parent / Path(name).name
        if path.is_file() and _identity(path) == identity:
            path.unlink()


def _identity(path: Path) -> list[int]:
    """Return what a rename keeps: inode, size and modification time."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]
