"""List and sort the files of folders, and read split files."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from loguru import logger

from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_text
from sam2kit.utils.text import suggest

JPEG_ENDINGS = (".jpg", ".jpeg")
MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp")
FRAME_ENDINGS = (*JPEG_ENDINGS, ".webp", ".pgm", ".ppm", *MASK_ENDINGS)
# Video formats of cameras and for exchange that FFmpeg reads.
VIDEO_ENDINGS = (
    *(".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".wmv", ".asf", ".mpg", ".mpeg", ".vob"),
    *(
        ".ts",
        ".mts",
        ".m2ts",
        ".mxf",
        ".dv",
        ".flv",
        ".3gp",
        ".3g2",
        ".ogv",
        ".ogg",
        ".m2v",
        ".mp2t",
    ),
)
# Stacks and volumes, also of formats that no source reads. TIFF may hold single frames, too.
STACK_ENDINGS = (
    *(".tif", ".tiff", ".btf", ".tf8", ".nii", ".nii.gz", ".dcm", ".npz", ".mha", ".mhd", ".nrrd"),
    *(".mgz", ".czi", ".nd2", ".lif", ".lsm", ".stk", ".oib", ".oif", ".h5", ".hdf5", ".ims"),
)
# Folders that file servers, archivers and desktops leave behind, in lower case. They may contain
# images, such as thumbnails.
SYSTEM_FOLDERS = (
    *("@eadir", "@recycle", "@tmp", "#recycle", "__macosx", "lost+found", "$recycle.bin"),
    "system volume information",
)
# Images that no source reads.
OTHER_PICTURES = (".gif", ".heic", ".heif", ".avif", ".jp2", ".j2k", ".jxl", ".dng", ".exr", ".svg")

_MINUS = ("-", "\u2212")  # a hyphen, and the minus sign of typography
_NUMBERED = re.compile(
    r"(?P<prefix>|.*?[^\d.,+\-\u2212])(?P<sign>[+\-\u2212]?)(?P<whole>\d{1,30})"
    r"(?P<decimals>[.,]\d{1,30})?(?P<suffix>[^\d]*)"
)
# The number of a channel or slice, as microscopes write it: _c1, _ch00, _w2, _z003.
_CHANNEL = re.compile(r"(?<![a-z])(?:c|ch|channel|w|z|slice)[_=-]?\d{1,4}(?!\d)", re.IGNORECASE)


class Listing(NamedTuple):
    """The names in one folder.

    Attributes:
        files: files with one of the requested extensions.
        folders: subfolders.
        others: everything else, including hidden files.
    """

    files: list[str]
    folders: list[str]
    others: list[str]


def list_folder(folder: str | Path, endings: tuple[str, ...]) -> Listing:
    """List a folder in one pass, without opening a file.

    Extensions are compared without regard to case, and links are followed. Names that begin with a
    dot (``.DS_Store``, ``._00000.jpg``) are always listed in ``others``.

    Args:
        folder: the folder.
        endings: extensions of ``files``, in lower case and with their dot.

    Raises:
        DataError: the folder cannot be listed, or a link with one of the extensions is broken.
    """
    listing = Listing([], [], [])
    try:
        # A DirEntry knows its type from the listing: no stat call per file, which would be slow on
        # network file systems.
        with os.scandir(folder) as entries:
            for entry in entries:
                fits = entry.name.lower().endswith(endings) and not entry.name.startswith(".")
                if fits and entry.is_file():
                    if not entry.name.isascii():
                        require_utf8(entry.path)
                    listing.files.append(entry.name)
                elif entry.is_dir() and not _is_system_folder(entry.name):
                    require_utf8(entry.path)
                    listing.folders.append(entry.name)
                elif fits and entry.is_symlink():
                    raise DataError(f"{entry.path} is a broken link", hint="repair or remove it")
                else:
                    listing.others.append(entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {error}", hint="give a readable folder"
        ) from error
    return listing


def _is_system_folder(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def require_utf8(path: str) -> None:
    """Raise if a file name is not UTF-8: reports, JSON files and logs could not contain it."""
    folder, name = os.path.split(path)
    if any("\ud800" <= c <= "\udfff" for c in name):
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        raise DataError(
            f"{folder or '.'} contains a name that is not UTF-8: {shown}",
            hint="rename it, for example with: convmv -f latin1 -t utf8 -r --notest FOLDER",
        )


@lru_cache(32)
def unpacked(names: str, separator: str = "/") -> list[str]:
    """Split the names of the frames of a video, which sources keep as one string.

    Recent results are cached, because every access to a frame would split the names of all frames.
    """
    return names.split(separator)


def same_form(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which equal names are equal strings.

    macOS stores "\u00e9" as two characters, and other systems as one.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def find_entry(folder: Path, name: str) -> Path:
    """Return ``folder / name``, or the entry that has this name in another Unicode form."""
    path = folder / name
    if name.isascii() or path.exists() or not folder.is_dir():
        return path
    names = (n for n in os.listdir(folder) if same_form(n) == same_form(name))
    return folder / next(names, name)


def log_ignored(root: str | Path, names: list[str]) -> None:
    """Log the number of ignored files and folders, if there are any, in one line."""
    if names:
        logger.info(
            "{}: ignored {} files or folders that are not part of the dataset, such as {}",
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


def frame_numbers(stems: Sequence[str]) -> list[Decimal] | None:
    """Read frame numbers from names that differ only in a number with a sign or decimals.

    A minus or plus sign belongs to the number if some names have it and others do not, or if
    nothing is before it: ``-1, 0, 1`` and ``t-1, t0, t1``, but not ``clip-1, clip-2``. A point is a
    decimal point unless two names would have the same number, as ``1.1`` and ``1.10``.

    Returns:
        The numbers; None if the names have a different form, or whole numbers without a sign.
    """
    matches = [_NUMBERED.fullmatch(name) for name in stems]
    if len({m and (m["prefix"], m["suffix"]) for m in matches}) != 1 or not matches[0]:
        return None
    signs = {m["sign"] for m in matches if m}
    signed = bool(signs & set(_MINUS)) and (not matches[0]["prefix"] or len(signs) > 1)
    decimal = any(m["decimals"] for m in matches if m)
    if not (signed or decimal):
        return None
    numbers = []
    for m in matches:
        assert m is not None
        sign = "-" if signed and m["sign"] in _MINUS else ""
        numbers.append(Decimal(f"{sign}{m['whole']}{(m['decimals'] or '').replace(',', '.')}"))
    return numbers if len(set(numbers)) == len(numbers) else None


def interleaved(stems: Sequence[str]) -> tuple[str, str] | None:
    """Find frames that are channels or slices of one time point: ``t000_c0`` and ``t000_c1``.

    Returns:
        The names of two files of one time point, if most time points have several; otherwise None.
    """
    tokens = [list(_CHANNEL.finditer(name)) for name in stems]
    for k in (0, -1):  # names may have a slice and a channel
        times: dict[tuple[str, str], list[str]] = {}
        for name, matches in zip(stems, tokens, strict=True):
            if not matches:
                return None
            rest = name[: matches[k].start()], name[matches[k].end() :]
            times.setdefault(rest, []).append(name)
        several = [names for names in times.values() if len(names) > 1]
        if len(times) > 1 and 2 * len(several) > len(times):
            first, second = sorted(several[0])[:2]
            return first, second
    return None


def first_number(videos: Iterable[tuple[Collection[int], int]]) -> int | None:
    """Return the number that the masks of a dataset give to the first frame.

    Args:
        videos: the numbers in the names of the masks of each video, and its number of frames.

    Returns:
        0 or 1; None if the numbers of all videos fit both.
    """
    videos = list(videos)
    if any(0 in numbers for numbers, _ in videos):
        return 0
    return 1 if any(count in numbers for numbers, count in videos) else None


def has_two_orders(stems: Sequence[str]) -> bool:
    """Return whether the order of names depends on whether a point in them is a decimal point."""
    numbers = frame_numbers(stems)
    if numbers is None or not any("." in name or "," in name for name in stems):
        return False
    by_value = [name for _, name in sorted(zip(numbers, stems, strict=True))]
    return min(numbers) >= 0 and by_value != sorted(stems, key=natural_key)


def sort_files(files: list[str], folder: str | Path) -> list[str]:
    """Sort file names by their stems, with numbers compared by value.

    Args:
        files: names of files in one folder.
        folder: the folder, for the error message.

    Raises:
        DataError: two files differ only in their extension.
    """
    stems = [same_form(stem(name)) for name in files]
    if len(set(stems)) < len(stems):
        duplicate = Counter(stems).most_common(1)[0][0]
        raise DataError(
            f"{folder}: several frames have the name {duplicate!r} and differ only in their "
            "extension",
            hint="keep one of them",
        )
    # Zero-padded numbers of equal length sort correctly as strings, which is much faster.
    if len({len(s) for s in stems}) < 2 and all(s.isdecimal() for s in stems):
        return sorted(files, key=stem)
    if (numbers := frame_numbers(stems)) is not None:
        return [name for _, name in sorted(zip(numbers, files, strict=True))]
    return sorted(files, key=lambda name: natural_key(stem(name)))


def read_split(split: str, root: Path, videos: Collection[str]) -> list[str]:
    """Read the names of the videos that a split lists, without duplicates and in its order.

    Args:
        split: a text file, or its name under ``root/ImageSets`` without ``.txt``.
        root: the folder of the dataset.
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
            + (", ".join(p.with_suffix("").as_posix() for p in lists) or "none")
            + "; relative paths start at the current directory",
        )
    hint = "give a UTF-8 text file with one video name per line"
    lines = read_text(path, hint=hint).splitlines()
    existing = {same_form(name): name for name in videos}
    names = dict.fromkeys(_video_of_line(line, existing) for line in lines if line.strip())
    if not names:
        raise DataError(f"{path} lists no videos", hint="write one video name per line")
    missing = [name for name in names if same_form(name) not in existing]
    if missing:
        raise DataError(
            f"{path} lists {len(missing)} videos that do not exist in {root}, such as "
            f"{missing[0]!r}",
            hint=suggest(missing[0], videos),
        )
    return list(names)


def _video_of_line(line: str, videos: Mapping[str, str]) -> str:
    line = line.strip()
    if (name := videos.get(same_form(line))) is not None:
        return name
    if "/" not in line:
        return line
    first = Path(line.split()[0])  # DAVIS 2016: /JPEGImages/480p/bear/00000.jpg /Annotations/...
    return first.parent.name if first.suffix.lower() in FRAME_ENDINGS else first.name
