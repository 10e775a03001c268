"""Define and read the output directory of ``sam2kit track``.

::

    masks/VIDEO/FRAME.png     masks of all videos
    masks.json                masks of all videos in COCO format
    track.json, objects.csv, overlay.mp4, overlay.gif      if there is only one video
    videos/VIDEO/             these files and masks.json of each further video
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np
from loguru import logger

from sam2kit.data.build import open_source
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.mask_files import OBJECTS_FILE
from sam2kit.data.training_set import AcceptedFrame
from sam2kit.data.writers import select_video, write_coco
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import MAX_MASKS_BYTES, check_types, damage_is, read_json
from sam2kit.utils.text import visible_text

RECORD, MASKS_JSON, VIDEOS = "track.json", "masks.json", "videos"
PROVENANCE = {"mask": "painted", "box": "box", "point": "click"}
TRACK_AGAIN = "track the video again, with --overwrite"


class _Prompted(TypedDict):
    object_id: int | str
    frame_index: int
    kind: Literal["mask", "box", "point"]


class _OldRecord(TypedDict):
    video: str


class _Record(_OldRecord, total=False):
    """The fields of ``track.json`` that are read; its first version has only some of them."""

    name: str
    video_name: str
    finished: bool
    checkpoint: str
    digest: str
    prompted: list[_Prompted]


class _Masks(TypedDict):
    """The fields of ``masks.json`` that are read."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


@dataclass
class TrackRecord:
    """The record of one video in an output directory.

    Attributes:
        root: the output directory.
        folder: the directory of the files that belong to this video only.
        content: the content of its ``track.json``.
    """

    root: Path
    folder: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the video, unique in the output directory."""
        return self.content.get("name") or Path(self.content["video"]).stem

    @property
    def finished(self) -> bool:
        """Whether the whole video was tracked."""
        # Earlier versions wrote the file only after tracking had finished.
        return bool(self.content.get("finished", True))

    @property
    def masks(self) -> Path:
        """The directory of the PNG masks."""
        return self.root / "masks" / mask_folder(self.name)

    def save(self, **changes: Any) -> None:
        """Change the content and write the file."""
        self.content |= changes
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / RECORD, json.dumps(self.content, indent=1))

    def clear_masks(self, frame_names: list[str]) -> None:
        """Delete the masks of unfinished or replaced results."""
        for name in [*(f"{frame}.png" for frame in frame_names), OBJECTS_FILE]:
            (self.masks / name).unlink(missing_ok=True)

    def open_video(self, videos: VideoSource | None = None) -> tuple[VideoSource, int]:
        """Open the tracked video.

        Args:
            videos: the source that contains it. If None (default), the path in ``track.json`` is
                opened.

        Raises:
            DataError: the video is missing.
        """
        name = self.content.get("video_name", self.name)
        path = Path(self.content["video"])
        if videos is None and not path.exists():
            raise DataError(
                f"video {visible_text(self.name)!r} was tracked from {path}, which does not exist",
                hint="move it back, or pass the directory of the videos with --videos",
            )
        source = open_source(path) if videos is None else videos
        return find_video(source, name)

    def frames(self, every: int = 1) -> Iterator[AcceptedFrame]:
        """Yield the tracked masks of every N-th frame, starting at the first prompt.

        Raises:
            DataError: ``masks.json`` is missing or damaged.
        """
        path = self.folder / MASKS_JSON
        prompts: dict[int, dict[ObjectId, str]] = {}
        for entry in self.content.get("prompted", ()):
            made = PROVENANCE[entry["kind"]]
            prompts.setdefault(entry["frame_index"], {})[entry["object_id"]] = made
        first = min(prompts, default=0)
        content = read_masks(path)
        with damage_is(DataError, path, TRACK_AGAIN):
            rows: dict[int, list[dict[str, Any]]] = {}
            for row in content["annotations"]:
                rows.setdefault(row["image_id"], []).append(row)
            for image in content["images"]:
                t = image["order_in_video"]
                if image["video_id"] != self.name or t < first or (t - first) % every:
                    continue
                masks: dict[ObjectId, np.ndarray] = {
                    row["track_id"]: decode_mask(row["segmentation"])
                    for row in rows.get(image["id"], ())
                }
                provenance = {o: prompts.get(t, {}).get(o, "propagated") for o in masks}
                yield AcceptedFrame(t, masks, provenance, self.content.get("checkpoint"))


def find_video(source: VideoSource, name: str) -> tuple[VideoSource, int]:
    """Find a video by name, and return its source and index.

    Raises:
        DataError: there is no video of this name.
    """
    if len(source) == 1:
        return source, 0
    if name not in source.names:
        raise DataError(
            f"no video {visible_text(name)!r} among {len(source)} videos, such as "
            f"{visible_text(source.names[0])!r}",
            hint="pass the directory that contains it with --videos",
        )
    return source, source.names.index(name)


def mask_folder(name: str) -> Path:
    """Return the directory of a video's masks, relative to ``masks``.

    A name with slashes (``monday/clip``) becomes nested directories, as in datasets.
    """
    parts = name.split("/")
    is_clean = all(part and file_name(part) == part for part in parts)
    return Path(*parts) if is_clean else Path(file_name(name))


def read_records(root: Path) -> list[TrackRecord]:
    """Read the records of all videos in an output directory, or nothing from other directories.

    Raises:
        DataError: a record is damaged.
    """
    records = []
    for path in [root / RECORD, *sorted(root.glob(f"{VIDEOS}/*/{RECORD}"))]:
        if not path.is_file():
            continue
        hint = "delete this file, or choose another directory"
        content = read_json(path, hint=hint, non_finite=True)
        check_types(content, _Record, path, hint)
        records.append(TrackRecord(root, path.parent, content))
    return records


def read_masks(path: Path) -> dict[str, Any]:
    """Read ``masks.json``, the masks of a video in COCO format.

    Raises:
        DataError: the file is missing, damaged or too large.
    """
    try:
        content = read_json(path, hint=TRACK_AGAIN, max_bytes=MAX_MASKS_BYTES, non_finite=True)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint=TRACK_AGAIN) from None
    check_types(content, _Masks, path, TRACK_AGAIN)
    return cast("dict[str, Any]", content)


def write_combined(root: Path) -> None:
    """Write a ``masks.json`` for all videos if there is more than one."""
    records = read_records(root)
    if all(record.folder == root for record in records):
        return

    def parts() -> Iterator[dict[str, Any]]:
        for record in records:
            path = record.folder / MASKS_JSON
            if not path.is_file():
                logger.warning("{}: {} has no masks yet", root, visible_text(record.name))
                continue
            with damage_is(DataError, path, TRACK_AGAIN):
                # The top-level file may already be a combined one.
                part = select_video(read_masks(path), record.name)
            yield part

    write_coco(root / MASKS_JSON, parts())
