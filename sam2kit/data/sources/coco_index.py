"""Index the masks of a COCO JSON: their places in the file, as arrays; no mask is read before use.

A million annotations as Python objects would take gigabytes, in every loader process: a process
that looks at an object writes its count of references, and so gets a copy of the memory around it.
So msgspec decodes only the fields that the kit uses, and a segmentation stays text: a
:class:`msgspec.Raw` is a view of the file in memory.
"""

from __future__ import annotations

import io
import json
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec import Raw, Struct

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import natural_key
from sam2kit.utils.errors import DataError

TRACKS = ("track_id", "instance_id", "object_id")
_NULL = Raw(b"null")


class Row(Struct, gc=False):
    kind: ClassVar[str]
    id: Any = None


class ImageRow(Row, gc=False):
    kind = "image"
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


class VideoRow(Row, gc=False):
    kind = "video"
    file_names: list[str] | None = None
    length: int | None = None
    height: float | None = None
    width: float | None = None


class AnnotationRow(Row, gc=False):
    kind = "annotation"
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


class StoredMask(NamedTuple):
    """A mask as it stands in the file: its object, and the segmentation in COCO's form."""

    owner: ObjectId
    segmentation: Any
    where: str  # begins the message of an error


class CocoIndex:
    """The videos, frames and masks of one COCO JSON, all frames in one row, video after video.

    Args:
        file: the JSON: ``images`` with ``video_id`` and ``order_in_video``, or ``videos`` with
            ``file_names`` whose annotations have ``segmentations``.
        identity: auto, track or category; :class:`sam2kit.data.sources.coco.COCODataset` explains
            them.
        keyframes_only: leave out masks on frames that are flagged as no key frames.

    Attributes:
        names: the videos' ids as texts, in natural order.
        first: ``[V+1]``: the frames of video v are numbers ``first[v]`` to ``first[v + 1] - 1``.
        order: ``[F]`` float64: ``order_in_video``, or the place in ``file_names``.
        sizes: ``[F,2]`` int32: rows and columns where the JSON states them, else 0.
        annotated: ``[F]`` bool: whether somebody looked for objects.
        between_keyframes: how many frames ``keyframes_only`` left without masks.

    Raises:
        DataError: as COCODataset.
    """

    def __init__(self, file: Path, identity: str = "auto", keyframes_only: bool = True) -> None:
        self.file = file
        content = _read_rows(file, FrameRows, "images")[0]
        self._stamp = self._state()
        if content.images is None and content.videos is None:
            raise DataError(f"{file} has no list 'images' of objects; is it a COCO JSON?")
        self._by_image = bool(content.images) or not content.videos
        if self._by_image:
            position = self._place_images(content.images or [])
        else:
            position = self._place_videos(content.videos or [])
        del content  # before the annotations come, which may be as large
        rows, text = _read_rows(file, AnnotationRows, "annotations")
        find = self._masks_of_images if self._by_image else self._masks_of_tracks
        frame_list, number_list, raws = array("i"), array("i"), []
        for f, n, raw in find(rows.annotations, position):
            frame_list.append(f)
            number_list.append(n)
            raws.append(raw)
        frames, numbers = np.array(frame_list, np.int32), np.array(number_list, np.int32)
        if not keyframes_only:
            self._flagged[:] = False
        self.annotated &= ~self._flagged
        self.between_keyframes = int(self._flagged.sum())
        codes: dict[ObjectId, int] = {}
        objects = self._identify(rows.annotations, identity)
        owner = np.fromiter((codes.setdefault(o, len(codes)) for o in objects), np.int32)
        self._owners = list(codes)
        ids = _texts(rows.annotations)
        del rows, position  # what follows needs as much memory
        kept = np.argsort(frames, kind="stable")
        kept = kept[self.annotated[frames[kept]]]
        self._start = np.searchsorted(frames[kept], np.arange(len(self.order) + 1))
        offset, length = _places(raws, text)
        self._offset, self._length = offset[kept], length[kept]
        self._text = b"".join(map(bytes, raws)) if text is None else None
        self._owner, self._id = owner[numbers[kept]], ids[numbers[kept]]

    def _name(self, row: Row, n: int) -> str:
        """Name a row in messages: its file, its kind, and its id or else its number."""
        return f"{self.file}: {row.kind} {f'number {n}' if row.id is None else repr(row.id)}"

    def _require(self, row: Row, n: int, *keys: str) -> None:
        for key in keys:
            value = getattr(row, key)
            if value is None or (key == "segmentation" and _is_null(value)):
                raise DataError(f"{self._name(row, n)} has no {key!r}; every {row.kind} needs one")

    def _positions(self, rows: Sequence[Row]) -> dict[str, int]:
        """Number the rows by their ids, which must differ."""
        position = {str(row.id): n for n, row in enumerate(rows)}
        for n, row in enumerate(rows):
            if position[str(row.id)] != n:
                raise DataError(
                    f"{self._name(row, n)}: another {row.kind} has the same 'id'; ids must be "
                    "unique"
                )
        return position

    def _place_images(self, images: list[ImageRow]) -> dict[str, int]:
        """Frame numbers by image id."""
        if not images:
            raise DataError(f"{self.file}: 'images' is empty; there is nothing to train on")
        for n, image in enumerate(images):
            self._require(image, n, "id", "video_id", "order_in_video")
            place = image.order_in_video
            if type(place) not in (int, float) or not abs(place) < 2**53:
                raise DataError(
                    f"{self._name(image, n)}: 'order_in_video' is {place!r}; it must be a number"
                )
        videos = [str(image.video_id) for image in images]
        self.names = sorted(set(videos), key=natural_key)
        rank = {name: v for v, name in enumerate(self.names)}
        video = np.array([rank[name] for name in videos])
        order = np.array([image.order_in_video for image in images], np.float64)
        at = np.lexsort((order, video))
        video, self.order = video[at], order[at]
        images = [images[n] for n in at.tolist()]
        for f in np.flatnonzero((np.diff(video) == 0) & (np.diff(self.order) == 0)).tolist():
            one, other = images[f], images[f + 1]
            raise DataError(
                f"{self._name(other, f)}: 'order_in_video' {other.order_in_video} "
                f"of video {other.video_id!r} is taken by image {one.id!r}; number the frames of a "
                "video differently"
            )
        position = self._positions(images)
        self.first = np.searchsorted(video, np.arange(len(self.names) + 1))
        self.sizes = _sizes(images)
        self.annotated = np.array([image.annotated is not False for image in images])
        self._flagged = np.array([_is_between_keyframes(image) for image in images])
        self._ids = self._pack([repr(image.id) for image in images])
        self._files = self._pack([f"{im.file_name or ''}\n{im.path or ''}" for im in images])
        return position

    def _place_videos(self, videos: list[VideoRow]) -> dict[str, int]:
        """Video numbers by video id."""
        for n, video in enumerate(videos):
            self._require(video, n, "id")
            where = self._name(video, n)
            if not (video.file_names or video.length or 0) or (video.length or 1) < 1:
                raise DataError(f"{where} has no 'file_names'; name the files of its frames")
            if video.file_names and video.length not in (None, len(video.file_names)):
                raise DataError(
                    f"{where} has {len(video.file_names)} 'file_names' and a 'length' of "
                    f"{video.length}; name the file of every frame"
                )
        videos = sorted(videos, key=lambda video: natural_key(str(video.id)))
        self.names = [str(video.id) for video in videos]
        position = self._positions(videos)
        files = [video.file_names or [""] * (video.length or 0) for video in videos]
        counts = [len(names) for names in files]
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.order = np.concatenate([np.arange(n, dtype=np.float64) for n in counts])
        self.sizes = np.repeat(_sizes(videos), counts, axis=0)
        self.annotated = np.ones(len(self.order), bool)
        self._flagged = np.zeros(len(self.order), bool)
        self._files = ["\0".join(names) for names in files]
        return position

    def _masks_of_images(
        self, rows: list[AnnotationRow], position: dict[str, int]
    ) -> Iterator[tuple[int, int, Raw]]:
        """Yield the frame, the annotation's number and the text of each mask."""
        for n, row in enumerate(rows):
            f = position.get(str(row.image_id), -1)
            if f < 0 or _is_null(row.segmentation) or not self.annotated[f]:
                self._require(row, n, "image_id", "segmentation")
                fault = "is not the id of any image"
                if f >= 0:
                    fault = "is that of an image that says 'annotated': false; remove that"
                raise DataError(f"{self._name(row, n)}: 'image_id' {str(row.image_id)!r} {fault}")
            if _is_between_keyframes(row):
                self._flagged[f] = True
            yield f, n, row.segmentation

    def _masks_of_tracks(
        self, rows: list[AnnotationRow], position: dict[str, int]
    ) -> Iterator[tuple[int, int, Raw]]:
        """As :meth:`_masks_of_images`."""
        for n, row in enumerate(rows):
            self._require(row, n, "video_id", "segmentations")
            where, raws = self._name(row, n), row.segmentations or []
            v = position.get(str(row.video_id), -1)
            if v < 0:
                raise DataError(
                    f"{where}: 'video_id' {str(row.video_id)!r} is not the id of any video"
                )
            begin, end = self.first[v : v + 2].tolist()
            if len(raws) != end - begin:
                raise DataError(
                    f"{where} has {len(raws)} 'segmentations', its video {self.names[v]!r} "
                    f"{end - begin} frames; give one for each, null where the object is not seen"
                )
            yield from ((begin + t, n, raw) for t, raw in enumerate(raws) if not _is_null(raw))

    def _identify(self, rows: list[AnnotationRow], identity: str) -> Iterator[ObjectId]:
        """The object of each annotation."""
        keys = () if identity == "category" else TRACKS
        tracks = (k for k in keys if any(_value_of(row, k) is not None for row in rows))
        own = "category_id" if self._by_image or identity == "category" else "id"
        key = next(tracks, own)
        if key == "category_id" and identity == "track" and rows:
            raise DataError(
                f"{self.file}: no annotation has any of {', '.join(TRACKS)}, which dataset.identity"
                "=track needs; add them, or choose category or components"
            )
        for n, row in enumerate(rows):
            value = _value_of(row, key)
            if type(value) in (int, str):
                yield value
                continue
            where = self._name(row, n)
            if value is None:
                because = " (other annotations have it)" if key in TRACKS else ""
                raise DataError(f"{where} has no {key!r}{because}; every annotation needs one")
            raise DataError(f"{where}: {key!r} is {value!r}; it must be a whole number or a text")

    def _pack(self, texts: list[str]) -> list[str]:
        """One text for each video."""
        spans = zip(self.first.tolist(), self.first[1:].tolist(), strict=False)
        return ["\0".join(texts[begin:end]) for begin, end in spans]

    def _state(self) -> tuple[int, int]:
        status = self.file.stat()
        return status.st_size, status.st_mtime_ns

    def files(self, v: int) -> list[list[str]]:
        """What the JSON calls the file of each frame of video ``v``: no, one or two names."""
        return [[n for n in names.split("\n") if n] for names in self._files[v].split("\0")]

    def frame(self, v: int, t: int) -> str:
        """What to call frame ``t`` of video ``v`` in messages."""
        if self._by_image:
            return f"image {self._ids[v].split(chr(0))[t]}"
        return f"frame {t} of video {self.names[v]!r}"

    def masks(self, v: int, t: int) -> list[StoredMask]:
        """The masks on frame ``t`` of video ``v``, as they follow each other in the file.

        Raises:
            DataError: the file is gone or was changed since, or a mask cannot be read.
        """
        f = int(self.first[v]) + t
        found = range(self._start[f], self._start[f + 1])
        if not found:
            return []
        stored = []
        try:
            if self._state() != self._stamp:
                raise DataError(f"{self.file} was changed since it was opened; start again")
            with io.BytesIO(self._text) if self._text else self.file.open("rb") as stream:
                for k in found:
                    stream.seek(self._offset[k])
                    where = f"{self.file}: annotation {self._id[k].decode()} ({self.frame(v, t)})"
                    try:
                        segmentation = json.loads(stream.read(self._length[k]))
                    except (ValueError, RecursionError) as error:
                        raise DataError(f"{where}: its mask is not JSON ({error})") from error
                    stored.append(StoredMask(self._owners[self._owner[k]], segmentation, where))
        except OSError as error:
            raise DataError(f"{self.file} cannot be read: {error}; put it back") from error
        return stored


def _read_rows(path: Path, kind: type[Content], key: str) -> tuple[Content, mmap.mmap | None]:
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


def _value_of(row: AnnotationRow, key: str) -> Any:
    """A field of an annotation, or of its ``attributes``, where CVAT puts what COCO has not."""
    value = getattr(row, key)
    if value is None and key in TRACKS and isinstance(row.attributes, dict):
        return row.attributes.get(key)
    return value


def _is_between_keyframes(row: ImageRow | AnnotationRow) -> bool:
    """Whether a flag says that this is no key frame; there need be none."""
    if isinstance(row, ImageRow):
        return False in (row.is_keyframe, row.keyframe, row.is_det_keyframe)
    attributes = row.attributes
    if isinstance(attributes, dict) and attributes.get("keyframe") is not None:
        return not attributes["keyframe"]
    return False in (row.is_keyframe, row.keyframe)


def _is_null(raw: Raw) -> bool:
    view = memoryview(raw)
    return view.nbytes == 4 and view == b"null"


def _places(raws: Sequence[Raw], text: mmap.mmap | None) -> tuple[np.ndarray, np.ndarray]:
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


def _texts(rows: list[AnnotationRow]) -> np.ndarray:
    """The ids of annotations, or their numbers, as texts of one length."""

    def texts() -> Iterator[bytes]:
        for n, row in enumerate(rows):
            yield (f"number {n}" if row.id is None else repr(row.id))[:64].encode()

    return np.fromiter(texts(), f"S{max(map(len, texts()), default=1)}", len(rows))


def _sizes(rows: list[ImageRow] | list[VideoRow]) -> np.ndarray:
    stated = np.array([[row.height, row.width] for row in rows], np.float64)  # None becomes NaN
    return np.nan_to_num(stated, posinf=0, neginf=0).astype(np.int32)
