"""The rows of a COCO JSON, of which nothing but what the kit uses becomes a Python object.

Segmentations stay text: a :class:`msgspec.Raw` is a view of the file in memory.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec import Raw, Struct

from sam2kit.utils.errors import DataError

TRACKS = ("track_id", "instance_id", "object_id")
_NULL = Raw(b"null")


class ImageRow(Struct, gc=False):
    id: Any = None
    video_id: Any = None
    order_in_video: Any = None
    file_name: str | None = None
    path: str | None = None
    height: float | None = None
    width: float | None = None
    annotated: Any = None
    is_keyframe: Any = None
    keyframe: Any = None
    is_det_keyframe: Any = None


class VideoRow(Struct, gc=False):
    id: Any = None
    file_names: list[str] | None = None
    length: int | None = None
    height: float | None = None
    width: float | None = None


class AnnotationRow(Struct, gc=False):
    id: Any = None
    image_id: Any = None
    video_id: Any = None
    category_id: Any = None
    track_id: Any = None
    instance_id: Any = None
    object_id: Any = None
    is_keyframe: Any = None
    keyframe: Any = None
    attributes: Any = None
    segmentation: Raw = _NULL
    segmentations: list[Raw] | None = None


class FrameRows(Struct):
    images: list[ImageRow] | None = None
    videos: list[VideoRow] | None = None


class AnnotationRows(Struct):
    annotations: list[AnnotationRow]


Content = TypeVar("Content", bound=Struct)


def read_rows(path: Path, kind: type[Content], key: str) -> tuple[Content, mmap.mmap | None]:
    """The file's content, and the file in memory if the content's Raw fields are parts of it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                try:
                    return msgspec.json.decode(text, type=kind), text
                except msgspec.ValidationError:
                    raise
                except msgspec.DecodeError:
                    pass  # Python's reader takes what JSON has not but files have: NaN, a BOM
            content = json.loads(file.read(), object_hook=_keep_raw)
            return msgspec.convert(content, kind), None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; check dataset.annotation_file") from error
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path} has no list {key!r} of objects as COCO has it ({error}); is it a COCO JSON?"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file: {error}; export it again") from error


def _keep_raw(row: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" in row:
        row["segmentation"] = Raw(json.dumps(row["segmentation"]).encode())
    if isinstance(row.get("segmentations"), list):
        row["segmentations"] = [Raw(json.dumps(s).encode()) for s in row["segmentations"]]
    return row


def named(path: Path, kind: str, row: ImageRow | VideoRow | AnnotationRow, n: int) -> str:
    """What to call a row in messages: its file, its kind, and its id or else its number."""
    return f"{path}: {kind} {f'number {n}' if row.id is None else repr(row.id)}"


def required(path: Path, kind: str, row: Any, n: int, *keys: str) -> None:
    """Raise DataError where a row lacks one of the keys."""
    for key in keys:
        if (value := getattr(row, key)) is None or (key == "segmentation" and is_null(value)):
            raise DataError(f"{named(path, kind, row, n)} has no {key!r}; every {kind} needs one")


def value_of(row: AnnotationRow, key: str) -> Any:
    """A field of an annotation, or of its ``attributes``, where CVAT puts what COCO has not."""
    value = getattr(row, key)
    if value is None and key in TRACKS and isinstance(row.attributes, dict):
        return row.attributes.get(key)
    return value


def between_keyframes(row: ImageRow | AnnotationRow) -> bool:
    """Whether a flag says that this is no key frame; there need be none."""
    if isinstance(row, ImageRow):
        return False in (row.is_keyframe, row.keyframe, row.is_det_keyframe)
    attributes = row.attributes
    if isinstance(attributes, dict) and attributes.get("keyframe") is not None:
        return not attributes["keyframe"]
    return False in (row.is_keyframe, row.keyframe)


def is_null(raw: Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes == 4 and view == b"null"


def places(raws: Sequence[Raw], text: mmap.mmap | None) -> tuple[np.ndarray, np.ndarray]:
    """``[N]`` int64 and int32: where each part begins in ``text`` and how long it is, in bytes.

    Parts follow each other as they do in the text. Without a text they stand end to end.
    """
    lengths = np.fromiter((memoryview(raw).nbytes for raw in raws), np.int32, len(raws))
    if text is None:
        return np.cumsum(lengths, dtype=np.int64) - lengths, lengths

    def found(at: int = 0) -> Iterator[int]:
        for raw, length in zip(raws, lengths.tolist(), strict=True):
            # The first such bytes from here on: if they are not the part itself, they are its like.
            at = text.find(raw, at)
            yield at
            at += length

    return np.fromiter(found(), np.int64, len(raws)), lengths
