"""Group image files into videos by their names, for annotation files that do not name videos."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sam2kit.data.sources.listing import natural_key, stem
from sam2kit.utils.errors import DataError

# Roboflow's version of a file: frame-12_jpg.rf.0123456789abcdef0123456789abcdef.jpg.
_ROBOFLOW = re.compile(r"(?:_(?:jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9A-Za-z_-]+$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)[-_. ]*(\d+)")
MAX_DIGITS = 15  # of a frame number; longer ones are hashes, and float64 cannot order them


class FrameName(NamedTuple):
    """The video of an image file, and its frame number (0 for a name without a number)."""

    video: str
    number: int


def group_frames(paths: Sequence[str], default: str) -> list[FrameName]:
    """Derive the video and the frame number of image files from their paths.

    Files in one folder whose names differ only in a number at their end are the frames of one
    video, in the order of the numbers. A file without such a number is a video of one frame. The
    suffix that Roboflow appends (``_jpg.rf.HASH``) is ignored. A video is named after its folder
    (``a/b`` becomes ``a-b``) or, if the folder has several videos, also after what its file names
    have in common.

    Args:
        paths: the paths of the files, with slashes or backslashes.
        default: name of the folder of paths without a folder.

    Returns:
        The video and the number of each file, in the given order.
    """
    parts = [_split(path) for path in paths]
    prefixes: defaultdict[str, set[str]] = defaultdict(set)
    for folder, prefix, _ in parts:
        prefixes[folder].add(prefix)
    names = {}
    for folder, inside in prefixes.items():
        # A slash in a name would make it a path; results are written to a folder of this name.
        folder_name = folder.replace("/", "-")
        for prefix in inside:
            name = "-".join(part for part in (folder_name, prefix) if part)
            names[folder, prefix] = (folder_name if len(inside) == 1 else name) or default
    return [FrameName(names[folder, prefix], number) for folder, prefix, number in parts]


def _split(path: str) -> tuple[str, str, int]:
    """Return the folder, the name before the frame number, and the frame number of a file."""
    folder, _, name = path.replace("\\", "/").rpartition("/")
    base = _ROBOFLOW.sub("", stem(name))
    match = _NUMBERED.fullmatch(base)
    if match is None or len(match[2]) > MAX_DIGITS:
        return folder.strip("/"), base, 0
    return folder.strip("/"), match[1], int(match[2])


def frame_number(name: str) -> int | None:
    """Return the number at the end of a file name without extension, or None."""
    match = _NUMBERED.fullmatch(_ROBOFLOW.sub("", name))
    return int(match[2]) if match and len(match[2]) <= MAX_DIGITS else None


def repeated(frames: Iterable[FrameName]) -> list[tuple[FrameName, int]]:
    """Return the frames that occur several times, with their counts, in natural order."""
    counts = Counter(frames)
    twice = [(frame, count) for frame, count in counts.items() if count > 1]
    return sorted(twice, key=lambda item: (natural_key(item[0].video), item[0].number))


def group_to_videos(paths: Sequence[str], root: Path) -> dict[str, list[int]]:
    """Group image files into videos by :func:`group_frames`.

    Args:
        paths: the paths of the files, below ``root``.
        root: the dataset; a video without a folder gets its name.

    Returns:
        The indices of the files of each video, in the order of their frame numbers.

    Raises:
        DataError: two files have the same position in a video.
    """
    frames = group_frames(paths, root.resolve().stem)
    if twice := repeated(frames):
        (video, number), count = twice[0]
        raise DataError(
            f"{root}: {count} files are frame {number} of video {video!r}; folders and file names "
            "define the videos",
            hint="remove augmented copies, or put each video into a separate folder",
        )
    videos: defaultdict[str, list[int]] = defaultdict(list)
    for n, frame in enumerate(frames):
        videos[frame.video].append(n)
    return {
        video: sorted(members, key=lambda n: frames[n].number) for video, members in videos.items()
    }
