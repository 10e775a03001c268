"""Write files beside their target, publish them at the end, and clean up after killed processes.

The files are written to ``TARGET.unfinished-PID/files``. The folder also contains the lock of its
process, so the next call for the same target can tell an abandoned folder from one in use.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from loguru import logger

from sam2kit.utils.errors import DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.locks import LOCK_FILE, check_free, is_locked, locked
from sam2kit.utils.readers import check_types, read_json

_JOURNAL = "published.json"


@contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """Yield a new folder for the files of ``target``; it is removed at the end of the block.

    Folders that killed processes left for this target are removed first.

    Raises:
        OSError: the folder cannot be created.
        PipelineError: another process is writing the target.
    """
    remove_leftovers(target)
    folder = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        with locked(folder):
            files = folder / "files"
            # A process that has created its files continues. Of two that start at the same time,
            # the first one to lock its folder continues; none does if their times are equal.
            for other in remove_leftovers(target):
                started = (other / files.name).exists()
                if other != folder and (started or _lock_time(other) <= _lock_time(folder)):
                    check_free(other)
            files.mkdir()
            yield files
    finally:
        with suppress(OSError):
            _remove(folder)


def _lock_time(folder: Path) -> int:
    """Return when a folder was locked, in nanoseconds; file systems round it to milliseconds."""
    try:
        return (folder / LOCK_FILE).stat().st_mtime_ns
    except FileNotFoundError:  # its process has finished
        return sys.maxsize


def _remove(folder: Path) -> None:
    """Remove a folder of :func:`unfinished`; its lock file, which identifies it, comes last."""
    for path in folder.iterdir():
        if path.name != LOCK_FILE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(folder)


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


def remove_leftovers(target: Path) -> list[Path]:
    """Remove the folders that killed processes left for a target, and the files they published.

    A folder is removed only if it has a name of :func:`unfinished` and is empty or has a lock file,
    and a published file only if it has not changed since.

    Returns:
        The folders whose processes are still running.
    """
    in_use = []
    pattern = rf"{re.escape(target.name)}\.unfinished-\d+"
    siblings = target.parent.iterdir() if target.parent.is_dir() else ()
    for folder in sorted(path for path in siblings if re.fullmatch(pattern, path.name)):
        if folder.is_symlink() or not folder.is_dir():
            continue
        if not (folder / LOCK_FILE).is_file():
            # Its process was killed before it locked the folder, or after it had emptied it.
            if not psutil.pid_exists(int(folder.name.rpartition("-")[2])):
                with suppress(OSError):  # it has other content
                    folder.rmdir()
        elif is_locked(folder):
            in_use.append(folder)
        else:
            with locked(folder) as lock:
                if lock < 0:  # without locks, its process may be running
                    continue
                _take_back(folder)
                _remove(folder)
            logger.info("Removed {}, left by an interrupted process", folder)
    return in_use


def _take_back(folder: Path) -> None:
    """Remove the files that the process of a folder had published before it was killed."""
    try:
        journal = read_json(folder / _JOURNAL)
        check_types(journal, dict[str, list[int]], folder / _JOURNAL, "")
    except (FileNotFoundError, DataError):
        return  # the process was killed before it published anything
    for name, identity in journal.items():
        path = folder.parent / Path(name).name
        if path.is_file() and _identity(path) == identity:
            path.unlink()


def _identity(path: Path) -> list[int]:
    """Return the properties that a rename preserves: inode, size and modification time."""
    stat = path.stat()
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns]
