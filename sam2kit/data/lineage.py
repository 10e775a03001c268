"""Read and write the tracks of the Cell Tracking Challenge, which name the parents of cells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sam2kit.utils.errors import DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.readers import read_text
from sam2kit.utils.text import visible_text


class Track(NamedTuple):
    """One line of ``man_track.txt`` or ``res_track.txt``.

    Attributes:
        begin, end: first and last frame.
        parent: label of the parent; 0 if there is none.
    """

    begin: int
    end: int
    parent: int


def tracks_from(tracks: Mapping[int, Track], start: int) -> dict[int, Track]:
    """Count the frames of tracks from frame ``start``, the first one of a part of the video."""
    return {n: Track(t.begin - start, t.end - start, t.parent) for n, t in tracks.items()}


def read_tracks(path: Path) -> dict[int, Track]:
    """Read a file with one track per line: label, first frame, last frame, label of the parent.

    Raises:
        DataError: the file cannot be read, or a line is not four numbers.
    """
    try:
        lines = read_text(path, hint="export it again").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint="export it again") from None
    tracks: dict[int, Track] = {}
    for number, line in enumerate(lines, 1):
        if not (words := line.split()):
            continue
        try:
            label, begin, end, parent = map(int, words)
            if label < 1 or parent < 0 or not 0 <= begin <= end or label in tracks:
                raise ValueError
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {visible_text(line[:80])!r} is not a track",
                hint="write four numbers per line: label, first frame, last frame, and label "
                "of the parent or 0; each label needs one line",
            ) from error
        tracks[label] = Track(begin, end, parent)
    for label, track in tracks.items():
        if track.parent and track.parent not in tracks:
            raise DataError(
                f"{path}: the parent {track.parent} of track {label} is not in the file",
                hint="add its line, or write 0 as the parent",
            )
    return tracks


def write_tracks(path: Path, tracks: Mapping[int, Track]) -> None:
    """Write tracks in the format that :func:`read_tracks` reads."""
    write_text(path, "".join(f"{n} {t.begin} {t.end} {t.parent}\n" for n, t in tracks.items()))
