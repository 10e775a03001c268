"""List and sort the files of directories, and read split files."""

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
    """The names in one directory.

    Attributes:
        files: files with one of the requested extensions.
        folders: subdirectories.
        others: everything else, including hidden files.
    """

    files: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: str | Path, endings: tuple[str, ...]) -> Listing:
    """List a directory in one pass, without opening a file.

    Extensions are compared without regard to case, and links are followed. Names that begin with a
    dot (``.DS_Store``, ``._00000.jpg``) are always listed in ``others``.

    Args:
        folder: the directory.
        endings: extensions of ``files``, in lower case and with their dot.

    Raises:
        DataError: the directory cannot be listed, or a link with one of the extensions is broken.
    """
    listing = Listing([], [], [])
    try:
        # A DirEntry knows its type from the listing: no stat call per file, which would be slow on
        # network file systems.
        with os.scandir(folder) as entries:
            for entry in entries:
                fits = entry.name.lower().endswith(endings) and not entry.name.startswith(".")
                if fits and entry.is_file():
                    listing.files.append(entry.name)
                elif entry.is_dir() and not entry.name.startswith("."):
                    listing.folders.append(entry.name)
                elif fits and entry.is_symlink():
                    raise DataError(f"{entry.path} is a broken link", hint="repair or remove it")
                else:
                    listing.others.append(entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {error}", hint="give a readable directory"
        ) from error
    return listing


def log_ignored(root: str | Path, names: list[str]) -> None:
    """Log the number of ignored files and directories, if there are any, in one line."""
    if names:
        logger.info(
            "{}: ignored {} files or folders that are not part of the data set, such as {}",
            root,
            len(names),
            min(names),
        )


def stem(name: str) -> str:
    """Return a file name without its last extension."""
    return name.rpartition(".")[0] or name


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that compares numbers in names by value: frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    # int() rejects strings of several thousand digits, so such numbers are compared as strings.
    return [(0, int(p), p) if p.isdecimal() and len(p) < 1000 else (1, 0, p) for p in parts if p]


def sort_files(files: list[str], folder: str | Path) -> list[str]:
    """Sort file names by their stems, with numbers compared by value.

    Args:
        files: names of files in one directory.
        folder: the directory, for the error message.

    Raises:
        DataError: two files differ only in their extension.
    """
    stems = [stem(name) for name in files]
    if len(set(stems)) < len(stems):
        duplicate = Counter(stems).most_common(1)[0][0]
        raise DataError(
            f"{folder}: several frames have the name {duplicate!r} and differ only in their "
            "extension",
            hint="keep one of them",
        )
    # Zero-padded numbers of equal length sort correctly as strings, which is much faster.
    padded = len({len(s) for s in stems}) < 2 and all(s.isdecimal() for s in stems)
    return sorted(files, key=stem if padded else lambda name: natural_key(stem(name)))


def read_split(split: str, root: Path, videos: Collection[str]) -> list[str]:
    """Read the names of the videos that a split lists, without duplicates and in its order.

    Args:
        split: a text file, or its name under ``root/ImageSets`` without ``.txt``.
        root: the directory of the data set.
        videos: the names of the existing videos.

    Raises:
        DataError: the file is missing, unreadable or empty, or lists a video that does not exist.
    """
    candidates = [Path(split), root / "ImageSets" / f"{split}.txt", root / "ImageSets" / split]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        lists = sorted(p.relative_to(root / "ImageSets") for p in root.glob("ImageSets/**/*.txt"))
        raise DataError(
            key="split",
            value=split,
            expected=f"a text file or the name of a list in {root / 'ImageSets'}",
            hint="available lists: "
            + (", ".join(p.with_suffix("").as_posix() for p in lists) or "none"),
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as a list of videos: {error}",
            hint="give a UTF-8 text file with one video name per line",
        ) from error
    existing = set(videos)
    names = dict.fromkeys(_video_of_line(line, existing) for line in lines if line.strip())
    if not names:
        raise DataError(f"{path} lists no videos", hint="write one video name per line")
    missing = [name for name in names if name not in existing]
    if missing:
        raise DataError(
            f"{path} lists {len(missing)} videos that do not exist in {root}, such as "
            f"{missing[0]!r}",
            hint=suggest(missing[0], videos),
        )
    return list(names)


def _video_of_line(line: str, videos: Collection[str]) -> str:
    line = line.strip()
    if line in videos or "/" not in line:
        return line
    first = Path(line.split()[0])  # DAVIS 2016: /JPEGImages/480p/bear/00000.jpg /Annotations/...
    return first.parent.name if first.suffix.lower() in FRAME_ENDINGS else first.name
