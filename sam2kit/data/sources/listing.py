"""What folders hold: files by ending, in an order that is stated, and lists of videos."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from sam2kit.utils.errors import DataError
from sam2kit.utils.text import suggest

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm")


class Listing(NamedTuple):
    """Names in one folder: files of the endings asked for, folders, and all that is neither."""

    files: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: str | Path, endings: tuple[str, ...]) -> Listing:
    """The names in a folder, in one pass that opens no file.

    Files count by their ending in any case, links by what they lead to. Names that begin with a
    dot (``.DS_Store``, ``._00000.jpg``) are among the others.

    Raises:
        DataError: no such folder, or a link that leads nowhere and has one of the endings.
    """
    found = Listing([], [], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                fits = entry.name.lower().endswith(endings) and not entry.name.startswith(".")
                if fits and entry.is_file():
                    found.files.append(entry.name)
                elif entry.is_dir() and not entry.name.startswith("."):
                    found.folders.append(entry.name)
                elif fits and entry.is_symlink():
                    raise DataError(f"{entry.path} is a link to nothing; repair or remove it")
                else:
                    found.others.append(entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error}; name a folder of files") from error
    return found


def tell_others(root: str | Path, others: list[str]) -> None:
    """Say in one line what was left out, if anything was."""
    if others:
        logger.info(
            "{}: {} names are no part of the data and were left out, such as {}",
            root,
            len(others),
            min(others),
        )


def stem(name: str) -> str:
    """A file's name without its last ending."""
    return name.rpartition(".")[0] or name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by value: frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), p) if p.isdecimal() and len(p) < 1000 else (1, 0, p) for p in parts if p]


def in_order(files: list[str], folder: str | Path) -> list[str]:
    """File names by their stems, numbers within them by value.

    Raises:
        DataError: two files that differ only in their ending.
    """
    stems = [stem(name) for name in files]
    if len(set(stems)) < len(stems):
        twice = Counter(stems).most_common(1)[0][0]
        raise DataError(
            f"{folder}: several frames are called {twice!r} and differ only in their ending; "
            "keep one of them"
        )
    alike = len({len(s) for s in stems}) < 2 and all(s.isdecimal() for s in stems)
    return sorted(files, key=stem if alike else lambda name: natural_key(stem(name)))


def read_split(split: str, root: Path, found: Collection[str]) -> list[str]:
    """The video names that a split lists, each once, in its order.

    Args:
        split: a text file, or its name under ``root/ImageSets`` without ``.txt``.
        root: the data set's directory.
        found: the videos that exist.

    Raises:
        DataError: no such file, an empty one, or a name that does not exist.
    """
    candidates = [Path(split), root / "ImageSets" / f"{split}.txt", root / "ImageSets" / split]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = sorted(p.relative_to(root / "ImageSets") for p in root.glob("ImageSets/**/*.txt"))
        raise DataError(
            f"split {split!r} is neither a text file nor a list under {root / 'ImageSets'}; "
            f"lists there: {[p.with_suffix('').as_posix() for p in known] or 'none'}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of videos: {error}") from error
    known_names = set(found)
    names = dict.fromkeys(_video_of_line(line, known_names) for line in lines if line.strip())
    if not names:
        raise DataError(f"{path} lists no videos; write one name on each line")
    missing = [name for name in names if name not in known_names]
    if missing:
        raise DataError(
            f"{path} lists {len(missing)} videos that {root} does not have, such as "
            f"{missing[0]!r}; {suggest(missing[0], found)}"
        )
    return list(names)


def _video_of_line(line: str, found: Collection[str]) -> str:
    line = line.strip()
    if line in found or "/" not in line:
        return line
    first = Path(line.split()[0])  # DAVIS 2016: /JPEGImages/480p/bear/00000.jpg /Annotations/...
    return first.parent.name if first.suffix.lower() in FRAME_ENDINGS else first.name
