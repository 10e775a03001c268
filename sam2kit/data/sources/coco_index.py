"""Index a COCO JSON file: arrays with the byte offset of every mask, which is read on access.

A million annotations as Python objects would take gigabytes in every DataLoader worker: reading an
object changes its reference count, so a forked process copies the memory page around it. Therefore
msgspec decodes only the fields that are used, and a segmentation stays text: a
:class:`msgspec.Raw` is a view of the file in memory.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import msgspec
import numpy as np
from loguru import logger
from msgspec import Raw, Struct

from sam2kit.data.sources.base import LeftOut, ObjectId
from sam2kit.data.sources.frame_names import group_frames, repeated
from sam2kit.data.sources.listing import natural_key, unpacked
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MAX_DATA_BYTES, MAX_FRAMES, check_depth, check_size, parse_json
from sam2kit.utils.text import plural

# Keys that identify a track, in order of preference.
TRACKS = ("track_id", "instance_id", "object_id")
_NULL = Raw(b"null")
# Half of a character outside of Unicode's first plane, which UTF-8, and so no file, can contain.
_HALF_CHARACTER = re.compile(
    rb"\\u[dD](?:[89abAB]\w\w(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]\w\w\\u[dD])[c-fC-F]\w\w)"
)
_SHORT = 80  # bytes of a mask that is checked at the start: no polygon of three points is shorter


# gc=False: the garbage collector does not track the rows, which saves memory and time.
class Row(Struct, gc=False):
    """Base class of the rows of a JSON list; ``kind`` names them in error messages."""

    kind: ClassVar[str]
    id: Any = None


class ImageRow(Row, gc=False):
    """An entry of ``images``."""

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
    """An entry of ``videos``."""

    kind = "video"
    file_names: list[str] | None = None
    length: int | None = None
    height: float | None = None
    width: float | None = None


class AnnotationRow(Row, gc=False):
    """An entry of ``annotations``."""

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
    """The part of the file that defines videos and frames."""

    images: list[ImageRow] | None = None
    videos: list[VideoRow] | None = None


class AnnotationRows(Struct):
    """The part of the file that defines masks."""

    annotations: list[AnnotationRow]


Content = TypeVar("Content", bound=Struct)


class StoredMask(NamedTuple):
    """A mask as stored in the file.

    Attributes:
        object_id: its object.
        segmentation: polygons or run lengths in COCO's format.
        where: file, annotation and frame, for error messages.
    """

    object_id: ObjectId
    segmentation: Any
    where: str


class CocoIndex:
    """Index the videos, frames and masks of one COCO JSON file.

    The frames of all videos are numbered consecutively, video after video: V videos, F frames.

    Args:
        file: the JSON file: ``images`` with ``video_id`` and ``order_in_video``, or ``videos`` with
            ``file_names`` and annotations with ``segmentations``.
        identity: ``auto``, ``track`` or ``category``, as in
            :class:`sam2kit.data.sources.coco.COCODataset`.
        keyframes_only: treat frames that are flagged as between key frames as unannotated.
        strict: whether an annotation that cannot be used is an error. False (default): it is left
            out.

    Attributes:
        names: ids of the videos as strings, in natural order.
        first: ``[V+1]``: video v has the frames ``first[v]`` to ``first[v + 1] - 1``.
        order: ``[F]`` float64: ``order_in_video``, or the index in ``file_names``.
        sizes: ``[F,2]`` int32: rows and columns if the JSON file gives them, else 0.
        annotated: ``[F]`` bool: whether the frame is annotated.
        between_keyframes: number of frames that ``keyframes_only`` made unannotated.
        left_out: the annotations that cannot be used, by the kind of problem.
        merged: a message about the instances of a category that are read as one object because no
            annotation has a track id; empty if no frame has several of them.

    Raises:
        DataError: as COCODataset.
    """

    def __init__(
        self,
        file: Path,
        identity: str = "auto",
        keyframes_only: bool = True,
        strict: bool = False,
    ) -> None:
        self.file, self._strict = file, strict
        self.left_out: dict[str, LeftOut] = {}
        content = _read_rows(file, FrameRows, "images")[0]
        self._stamp = self._state()
        if content.images is None and content.videos is None:
            raise DataError(f"{file} has no list 'images' of objects", hint="give a COCO JSON file")
        self._by_image = bool(content.images) or not content.videos
        if self._by_image:
            position = self._index_images(content.images or [])
        else:
            position = self._index_videos(content.videos or [])
        del content  # free it before the annotations are read, which may be as large
        rows, text = _read_rows(file, AnnotationRows, "annotations")
        iterate_masks = self._masks_of_images if self._by_image else self._masks_of_tracks
        # Arrays of machine integers: lists would hold one Python object per mask.
        frame_list, row_list, raws = array("i"), array("i"), []
        for f, n, raw in iterate_masks(rows.annotations, position):
            frame_list.append(f)
            row_list.append(n)
            raws.append(raw)
        frames, row_numbers = np.array(frame_list, np.int32), np.array(row_list, np.int32)
        if not keyframes_only:
            self._flagged[:] = False
        self.annotated &= ~self._flagged
        self.between_keyframes = int(self._flagged.sum())
        # Object ids may be strings, so arrays hold codes: indices into the list of distinct ids.
        codes: dict[ObjectId, int] = {}
        objects = self._identify(rows.annotations, identity)
        object_codes = np.fromiter(
            (-1 if o is None else codes.setdefault(o, len(codes)) for o in objects), np.int32
        )
        self._objects = list(codes)
        self.merged = ""
        if identity == "auto" and self._by_category:
            self.merged = self._count_merged(frames, object_codes[row_numbers])
        ids = _id_texts(rows.annotations)
        self._check_rest(len(rows.annotations), int((object_codes[row_numbers] >= 0).sum()))
        del rows, position  # the rest needs as much memory
        # Sort the masks by frame (stable: in the order of the file), without unannotated frames.
        selected = np.argsort(frames, kind="stable")
        selected = selected[self.annotated[frames[selected]]]
        selected = selected[object_codes[row_numbers[selected]] >= 0]
        self._start = np.searchsorted(frames[selected], np.arange(len(self.order) + 1))
        offset, length = _spans(raws, text)
        self._offset, self._length = offset[selected], length[selected]
        self._text = b"".join(map(bytes, raws)) if text is None else None
        self._code, self._id = object_codes[row_numbers[selected]], ids[row_numbers[selected]]

    def _name(self, row: Row, n: int) -> str:
        """Name a row in error messages: its file, its kind, and its id or else its index."""
        return f"{self.file}: {row.kind} {f'number {n}' if row.id is None else repr(row.id)}"

    def _reject(self, problem: str, error: DataError) -> None:
        """Raise the error of an annotation, or count the annotation by the kind of its problem."""
        if self._strict:
            raise error
        known = self.left_out.get(problem)
        self.left_out[problem] = LeftOut(
            "masks",
            known.count + 1 if known else 1,
            known.where if known else str(self.file),
            known.message if known else str(error),
        )

    def _check_rest(self, count: int, num_masks: int) -> None:
        """Raise an error if no annotation is left, and log how many are left out."""
        if not self.left_out:
            return
        rejected = sum(entry.count for entry in self.left_out.values())
        first = next(iter(self.left_out.values()))
        if num_masks == 0 or rejected >= count:
            raise DataError(
                f"{self.file}: none of its {count} annotations can be used. The first: "
                f"{first.message}",
                hint="export the file again, or correct its annotations",
            )
        logger.warning(
            "{}: left out {} of {} annotations that cannot be used ({}). The first: {}. "
            "dataset.strict=true makes them errors",
            self.file,
            rejected,
            count,
            ", ".join(f"{entry.count} {problem}" for problem, entry in self.left_out.items()),
            first.message,
        )

    def _count_merged(self, frames: np.ndarray, objects: np.ndarray) -> str:
        """Return and log a message about frames on which several annotations become one object.

        Args:
            frames: ``[N]`` frame of each mask.
            objects: ``[N]`` code of its object, -1 if it is left out.
        """
        used = objects >= 0
        pairs = frames[used].astype(np.int64) * max(len(self._objects), 1) + objects[used]
        values, counts = np.unique(pairs, return_counts=True)
        merged = values[counts > 1]
        if not merged.size:
            return ""
        num_frames = len(np.unique(merged // len(self._objects)))
        category = self._objects[int(merged[0] % len(self._objects))]
        text = (
            f"no annotation has a track id ({', '.join(TRACKS)}), so all instances of "
            f"a category are one object; {plural(num_frames, 'frame')} with several instances of a "
            f"category, such as {category!r}; set dataset.identity=components to make each "
            "connected part an object, or category if one object is right"
        )
        logger.warning("{}: {}", self.file, text)
        return text

    def _require(self, row: Row, n: int, *keys: str) -> None:
        """Raise a DataError if the row does not have all keys."""
        for key in keys:
            value = getattr(row, key)
            if value is None or (key == "segmentation" and _is_null(value)):
                raise DataError(
                    f"{self._name(row, n)} has no {key!r}",
                    hint=f"add it: every {row.kind} needs one",
                )

    def _positions(self, rows: Sequence[Row]) -> dict[str, int]:
        """Map the ids of the rows, which must be unique, to their indices."""
        for row in rows:
            row.id = _whole(row.id)
        position = {str(row.id): n for n, row in enumerate(rows)}
        for n, row in enumerate(rows):
            if position[str(row.id)] != n:
                raise DataError(
                    f"{self._name(row, n)}: another {row.kind} has the same 'id'",
                    hint="make the ids unique",
                )
        return position

    def _index_images(self, images: list[ImageRow]) -> dict[str, int]:
        """Index the per-image form, and return the frame numbers by image id."""
        if not images:
            raise DataError(
                f"{self.file}: 'images' is empty", hint="give a file with one image or more"
            )
        self._derive_videos(images)
        for n, image in enumerate(images):
            self._require(image, n, "id", "video_id", "order_in_video")
            image.video_id = _whole(image.video_id)
            order = image.order_in_video
            # NaN fails the comparison, and larger integers are not exact as float64.
            if type(order) not in (int, float) or not abs(order) < 2**53:
                raise DataError(
                    self._name(image, n),
                    key="order_in_video",
                    value=order,
                    expected="a number below 2**53",
                    hint="use the index of the frame in its video",
                )
        videos = [str(image.video_id) for image in images]
        self.names = sorted(set(videos), key=natural_key)
        rank = {name: v for v, name in enumerate(self.names)}
        video = np.array([rank[name] for name in videos])
        orders = np.array([image.order_in_video for image in images], np.float64)
        by_video = np.lexsort((orders, video))
        video, self.order = video[by_video], orders[by_video]
        images = [images[n] for n in by_video.tolist()]
        for f in np.flatnonzero((np.diff(video) == 0) & (np.diff(self.order) == 0)).tolist():
            one, other = images[f], images[f + 1]
            raise DataError(
                self._name(other, f),
                key="order_in_video",
                value=other.order_in_video,
                expected=f"unique, but image {one.id!r} of video {other.video_id!r} has it too",
                hint="give each frame of a video its own number",
            )
        position = self._positions(images)
        self.first = np.searchsorted(video, np.arange(len(self.names) + 1))
        self.sizes = _sizes(images)
        self.annotated = np.array([image.annotated is not False for image in images])
        self._flagged = np.array([_is_between_keyframes(image) for image in images])
        self._ids = self._pack([repr(image.id) for image in images])
        self._files = self._pack([f"{im.file_name or ''}\n{im.path or ''}" for im in images])
        return position

    def _derive_videos(self, images: list[ImageRow]) -> None:
        """Group images without video ids into videos by file name, as for Roboflow and CVAT.

        Raises:
            DataError: two images have the same position in a video.
        """
        no_video = all(image.video_id is None for image in images)
        no_order = all(image.order_in_video is None for image in images)
        if not no_order or not all(image.file_name or image.path for image in images):
            return
        names = [image.file_name or image.path or "" for image in images]
        if no_video:
            frames = group_frames(names, self.file.stem.removeprefix("instances_").strip("_."))
            if twice := repeated(frames):
                (video, number), count = twice[0]
                raise DataError(
                    f"{self.file}: {count} images are frame {number} of video {video!r}, and "
                    f"{len(twice) - 1} more frames occur several times; 'video_id' is missing, so "
                    "folders and file names define the videos",
                    hint="export without augmented copies, or add 'video_id' and 'order_in_video'",
                )
            logger.info(
                "{}: no image has a 'video_id'; grouped {} images into {} videos by folder and by "
                "the file name before the frame number",
                self.file,
                len(images),
                len({frame.video for frame in frames}),
            )
            for image, frame in zip(images, frames, strict=True):
                image.video_id, image.order_in_video = frame
            return
        logger.info("{}: no image has an 'order_in_video'; ordered by file name", self.file)
        in_order = sorted(range(len(names)), key=lambda n: natural_key(names[n]))
        for order, n in enumerate(in_order):
            images[n].order_in_video = order

    def _index_videos(self, videos: list[VideoRow]) -> dict[str, int]:
        """Index the per-track form, and return the video indices by video id."""
        for n, video in enumerate(videos):
            self._require(video, n, "id")
            where = self._name(video, n)
            if not (video.file_names or video.length or 0) or (video.length or 1) < 1:
                raise DataError(f"{where} has no 'file_names'", hint="list the files of its frames")
            if (video.length or 0) > MAX_FRAMES:
                raise DataError(
                    where,
                    key="length",
                    value=video.length,
                    expected=f"up to {MAX_FRAMES}",
                    hint="list the files of its frames as 'file_names'",
                )
            if video.file_names and video.length not in (None, len(video.file_names)):
                raise DataError(
                    f"{where} has {len(video.file_names)} 'file_names' but a 'length' of "
                    f"{video.length}",
                    hint="list the file of every frame",
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
        """Yield the frame number, the annotation's index and the JSON text of each mask."""
        for n, row in enumerate(rows):
            f = position.get(str(_whole(row.image_id)), -1)
            if f < 0 or not self.annotated[f]:
                problem = "of unannotated images" if f >= 0 else "of unknown images"
                fault = "is an image with 'annotated': false" if f >= 0 else "is not the id of any"
                error = DataError(
                    f"{self._name(row, n)}: 'image_id' {str(row.image_id)!r} {fault}"
                    f"{'' if f >= 0 else ' image'}",
                    hint="remove the annotation, or correct the image",
                )
                self._reject(problem, error)
                continue
            if not self._has_mask(row, n, row.segmentation):
                continue
            # One interpolated mask is enough: the frame has not been annotated by hand.
            if _is_between_keyframes(row):
                self._flagged[f] = True
            yield f, n, row.segmentation

    def _has_mask(self, row: AnnotationRow, n: int, raw: Raw) -> bool:
        """Return whether an annotation has a mask, as far as its first bytes tell."""
        if _is_null(raw):
            hint = "add it: every annotation needs one"
            self._reject(
                "without a segmentation",
                DataError(f"{self._name(row, n)} has no 'segmentation'", hint=hint),
            )
            return False
        if memoryview(raw).nbytes > _SHORT or _is_usable(raw):
            return True
        text = bytes(raw).decode(errors="replace")
        error = DataError(
            f"{self._name(row, n)}: 'segmentation' {text} is neither a polygon of three points "
            "or more nor run lengths",
            hint="draw the mask again, or remove the annotation",
        )
        self._reject("with an empty mask", error)
        return False

    def _masks_of_tracks(
        self, rows: list[AnnotationRow], position: dict[str, int]
    ) -> Iterator[tuple[int, int, Raw]]:
        """Yield the same as :meth:`_masks_of_images`."""
        for n, row in enumerate(rows):
            where, raws = self._name(row, n), row.segmentations
            v = position.get(str(_whole(row.video_id)), -1)
            if v < 0 or raws is None:
                missing_key = "'segmentations'" if v >= 0 else "'video_id'"
                fault = f"has no {missing_key}"
                if v < 0 and row.video_id is not None:
                    fault = f"'video_id' {str(row.video_id)!r} is not the id of any video"
                    where += ":"
                error = DataError(f"{where} {fault}", hint="correct or remove the annotation")
                self._reject("without a video or masks", error)
                continue
            begin, end = self.first[v : v + 2].tolist()
            if len(raws) != end - begin:
                error = DataError(
                    f"{where} has {len(raws)} 'segmentations', but its video {self.names[v]!r} has "
                    f"{end - begin} frames",
                    hint="give one per frame, null where the object is not visible",
                )
                self._reject("of a different length than their video", error)
                continue
            yield from ((begin + t, n, raw) for t, raw in enumerate(raws) if not _is_null(raw))

    def _identify(self, rows: list[AnnotationRow], identity: str) -> Iterator[ObjectId | None]:
        """Yield the object id of each annotation, and None for one that is left out."""
        keys = () if identity == "category" else TRACKS
        tracks = (k for k in keys if any(_value_of(row, k) is not None for row in rows))
        # In the per-track form, an annotation without these keys is a track itself.
        fallback = "category_id" if self._by_image or identity == "category" else "id"
        key = next(tracks, fallback)
        self._by_category = key == "category_id"
        if key == "category_id" and identity == "track" and rows:
            raise DataError(
                f"{self.file}: identity=track needs annotations with one of {', '.join(TRACKS)}",
                hint="add them, or use dataset.identity=category or components",
            )
        for n, row in enumerate(rows):
            value = _whole(_value_of(row, key))
            if type(value) in (int, str):
                yield value
                continue
            yield None
            where = self._name(row, n)
            if value is None:
                reason = " (other annotations have it)" if key in TRACKS else ""
                error = DataError(
                    f"{where} has no {key!r}{reason}", hint="add it: every annotation needs one"
                )
            else:
                expected = "an integer or a string"
                hint = "export the file again"
                error = DataError(where, key=key, value=value, expected=expected, hint=hint)
            self._reject(f"without a valid {key!r}", error)

    def _pack(self, texts: list[str]) -> list[str]:
        """Join one string per frame to one string per video."""
        spans = zip(self.first.tolist(), self.first[1:].tolist(), strict=False)
        return ["\0".join(texts[begin:end]) for begin, end in spans]

    def _state(self) -> tuple[int, int]:
        """Return the size and modification time of the file."""
        status = self.file.stat()
        return status.st_size, status.st_mtime_ns

    def files(self, v: int) -> list[list[str]]:
        """Return the file paths of each frame of video ``v`` in the JSON file: up to two."""
        return [[n for n in names.split("\n") if n] for names in self._files[v].split("\0")]

    def frame(self, v: int, t: int) -> str:
        """Name frame ``t`` of video ``v`` in error messages."""
        if self._by_image:
            return f"image {unpacked(self._ids[v], chr(0))[t]}"
        return f"frame {t} of video {self.names[v]!r}"

    def masks(self, v: int, t: int) -> list[StoredMask]:
        """Read the masks on frame ``t`` of video ``v``, in the order of the file.

        Raises:
            DataError: the file is missing or has changed, or a mask cannot be read.
        """
        f = int(self.first[v]) + t
        numbers = range(self._start[f], self._start[f + 1])
        if not numbers:
            return []
        stored = []
        try:
            # The offsets are valid only for the file as it was when it was opened.
            if self._state() != self._stamp:
                raise DataError(
                    f"{self.file} has changed since it was opened",
                    hint="restart the command or kernel",
                )
            with io.BytesIO(self._text) if self._text else self.file.open("rb") as stream:
                for k in numbers:
                    stream.seek(self._offset[k])
                    where = f"{self.file}: annotation {self._id[k].decode()} ({self.frame(v, t)})"
                    text = stream.read(self._length[k])
                    segmentation = parse_json(text, f"{where}: its mask", non_finite=True)
                    stored.append(StoredMask(self._objects[self._code[k]], segmentation, where))
        except OSError as error:
            raise DataError(
                f"{self.file} cannot be read: {error}", hint="restore the file"
            ) from error
        return stored


def _read_rows(path: Path, kind: type[Content], key: str) -> tuple[Content, mmap.mmap | None]:
    """Decode a part of the file.

    Args:
        path: the JSON file.
        kind: the structure of the part.
        key: its list, for the error message.

    Returns:
        The content, and the memory-mapped file if the Raw fields of the content are parts of it.

    Raises:
        DataError: the file cannot be read, is not JSON, or has another structure.
    """
    try:
        check_size(path, MAX_DATA_BYTES)
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size:
                text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                try:
                    return msgspec.json.decode(text, type=kind), text
                except msgspec.ValidationError:
                    raise
                except msgspec.DecodeError:
                    pass  # Python's decoder accepts what some tools write: NaN, a BOM
            whole = file.read()
            if _HALF_CHARACTER.search(whole):
                raise ValueError("it has a \\u escape of half a character; export it as UTF-8")
            content = json.loads(whole, object_hook=_keep_raw)
            check_depth(content, str(path))
            return msgspec.convert(content, kind), None
    except RecursionError as error:
        raise DataError(
            f"{path} is nested too deeply for a COCO JSON file", hint="export it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error}", hint="check dataset.annotation_file"
        ) from error
    except msgspec.ValidationError as error:
        raise DataError(
            f"{path} has no list {key!r} of objects in COCO's format ({error})",
            hint="give a COCO JSON file",
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file: {error}", hint="export it again") from error


def _keep_raw(row: dict[str, Any]) -> dict[str, Any]:
    """Convert the masks of a row back to JSON text, as msgspec leaves them."""
    if "segmentation" in row:
        row["segmentation"] = Raw(json.dumps(row["segmentation"]).encode())
    if isinstance(row.get("segmentations"), list):
        row["segmentations"] = [Raw(json.dumps(s).encode()) for s in row["segmentations"]]
    return row


def usable(segmentation: Any) -> bool:
    """Return whether a mask has a polygon of three points or more, or any run lengths."""
    if isinstance(segmentation, dict):
        return bool(segmentation)  # what is missing is reported when it is decoded
    return isinstance(segmentation, list) and any(polygons_of(segmentation)[0])


def _is_usable(raw: Raw) -> bool:
    """Return :func:`usable` for the text of a mask; damaged text is reported when it is read."""
    try:
        return usable(json.loads(bytes(raw)))
    except (ValueError, RecursionError):
        return True


def polygons_of(segmentation: list[Any]) -> tuple[list[list[Any]], int]:
    """Return the polygons of three points or more, and the number of the other ones.

    A flat list of coordinates is one polygon.
    """
    if segmentation and not any(isinstance(part, list) for part in segmentation):
        segmentation = [segmentation]
    parts = [p for p in segmentation if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    return parts, len(segmentation) - len(parts)


def _whole(value: Any) -> Any:
    """Return a float without a fraction as an integer: some tools write ids as 1.0."""
    return int(value) if type(value) is float and value.is_integer() else value


def _value_of(row: AnnotationRow, key: str) -> Any:
    """Return a field of an annotation, or of its ``attributes``, where CVAT stores track ids."""
    value = getattr(row, key)
    if value is None and key in TRACKS and isinstance(row.attributes, dict):
        return row.attributes.get(key)
    return value


def _is_between_keyframes(row: ImageRow | AnnotationRow) -> bool:
    """Return whether a flag says that this is not a key frame; without a flag it is one."""
    if isinstance(row, ImageRow):
        return False in (row.is_keyframe, row.keyframe, row.is_det_keyframe)
    attributes = row.attributes
    if isinstance(attributes, dict) and attributes.get("keyframe") is not None:
        return not attributes["keyframe"]
    return False in (row.is_keyframe, row.keyframe)


def _is_null(raw: Raw) -> bool:
    """Return whether the JSON text is ``null``, without copying a long text."""
    view = memoryview(raw)
    return view.nbytes == 4 and view == b"null"


def _spans(raws: Sequence[Raw], text: mmap.mmap | None) -> tuple[np.ndarray, np.ndarray]:
    """Locate each part in the text.

    Args:
        raws: the parts, in their order in the text.
        text: the memory-mapped file. None: the parts will be concatenated.

    Returns:
        Offsets ``[N]`` int64 and lengths ``[N]`` int32, in bytes.
    """
    lengths = np.fromiter((memoryview(raw).nbytes for raw in raws), np.int32, len(raws))
    if text is None:
        return np.cumsum(lengths, dtype=np.int64) - lengths, lengths

    # msgspec does not report offsets, so each part is searched from the end of the previous one.
    # The first match may be another place with equal bytes, which decodes to the same mask.
    def offsets(position: int = 0) -> Iterator[int]:
        for raw, length in zip(raws, lengths.tolist(), strict=True):
            position = text.find(raw, position)
            yield position
            position += length

    return np.fromiter(offsets(), np.int64, len(raws)), lengths


def _id_texts(rows: list[AnnotationRow]) -> np.ndarray:
    """Return the ids of annotations, or else their indices, as an array of fixed-length bytes."""

    def texts() -> Iterator[bytes]:
        for n, row in enumerate(rows):
            yield (f"number {n}" if row.id is None else repr(row.id))[:64].encode()

    return np.fromiter(texts(), f"S{max(map(len, texts()), default=1)}", len(rows))


def _sizes(rows: list[ImageRow] | list[VideoRow]) -> np.ndarray:
    """Return rows and columns as ``[N,2]`` int32, 0 if the JSON file does not give them."""
    sizes = np.array([[row.height, row.width] for row in rows], np.float64)  # None becomes NaN
    return np.nan_to_num(sizes, posinf=0, neginf=0).astype(np.int32)
