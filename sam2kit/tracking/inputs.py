"""Open the videos to track, and create prompts from boxes, points and label images."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from sam2kit.config.schema import STACK_KEYS, DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.detection import detect_layout
from sam2kit.data.label_image import read_label_image
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.listing import list_folder, natural_key, stem
from sam2kit.data.sources.video_decoder import open_video
from sam2kit.data.sources.video_files import find_videos
from sam2kit.prompts.io import SCHEMA_VERSION, check_document, read_document
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

LABEL_ENDINGS = (".png", ".tif", ".tiff")


@dataclass(frozen=True)
class VideoInput:
    """A video to track.

    Attributes:
        path: path from the user: the video, or the dataset that contains it.
        source: source of the video.
        i: index in the source.
        base_name: name relative to ``path``, such as ``clip`` or ``cam1/clip``.
        name: name that is unique among the videos of a call.
    """

    path: Path
    source: VideoSource
    i: int
    base_name: str
    name: str

    @property
    def source_name(self) -> str:
        """The name of the video in its source."""
        return self.source.name(self.i)

    @property
    def num_frames(self) -> int:
        """The number of frames."""
        return self.source.num_frames(self.i)

    @property
    def fps(self) -> float:
        """Frames per second; 10 for frames that are image files."""
        return self.source.frame_rate(self.i)

    def read_frame(self, t: int) -> np.ndarray:
        """Read frame ``t`` as ``[H,W,3]`` uint8 RGB."""
        return self.source.read_frame(self.i, t)


def open_inputs(
    paths: Sequence[str | Path], settings: DatasetConfig | None = None
) -> list[VideoInput]:
    """Open video files, directories of frames, and directories or datasets with several videos.

    A video has the name of its file or directory. If names are not unique, parent directories are
    prepended, as in ``monday/clip`` and ``friday/clip``.

    Args:
        paths: the paths to open.
        settings: its keys :data:`~sam2kit.config.schema.STACK_KEYS` control how stacks and volumes
            are converted to frames. The type is detected and may differ from the training videos.

    Raises:
        DataError: a path cannot be opened, or a video is listed twice.
    """
    if settings is not None:
        settings = DatasetConfig(**{key: getattr(settings, key) for key in STACK_KEYS})
    videos: list[tuple[Path, VideoSource, int, str]] = []
    for path in map(Path, paths):
        videos += _open(path, settings)
    base_names = [base_name for _, _, _, base_name in videos]
    locations = [_location(path, source, i) for path, source, i, _ in videos]
    if twice := [path for path, number in Counter(locations).items() if number > 1]:
        raise DataError(f"{twice[0]} is listed more than once", hint="list each video once")
    names = list(base_names)
    for k in range(1, max(len(path.parts) for path in locations)):
        duplicates = {name for name, number in Counter(names).items() if number > 1}
        for n, path in enumerate(locations):
            if names[n] in duplicates:
                names[n] = "/".join([*path.parts[1:-1][-k:], base_names[n]])
    return [VideoInput(*video, name) for video, name in zip(videos, names, strict=True)]


def _open(path: Path, settings: DatasetConfig | None) -> list[tuple[Path, VideoSource, int, str]]:
    layout = detect_layout(path)
    if layout.type == "files" and path.is_dir():  # open each file separately: masks are not needed
        return [(file, open_video(file), 0, name) for name, file in find_videos(path).items()]
    source = open_source(path, settings)
    return [(path, source, i, source.name(i)) for i in range(len(source))]


def _location(path: Path, source: VideoSource, i: int) -> Path:
    """Return a path that identifies a video."""
    return (source.video_path(i) or path / source.name(i)).resolve()


def prompts_from_file(
    path: str | Path, videos: Sequence[VideoInput]
) -> dict[str, tuple[dict[str, Any], str]]:
    """Read a prompt file and find the entries of each video.

    Returns:
        By name of each video with prompts, the content of the file and the video's name in it.
        Videos without prompts are logged.

    Raises:
        DataError: the file cannot be read, no video has prompts, or entries match several videos.
    """
    document = read_document(path)
    check_document(document, str(path), ())
    entries = [entry for entry in document["prompts"] if isinstance(entry, dict)]
    named = {name for entry in entries if isinstance(name := entry.get("video"), str)}
    result = {}
    for video in videos:
        keys = (video.name, video.base_name, video.source_name)
        key = next((key for key in keys if key in named), None)
        if key is None:
            continue
        same = [other.name for other in videos if key in (other.base_name, other.source_name)]
        if key != video.name and len(same) > 1:
            raise DataError(
                f"{path}: field 'video' {key!r} matches {len(same)} videos",
                hint=f"use {' or '.join(same)}",
            )
        result[video.name] = document, key
    missing = [visible_text(video.name) for video in videos if video.name not in result]
    if not result:
        raise DataError(
            f"{path}: no prompt has 'video' {missing[0]!r}",
            hint="set the field 'video' of the prompts to this name",
        )
    if missing:
        logger.warning(
            "{}: skipping {} of {} videos without prompts: {}",
            *(path, len(missing), len(videos), ", ".join(missing[:5])),
        )
    return result


def prompts_from_flags(
    flags: Sequence[Mapping[str, Any]], video: VideoInput
) -> tuple[dict[str, Any], str]:
    """Create the content of a prompt file from boxes, points and masks on the command line.

    Args:
        flags: entries with ``kind``, ``object_id`` (if None, the next number, from 1),
            ``frame_index``, and ``box``, ``points`` with ``labels``, or ``file``. A file is a label
            image in which each value is an object (or a single object if ``object_id`` is set), or
            a directory with ``VIDEO.png`` or ``VIDEO/FRAME.png``, in which objects are prompted on
            the first frame in which they are visible.
        video: the video.

    Returns:
        The content, and the name of the video in it.

    Raises:
        DataError: a label image cannot be read, or does not match a frame of the video.
    """
    size = video.read_frame(0).shape[:2]
    used = {flag["object_id"] for flag in flags}
    numbers = (n for n in count(1) if n not in used)
    entries: list[dict[str, Any]] = []
    for flag in flags:
        if flag["kind"] != "mask":
            identity = next(numbers) if flag["object_id"] is None else flag["object_id"]
            entries.append({**flag, "object_id": identity})
            continue
        for t, file in _label_images(Path(flag["file"]), flag["frame_index"], video):
            masks: dict[Any, np.ndarray] = dict(read_label_image(file, size))
            if flag["object_id"] is not None:
                masks = {flag["object_id"]: np.any(list(masks.values()), axis=0)}
            elif list(masks) == [255]:  # a black-and-white image
                masks = {next(numbers): masks[255]}
            # In a directory, prompt an object on the first frame in which it is visible.
            prompted = {entry["object_id"] for entry in entries if entry["kind"] == "mask"}
            for identity, mask in masks.items():
                if identity not in prompted or not Path(flag["file"]).is_dir():
                    about = {"object_id": identity, "frame_index": t, "kind": "mask"}
                    entries.append(about | {"mask": encode_mask(mask)})
    entries = [{"video": video.name, **entry} for entry in entries]
    return {"version": SCHEMA_VERSION, "image_size": list(size), "prompts": entries}, video.name


def _label_images(path: Path, frame: int, video: VideoInput) -> Iterator[tuple[int, Path]]:
    """Yield the label images of a video with their frames."""
    if not path.is_dir():
        yield frame, path
        return
    for name in dict.fromkeys((video.name, video.base_name, video.source_name)):
        for ending in LABEL_ENDINGS:
            if (file := path / f"{name}{ending}").is_file():
                yield frame, file
                return
        if (path / name).is_dir():
            yield from _numbered(path / name, video)
            return
    raise DataError(
        f"{path} has no masks of video {video.source_name!r}",
        key="--mask",
        value=str(path),
        hint=f"add {video.source_name}.png, or a directory {video.source_name} with masks that "
        "have the names of the frames",
    )


def _numbered(folder: Path, video: VideoInput) -> Iterator[tuple[int, Path]]:
    frames = {video.source.frame_name(video.i, t): t for t in range(video.num_frames)}
    for file in sorted(list_folder(folder, LABEL_ENDINGS).files, key=natural_key):
        if stem(file) not in frames:
            raise DataError(
                f"{folder / file} does not match any frame of {video.path}",
                hint=f"give masks the names of the frames, such as {next(iter(frames))}",
            )
        yield frames[stem(file)], folder / file


def digest(*parts: Any) -> str:
    """Return a checksum of JSON-serializable values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
