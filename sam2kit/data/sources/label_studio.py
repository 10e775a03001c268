"""Read Label Studio's JSON export of video and image tasks.

Format: https://labelstud.io/guide/export#Label-Studio-JSON-format-of-annotated-tasks,
https://labelstud.io/tags/brushlabels and https://labelstud.io/tags/videorectangle. What these pages
leave open is taken from https://github.com/HumanSignal/label-studio-sdk: the run lengths of a brush
(``converter/brush.py``: thi.ng's rle-pack over red, green, blue and alpha, of which alpha is the
mask), and that ``enabled`` is false on the last key frame of a span.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from loguru import logger

from sam2kit.data.sources.base import ObjectId, Remark
from sam2kit.data.sources.coco import list_files
from sam2kit.data.sources.dropped import IGNORED
from sam2kit.data.sources.frame_names import group_to_videos
from sam2kit.data.sources.listing import FRAME_ENDINGS, VIDEO_ENDINGS, list_folder
from sam2kit.data.sources.shapes import (
    AnnotatedVideo,
    Patch,
    Polygon,
    Problems,
    Shape,
    ShapeDataset,
    box_corners,
    ellipse_corners,
    note_box,
)
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MAX_FRAMES, MAX_PIXELS, read_json
from sam2kit.utils.text import plural

_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-")  # that the server adds to the names of uploads
_WITHOUT_MASKS = (
    "choices",
    "rating",
    "textarea",
    "relation",
    "number",
    "taxonomy",
    "timelinelabels",
)


class LabelStudioDataset(ShapeDataset):
    """Read an export in the format "JSON", with the media files in a folder.

    A task with ``data.video`` is a video: its regions of type ``videorectangle`` are objects, named
    by the region's id. A task with ``data.image`` is one frame;
    :func:`~sam2kit.data.sources.frame_names.group_frames` groups the frames into videos by their
    file names. Media files are found under ``root`` by the name at the end of the task's address,
    with or without the prefix of eight characters that Label Studio adds on upload.

    *Masks* are brush strokes (``rle``), polygons, ellipses and rectangles (filled, with a warning).

    *Annotation.* An image task is annotated if it has an annotation, even one without regions. If
    it has several, the one marked as ground truth is used, otherwise the first not cancelled; the
    others are counted, logged and reported by the doctor. In videos, frames on which all visible
    regions have a key frame are annotated; ``keyframes_only=False`` also uses boxes that are
    interpolated between key frames.

    *Objects* of images have no id: see :class:`~sam2kit.data.sources.shapes.ShapeDataset`.

    Args:
        root: the folder of the media files, in which JSON files are searched too, or the JSON file.
        annotation_file: JSON file, list of files, or pattern. None (default): those in ``root``.
        split, identity: as in :class:`~sam2kit.data.sources.shapes.ShapeDataset`.
        keyframes_only: if False, interpolated boxes are used as ground truth.
        strict: True raises an error for regions and tasks that cannot be used.

    Raises:
        DataError: no JSON file, an invalid one, or no usable region.
    """

    def __init__(
        self,
        root: str | Path,
        annotation_file: str | Path | None = None,
        split: str | None = None,
        identity: str = "auto",
        keyframes_only: bool = True,
        strict: bool = False,
    ) -> None:
        root, problems = Path(root), Problems(strict)
        files = [root] if root.is_file() else _json_files(root, annotation_file)
        problems.read.update(files)
        media = _Media(root.parent if root.is_file() else root)
        videos: list[AnnotatedVideo] = []
        images: list[tuple[str, Path, dict[str, Any] | None, str]] = []
        further: dict[str, int] = {}  # task -> annotations that are not used
        for file in files:
            for n, task in enumerate(_tasks(file)):
                where = f"{file}: task {task.get('id', f'number {n}')}"
                kind, address = _checked(partial(_address, task, where), where)
                annotation, unused = _checked(partial(_annotation, task), where)
                if unused:
                    further[where] = unused
                path = _checked(partial(media.find, address), where)
                if path is None:
                    error = DataError(
                        f"{where}: {address!r} is not in {media.root}",
                        hint="set dataset.data_path to the folder of the media files",
                    )
                    problems.reject("tasks without a file", error, where, "frames")
                    continue
                if kind == "image":
                    images.append((address, path, annotation, where))
                else:
                    parse = partial(_video, path, annotation, where, keyframes_only, problems)
                    videos.append(_checked(parse, where))
        videos += _image_videos(images, media.root, problems)
        self._further = _further_annotations(further)
        if self._further is not None:
            logger.warning("{}: {}", root, self._further.message)
        super().__init__(root, videos, problems, split, identity)

    @property
    def remarks(self) -> list[Remark]:
        return [*super().remarks, *([self._further] if self._further else [])]


def is_label_studio(content: Any) -> bool:
    """Return whether the content of a JSON file is an export of tasks."""
    return isinstance(content, list) and all(
        isinstance(task, dict) and isinstance(task.get("data"), dict) and "annotations" in task
        for task in content
    )


def _json_files(root: Path, annotation_file: str | Path | None) -> list[Path]:
    if annotation_file is not None:
        return list_files(annotation_file)
    files = [root / name for name in sorted(list_folder(root, (".json",)).files)]
    if not files:
        raise DataError(
            f"{root} holds no JSON file", hint="export the project as JSON, into this folder"
        )
    return files


def _tasks(file: Path) -> list[dict[str, Any]]:
    try:
        content = read_json(file, hint="export the project again as JSON")
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist", hint="check dataset.annotation_file") from error
    if not is_label_studio(content):
        raise DataError(
            f"{file} is not a list of Label Studio tasks with 'data' and 'annotations'",
            hint="export the project in the format JSON, not JSON_MIN",
        )
    return content


def _address(task: dict[str, Any], where: str) -> tuple[str, str]:
    """Return whether a task is a video or an image, and the address of its media file."""
    for key, value in task["data"].items():
        if isinstance(value, str):
            name = _file_of(value).lower()
            if name.endswith(VIDEO_ENDINGS):
                return "video", value
            if name.endswith(FRAME_ENDINGS) or key == "image":
                return "image", value
    raise DataError(f"{where} has neither a video nor an image", hint="export such tasks only")


def _file_of(address: str) -> str:
    """Return the path of a media file: ``/data/local-files/?d=a/b.jpg`` is ``a/b.jpg``."""
    parts = urlsplit(address)
    return unquote(parse_qs(parts.query).get("d", [parts.path])[0])


class _Media:
    """Find media files under a folder by the ends of their addresses."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Maps the path of each file, and all ends of it, to the file; None if two files share one.
        self._files: dict[str, Path | None] = {}
        endings = (*FRAME_ENDINGS, *VIDEO_ENDINGS)
        for path in sorted(root.rglob("*")):
            if path.suffix.lower() not in endings or path.name.startswith("."):
                continue
            parts = path.relative_to(root).parts
            for k in range(len(parts)):
                end = "/".join(parts[k:])
                self._files[end] = None if end in self._files else path

    def find(self, address: str) -> Path | None:
        """Return the file, trying the address with ever fewer folders, then no upload prefix."""
        parts = [p for p in _file_of(address).replace("\\", "/").split("/") if p not in ("", "..")]
        candidates = ["/".join(parts[k:]) for k in range(len(parts))]
        if parts and _UPLOAD_PREFIX.match(parts[-1]):
            candidates.append(parts[-1][9:])
        return next((path for c in candidates if (path := self._files.get(c)) is not None), None)


def _annotation(task: dict[str, Any]) -> tuple[dict[str, Any] | None, int]:
    """Return the annotation to use, and the number of others that were not cancelled.

    It is the one that is marked as ground truth, else the first.
    """
    rows = [
        row
        for row in task["annotations"] or []
        if isinstance(row, dict) and not row.get("was_cancelled")
    ]
    used = next((row for row in rows if row.get("ground_truth")), rows[0] if rows else None)
    return used, max(len(rows) - 1, 0)


def _further_annotations(further: dict[str, int]) -> Remark | None:
    """Make the remark about tasks with several annotations, of which one is used."""
    if not further:
        return None
    where = next(iter(further))
    return Remark(
        IGNORED,
        where,
        f"{plural(sum(further.values()), 'further annotation')} of {plural(len(further), 'task')} "
        "not used, because the task has several; the one marked as ground truth is used, "
        f"else the first. First such task: {where}. Star the right one in Label Studio and "
        "export again",
    )


def _checked(parse: Any, where: str) -> Any:
    """Call a parser, and turn errors of malformed fields into a DataError."""
    try:
        return parse()
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{where} cannot be read: {type(error).__name__} {error}",
            hint="export the project again as JSON",
        ) from error


def _regions(annotation: dict[str, Any] | None) -> list[dict[str, Any]]:
    regions = (annotation or {}).get("result") or []
    return [r for r in regions if r.get("type") not in _WITHOUT_MASKS]


def _label(value: dict[str, Any]) -> str:
    """Return the first label of a region, whatever control tag it was drawn with."""
    for key, labels in value.items():
        if key.endswith("labels") and isinstance(labels, list) and labels:
            return str(labels[0])
    return "object"


# --- videos -------------------------------------------------------------------------------------


def _video(
    path: Path,
    annotation: dict[str, Any] | None,
    where: str,
    keyframes_only: bool,
    problems: Problems,
) -> AnnotatedVideo:
    video = AnnotatedVideo(path.stem, path)
    count = VideoFile(path).num_frames(0)
    interpolated: set[int] = set()
    for region in _regions(annotation):
        region_where = f"{where}, region {region.get('id')}"
        if region.get("type") != "videorectangle":
            error = DataError(
                f"{region_where} is of type {region.get('type')!r}", hint="draw boxes"
            )
            problems.reject("regions that are no masks", error, region_where)
            continue
        label, object_id = _label(region["value"]), str(region["id"])
        boxes = _boxes(region["value"]["sequence"], count)
        for t, (box, is_key) in boxes.items():
            if not 0 <= t < count:
                error = DataError(
                    f"{region_where}: frame {t + 1} of {count}", hint="use the annotated video"
                )
                problems.reject("boxes on missing frames", error, region_where)
                continue
            x, y, width, height, rotation = box
            corners = box_corners(x, y, x + width, y + height) / 100
            corners = _turned(corners, (x / 100, y / 100), rotation, region)
            shape = Polygon(
                corners, label, f"{region_where}, frame {t + 1}", object_id, relative=True
            )
            video.shapes[t].append(shape)
            video.annotated.add(t)
            if is_key:
                note_box(problems, shape.where)
            else:
                interpolated.add(t)
    if keyframes_only:
        video.annotated -= interpolated
    return video


def _boxes(sequence: list[dict[str, Any]], count: int) -> dict[int, tuple[np.ndarray, bool]]:
    """Return x, y, width, height (in percent) and rotation by frame, and whether it is a key frame.

    The first frame is 1 in the file. Between two key frames a box is interpolated, unless the first
    one ends a span (``enabled`` is false); the last box stays until the end of the video.
    """
    keys = sorted(sequence, key=lambda key: int(key["frame"]))
    boxes: dict[int, tuple[np.ndarray, bool]] = {}
    for n, key in enumerate(keys):
        t, box = int(key["frame"]) - 1, _box(key)
        boxes[t] = box, True
        if not key.get("enabled", True):
            continue
        is_last = n + 1 == len(keys)
        end = count if is_last else int(keys[n + 1]["frame"]) - 1
        following = box if is_last else _box(keys[n + 1])
        for between in range(max(t + 1, 0), min(end, count, MAX_FRAMES)):
            share = (between - t) / (end - t)
            boxes[between] = box + share * (following - box), False
    return boxes


def _box(key: dict[str, Any]) -> np.ndarray:
    values = [float(key[name]) for name in ("x", "y", "width", "height")]
    return np.array([*values, float(key.get("rotation") or 0)])


def _turned(
    corners: np.ndarray, origin: tuple[float, float], rotation: float, region: dict[str, Any]
) -> np.ndarray:
    """Turn corners, in shares of the frame, about the upper left corner, as Label Studio does."""
    if not rotation:
        return corners
    # Angles refer to pixels, so shares must be scaled to the aspect ratio of the frame first.
    scale = np.array([region.get("original_width") or 1, region.get("original_height") or 1], float)
    angle = np.radians(float(rotation))
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return ((corners - origin) * scale @ matrix) / scale + origin


# --- images -------------------------------------------------------------------------------------


def _image_videos(
    images: list[tuple[str, Path, dict[str, Any] | None, str]], root: Path, problems: Problems
) -> list[AnnotatedVideo]:
    """Group image tasks into videos, in the order of the numbers in the names of the files."""
    if not images:
        return []
    paths = [path.relative_to(root).as_posix() for _, path, _, _ in images]
    # Uploaded files begin with random characters, which say nothing about videos.
    names = [re.sub(rf"(^|/){_UPLOAD_PREFIX.pattern}", r"\1", name) for name in paths]
    result = []
    for name, members in group_to_videos(names, root).items():
        video = AnnotatedVideo(name, [images[n][1] for n in members])
        for t, n in enumerate(members):
            _, _, annotation, where = images[n]
            if annotation is None:
                continue
            video.annotated.add(t)
            for region in _checked(partial(_regions, annotation), where):
                region_where = f"{where}, region {region.get('id')}"
                try:
                    shape = _region_shape(region, region_where, problems)
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
                    error = DataError(
                        f"{region_where} cannot be read: {type(fault).__name__} {fault}",
                        hint="draw it again",
                    )
                    problems.reject("damaged regions", error, region_where)
                    continue
                if shape is not None:
                    video.shapes[t].append(shape)
        result.append(video)
    return result


def _region_shape(region: dict[str, Any], where: str, problems: Problems) -> Shape | None:
    """Convert a region of an image to a shape; return None, and count it, if it is not a mask."""
    value = region["value"]
    label, object_id = _label(value), None
    about: tuple[str, str, ObjectId | None] = (label, where, object_id)
    if "rle" in value:
        size = int(region["original_height"]), int(region["original_width"])
        if not (0 < size[0] and 0 < size[1] and size[0] * size[1] <= MAX_PIXELS):
            raise ValueError(f"a mask of {size[0]} rows and {size[1]} columns")
        data = np.array(value["rle"])
        if data.dtype.kind != "i" or data.ndim != 1 or ((data < 0) | (data > 255)).any():
            raise ValueError("its 'rle' must be a list of bytes")
        return Patch(partial(decode_brush, data.astype(np.uint8), size), 0, 0, *about, size=size)
    if "points" in value:
        corners = np.array(value["points"], np.float64) / 100
        if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
            raise ValueError("a polygon needs three points or more")
        return Polygon(corners, *about, relative=True)
    rotation = float(value.get("rotation") or 0)
    if "radiusX" in value:
        x, y, a, b = (float(value[k]) for k in ("x", "y", "radiusX", "radiusY"))
        corners = ellipse_corners(x, y, a, b) / 100
        return Polygon(
            _turned(corners, (x / 100, y / 100), rotation, region), *about, relative=True
        )
    if "width" in value:
        x, y, width, height = (float(value[k]) for k in ("x", "y", "width", "height"))
        corners = box_corners(x, y, x + width, y + height) / 100
        note_box(problems, where)
        return Polygon(
            _turned(corners, (x / 100, y / 100), rotation, region), *about, relative=True
        )
    error = DataError(f"{where} is of type {region.get('type')!r}, not a mask", hint="use a brush")
    problems.reject("regions that are no masks", error, where)
    return None


def decode_brush(data: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Decode the run lengths of a brush to ``[H,W]`` bool.

    A bit stream: 32 bits for the number of values, 5 for the bits per value less one, four times 4
    for the bits of a length less one. Then runs: a bit that says whether all values are equal, two
    that choose one of the four lengths, the length less one, and one value or all of them.

    Args:
        data: ``[N]`` uint8.
        size: rows and columns. There are four values per pixel; the last one is the mask.

    Raises:
        ValueError: the stream ends early, or has another number of values.
    """
    bits = "".join(map("{:08b}".format, data.tolist()))
    position = 0

    def read(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError("its run lengths end early")
        return int(bits[position - count : position], 2)

    number, width = read(32), read(5) + 1
    if number != 4 * size[0] * size[1]:
        raise ValueError(f"it has {number} values, not 4 for each of {size[0]} x {size[1]} pixels")
    widths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(number, bool)
    begin = 0
    while begin < number:
        is_run = read(1)
        end = begin + 1 + read(widths[read(2)])
        if end > number:
            raise ValueError("its run lengths exceed the frame")
        if is_run:
            values[begin:end] = read(width) > 0
        else:
            values[begin:end] = [read(width) > 0 for _ in range(end - begin)]
        begin = end
    return values[3::4].reshape(size)
