"""Store corrected masks beside a dataset, and read them instead of its original masks.

``corrections.jsonl`` is append-only. A line describes one frame of one video with the masks of all
its objects::

    {"version": 1, "video": "bear", "frame_index": 12, "size": [480, 854],
     "objects": [{"id": 1, "counts": "…"}], "made": "2026-01-31T12:00:00+00:00"}

``counts`` are COCO's compressed run lengths. If several lines describe one frame, the last one
applies; an object that it does not list is absent there.
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

from sam2kit.data.pictures import image_size
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.data.sources.base import (
    DerivedSource,
    ObjectId,
    SelectedVideos,
    VideoSource,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import end_last_line, open_to_append
from sam2kit.utils.readers import MAX_DATA_BYTES, parse_json, read_text

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
    """Append the masks of one frame to a corrections file, which is created if it is missing.

    Args:
        path: the corrections file.
        video: name of the video.
        frame: index of the frame, from 0.
        masks: ``[H,W]`` bool per object, at the size of the video's frames. Objects that are
            missing here or have an empty mask are absent on the frame.
        size: H and W.

    Raises:
        DataError: the file cannot be written.
        ValueError: a mask has a different size.
    """
    if wrong := {k: m.shape for k, m in masks.items() if m.shape != tuple(size)}:
        raise ValueError(f"masks {wrong} do not have the frame's size {size}")
    objects = [CorrectedObject(o, encode_mask(m)["counts"]) for o, m in masks.items() if m.any()]
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    line = Correction(1, video, frame, (size[0], size[1]), objects, made)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        # A writer that was killed may have left half a line, to which this one would be appended.
        if removed := end_last_line(Path(path), _is_json):
            logger.warning("{}: removed a truncated last line: {}...", path, removed[:60])
        with open_to_append(path) as file:
            file.write(json.dumps(msgspec.to_builtins(line)) + "\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror})", hint="choose another path"
        ) from error


class CorrectedSource(DerivedSource):
    """Replace the masks of another source by corrected ones, on the frames that have them.

    The other frames of a source without masks stay unannotated.

    Args:
        source: the original videos.
        path: ``corrections.jsonl``; its lines about other videos are ignored.

    Attributes:
        corrected: number of corrected frames of these videos.

    Raises:
        DataError: the file is missing, or a line is invalid or names a frame that does not exist;
            on reading, corrected masks whose size differs from their frame.
    """

    def __init__(self, source: VideoSource, path: str | Path) -> None:
        self.source, self.path, self.names = source, Path(path), source.names
        frame_counts = {name: source.num_frames(i) for i, name in enumerate(source.names)}
        self._lines: dict[tuple[str, int], tuple[str, Correction]] = {}
        for where, line in _read(self.path):
            video, frame = line.video, line.frame_index
            if video not in frame_counts:
                continue
            if not 0 <= frame < frame_counts[video]:
                raise DataError(
                    where,
                    key="frame_index",
                    value=frame,
                    expected=f"from 0 to {frame_counts[video] - 1} (video {video!r})",
                    hint="remove the line",
                )
            self._lines[video, frame] = where, line  # a later line replaces an earlier one
        self.corrected = len(self._lines)
        self.has_masks = source.has_masks or self.corrected > 0

    def videos(self) -> set[str]:
        """Return the names of the videos that have a corrected frame."""
        return {video for video, _ in self._lines}

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, i

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if (correction := self._lines.get((self.name(i), t))) is None:
            return self.source.read_masks(i, t)
        where, line = correction
        image = self.source.frame_path(i, t)
        if image is not None and image_size(image) != line.size:
            raise DataError(
                where,
                key="size",
                value=list(line.size),
                expected=f"{list(image_size(image))}, the size of {image}",
                hint="remove the line",
            )
        try:
            return {
                entry.id: decode_mask({"size": line.size, "counts": entry.counts})
                for entry in line.objects
            }
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"{where}: field 'objects' cannot be read ({error})", hint="remove the line"
            ) from None

    def annotated_frames(self, i: int) -> Iterator[int]:
        corrected = {t for video, t in self._lines if video == self.name(i)}
        return iter(sorted(corrected | set(self.source.annotated_frames(i))))

    # A correction defines every pixel and replaces the mask files of its frame.
    def read_void(self, i: int, t: int) -> np.ndarray | None:
        return None if (self.name(i), t) in self._lines else self.source.read_void(i, t)

    def mask_paths(self, i: int, t: int) -> list[Path]:
        return [] if (self.name(i), t) in self._lines else self.source.mask_paths(i, t)

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return self.source.index_in_epoch(i, epoch)


def with_corrections(source: VideoSource, path: str | Path) -> VideoSource:
    """Apply the corrections file of ``dataset.corrections`` to a source.

    If the source has no masks, only the videos with corrected frames remain, if there are any.

    Raises:
        DataError: as :class:`CorrectedSource`.
    """
    corrected = CorrectedSource(source, path)
    videos = corrected.videos()
    logger.info(
        "{}: {} corrected frames in {} of {} videos",
        *(path, corrected.corrected, len(videos), len(source)),
    )
    if source.has_masks or not videos:
        return corrected
    # A video without any mask would be an error in training.
    logger.warning(
        "Using only {} of {} videos: the others have neither masks nor corrections",
        *(len(videos), len(source)),
    )
    return SelectedVideos(corrected, [i for i, n in enumerate(source.names) if n in videos])


def _read(path: Path) -> Iterator[tuple[str, Correction]]:
    """Yield the location of each line (file and line number) and its content."""
    try:
        text = read_text(path, max_bytes=MAX_DATA_BYTES)
    except (OSError, DataError) as error:
        raise DataError(
            f"{path} is not a readable corrections file ({error})",
            hint="use a file that the annotator wrote",
        ) from None
    text = _without_cut_line(text, path)
    for number, row in enumerate(text.splitlines(), 1):
        where = f"{path}: line {number}"
        try:
            yield where, msgspec.convert(parse_json(row, where), Correction)
        except (ValueError, DataError) as error:
            raise DataError(
                f"{where} is not a correction of version 1 ({error})", hint="remove the line"
            ) from None


def _without_cut_line(text: str, path: Path) -> str:
    """Drop a last line that a killed writer left incomplete."""
    complete, line_break, last = text.rpartition("\n")
    if not last or _is_json(last):
        return text
    logger.warning("{}: ignoring the truncated last line; append its frame again", path)
    return complete + line_break


def _is_json(text: str) -> bool:
    try:
        parse_json(text, "")
    except DataError:
        return False
    return True
