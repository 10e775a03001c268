"""Masks that somebody corrected, kept beside a data set and read in place of its own.

``corrections.jsonl`` is only ever appended to. A line is one frame of one video with the masks of
all its objects::

    {"version": 1, "video": "bear", "frame_index": 12, "size": [480, 854],
     "objects": [{"id": 1, "counts": "…"}], "made": "2026-01-31T12:00:00+00:00"}

``counts`` are COCO's compressed run lengths. Of several lines about a frame the last one counts; an
object that it does not list is absent there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
from loguru import logger

from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.data.sources.base import DerivedSource, ObjectId, SelectedVideos, VideoSource
from sam2kit.data.sources.frame_folders import image_size
from sam2kit.utils.errors import DataError

FILE_NAME = "corrections.jsonl"


class CorrectedObject(msgspec.Struct):
    """An object on a corrected frame; ``counts`` are COCO's compressed run lengths."""

    id: int | str
    counts: str


class Correction(msgspec.Struct):
    """A line of the file."""

    version: Literal[1]
    video: str
    frame_index: int
    size: tuple[int, int]
    objects: list[CorrectedObject]
    made: str = ""


def append_correction(
    path: str | Path,
    video: str,
    frame: int,
    masks: Mapping[ObjectId, np.ndarray],
    size: tuple[int, int],
) -> None:
    """Append the masks of one frame; nothing that the file holds is changed.

    Args:
        frame: its number in the video, from 0.
        masks: ``[H,W]`` bool by object, at the size of the video's frames; those left out are
            absent, and an empty mask says the same.
        size: H and W.

    Raises:
        DataError: nothing can be written there.
        ValueError: a mask of another size.
    """
    if wrong := {k: m.shape for k, m in masks.items() if m.shape != tuple(size)}:
        raise ValueError(f"masks {wrong} do not have the frame's size {size}")
    objects = [CorrectedObject(o, encode_mask(m)["counts"]) for o, m in masks.items() if m.any()]
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = Correction(1, video, frame, (size[0], size[1]), objects, made)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(msgspec.to_builtins(line)) + "\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); name another") from error


class CorrectedSource(DerivedSource):
    """A source whose masks are those of a file of corrections where it has any.

    Of a source without masks the other frames stay as unannotated as they were.

    Args:
        source: the videos as they are.
        path: ``corrections.jsonl``; what it says of other videos is left aside.

    Attributes:
        corrected: how many frames of these videos are corrected.

    Raises:
        DataError: the file is missing, or a line cannot be read or names a frame that its video
            does not have; on reading, masks of another size than their frame.
    """

    def __init__(self, source: VideoSource, path: str | Path) -> None:
        self.source, self.path, self.names = source, Path(path), source.names
        frames = {name: source.num_frames(i) for i, name in enumerate(source.names)}
        self._lines: dict[tuple[str, int], tuple[str, Correction]] = {}
        for where, line in _read(self.path):
            video, frame = line.video, line.frame_index
            if video not in frames:
                continue
            if not 0 <= frame < frames[video]:
                raise DataError(
                    f"{where}: field 'frame_index' is {frame}, but {video!r} has the frames 0 to "
                    f"{frames[video] - 1}; remove the line"
                )
            self._lines[video, frame] = where, line
        self.corrected = len(self._lines)
        self.has_masks = source.has_masks or self.corrected > 0

    def videos(self) -> set[str]:
        """The names of those with a corrected frame."""
        return {video for video, _ in self._lines}

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, i

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if (correction := self._lines.get((self.name(i), t))) is None:
            return self.source.read_masks(i, t)
        where, line = correction
        picture = self.source.frame_path(i, t)
        if picture is not None and image_size(picture) != line.size:
            raise DataError(
                f"{where}: field 'size' is {list(line.size)}, but {picture} is of "
                f"{list(image_size(picture))}; remove the line"
            )
        try:
            return {
                entry.id: decode_mask({"size": line.size, "counts": entry.counts})
                for entry in line.objects
            }
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{where}: field 'objects' cannot be read ({error}); remove the line"
            ) from None

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        return None if (self.name(i), t) in self._lines else self.source.read_void(i, t)

    def mask_paths(self, i: int, t: int) -> list[Path]:
        return [] if (self.name(i), t) in self._lines else self.source.mask_paths(i, t)

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return self.source.index_in_epoch(i, epoch)


def with_corrections(source: VideoSource, path: str | Path) -> VideoSource:
    """``source`` as ``dataset.corrections`` asks for it.

    Of a source without masks only the corrected videos are left, if there are any.

    Raises:
        DataError: as :class:`CorrectedSource`.
    """
    corrected = CorrectedSource(source, path)
    videos = corrected.videos()
    logger.info(
        "{}: corrected masks of {} frames of {} of {} videos",
        *(path, corrected.corrected, len(videos), len(source)),
    )
    if source.has_masks or not videos:
        return corrected
    logger.warning(
        "{} of {} videos have no masks but corrected ones; the others are left out",
        *(len(videos), len(source)),
    )
    return SelectedVideos(corrected, [i for i, n in enumerate(source.names) if n in videos])


def _read(path: Path) -> Iterator[tuple[str, Correction]]:
    """Yield the lines, each with its file and number."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: no readable file of corrections ({error}); the prompt debugger writes it"
        ) from None
    for number, row in enumerate(text.splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            yield where, msgspec.convert(json.loads(row), Correction)
        except ValueError as error:
            raise DataError(f"{where} is no correction of version 1 ({error}); remove it") from None
