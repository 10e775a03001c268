"""Where the masks of a COCO JSON stand in the file, as arrays: none is read before its turn.

A million annotations as Python objects would take gigabytes, in every loader process: a process
that looks at an object writes its count of references, and so gets a copy of the memory around it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import Raw

from sam2kit.data.sources import coco_json
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.coco_json import (
    TRACKS,
    AnnotationRow,
    ImageRow,
    VideoRow,
    named,
    required,
)
from sam2kit.data.sources.listing import natural_key
from sam2kit.utils.errors import DataError


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
        content = coco_json.read_rows(file, coco_json.FrameRows, "images")[0]
        self._stamp = self._state()
        if content.images is None and content.videos is None:
            raise DataError(f"{file} has no list 'images' of objects; is it a COCO JSON?")
        self._by_image = bool(content.images) or not content.videos
        if self._by_image:
            position = self._place_images(content.images or [])
        else:
            position = self._place_videos(content.videos or [])
        del content  # before the annotations come, which may be as large
        rows, text = coco_json.read_rows(file, coco_json.AnnotationRows, "annotations")
        find = self._masks_of_images if self._by_image else self._masks_of_tracks
        frames, numbers, raws = find(rows.annotations, position)
        if not keyframes_only:
            self._flagged[:] = False
        self.annotated &= ~self._flagged
        self.between_keyframes = int(self._flagged.sum())
        codes: dict[ObjectId, int] = {}
        owners = (
            codes.setdefault(o, len(codes)) for o in self._identify(rows.annotations, identity)
        )
        owner = np.fromiter(owners, np.int32, len(rows.annotations))
        self._owners = list(codes)
        ids = _texts(rows.annotations)
        del rows, position  # what follows needs as much memory
        kept = np.argsort(frames, kind="stable")
        kept = kept[self.annotated[frames[kept]]]
        self._start = np.searchsorted(frames[kept], np.arange(len(self.order) + 1))
        offset, length = coco_json.places(raws, text)
        self._offset, self._length = offset[kept], length[kept]
        self._text = b"".join(map(bytes, raws)) if text is None else None
        self._owner, self._id = owner[numbers[kept]], ids[numbers[kept]]

    def _place_images(self, images: list[ImageRow]) -> dict[str, int]:
        """Frame numbers by image id."""
        if not images:
            raise DataError(f"{self.file}: 'images' is empty; there is nothing to train on")
        for n, image in enumerate(images):
            required(self.file, "image", image, n, "id", "video_id", "order_in_video")
            place = image.order_in_video
            if type(place) not in (int, float) or not abs(place) < 2**53:
                raise DataError(
                    f"{named(self.file, 'image', image, n)}: 'order_in_video' is {place!r}; it "
                    "must be a number"
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
                f"{named(self.file, 'image', other, f)}: 'order_in_video' {other.order_in_video} "
                f"of video {other.video_id!r} is taken by image {one.id!r}; number the frames of a "
                "video differently"
            )
        position = {str(image.id): f for f, image in enumerate(images)}
        if len(position) < len(images):
            twice = next(image for f, image in enumerate(images) if position[str(image.id)] != f)
            raise DataError(
                f"{named(self.file, 'image', twice, 0)}: another image has the same 'id'; ids must "
                "be unique"
            )
        self.first = np.searchsorted(video, np.arange(len(self.names) + 1))
        self.sizes = _sizes(images)
        self.annotated = np.array([image.annotated is not False for image in images])
        self._flagged = np.array([coco_json.between_keyframes(image) for image in images])
        self._ids = self._pack([repr(image.id) for image in images])
        self._files = self._pack([f"{im.file_name or ''}\n{im.path or ''}" for im in images])
        return position

    def _place_videos(self, videos: list[VideoRow]) -> dict[str, int]:
        """Video numbers by video id."""
        for n, video in enumerate(videos):
            required(self.file, "video", video, n, "id")
            where = named(self.file, "video", video, n)
            if not (video.file_names or video.length or 0) or (video.length or 1) < 1:
                raise DataError(f"{where} has no 'file_names'; name the files of its frames")
            if video.file_names and video.length not in (None, len(video.file_names)):
                raise DataError(
                    f"{where} has {len(video.file_names)} 'file_names' and a 'length' of "
                    f"{video.length}; name the file of every frame"
                )
        videos = sorted(videos, key=lambda video: natural_key(str(video.id)))
        self.names = [str(video.id) for video in videos]
        position = {name: v for v, name in enumerate(self.names)}
        if len(position) < len(videos):
            twice = next(name for v, name in enumerate(self.names) if position[name] != v)
            raise DataError(f"{self.file}: two videos have the 'id' {twice!r}; ids must be unique")
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
    ) -> tuple[np.ndarray, np.ndarray, list[Raw]]:
        """Frames, numbers of annotations, and what stands in the file, of all masks."""
        frames = [position.get(str(row.image_id), -1) for row in rows]
        for n, (row, f) in enumerate(zip(rows, frames, strict=True)):
            if f < 0 or coco_json.is_null(row.segmentation) or not self.annotated[f]:
                required(self.file, "annotation", row, n, "image_id", "segmentation")
                fault = "is not the id of any image"
                if f >= 0:
                    fault = "is that of an image that says 'annotated': false; remove that"
                where = named(self.file, "annotation", row, n)
                raise DataError(f"{where}: 'image_id' {str(row.image_id)!r} {fault}")
            if coco_json.between_keyframes(row):
                self._flagged[f] = True
        numbers = np.arange(len(rows), dtype=np.int32)
        return np.array(frames, np.int32), numbers, [row.segmentation for row in rows]

    def _masks_of_tracks(
        self, rows: list[AnnotationRow], position: dict[str, int]
    ) -> tuple[np.ndarray, np.ndarray, list[Raw]]:
        """As :meth:`_masks_of_images`."""
        seen: list[Raw] = []
        frames: list[int] = []
        numbers: list[int] = []
        for n, row in enumerate(rows):
            required(self.file, "annotation", row, n, "video_id", "segmentations")
            where, given = named(self.file, "annotation", row, n), row.segmentations or []
            v = position.get(str(row.video_id), -1)
            if v < 0:
                raise DataError(
                    f"{where}: 'video_id' {str(row.video_id)!r} is not the id of any video"
                )
            begin, end = self.first[v : v + 2].tolist()
            if len(given) != end - begin:
                raise DataError(
                    f"{where} has {len(given)} 'segmentations', its video {self.names[v]!r} "
                    f"{end - begin} frames; give one for each, null where the object is not seen"
                )
            shown = [f for f, raw in enumerate(given) if not coco_json.is_null(raw)]
            seen += [given[f] for f in shown]
            frames += [begin + f for f in shown]
            numbers += [n] * len(shown)
        return np.array(frames, np.int32), np.array(numbers, np.int32), seen

    def _identify(self, rows: list[AnnotationRow], identity: str) -> Iterator[ObjectId]:
        """The object of each annotation."""
        keys = () if identity == "category" else TRACKS
        tracks = (k for k in keys if any(coco_json.value_of(row, k) is not None for row in rows))
        own = "category_id" if self._by_image or identity == "category" else "id"
        key = next(tracks, own)
        if key == "category_id" and identity == "track" and rows:
            raise DataError(
                f"{self.file}: no annotation has any of {', '.join(TRACKS)}, which dataset.identity"
                "=track needs; add them, or choose category or components"
            )
        for n, row in enumerate(rows):
            value = coco_json.value_of(row, key)
            if type(value) in (int, str):
                yield value
                continue
            where = named(self.file, "annotation", row, n)
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


def _texts(rows: list[AnnotationRow]) -> np.ndarray:
    """The ids of annotations, or their numbers, as texts of one length."""

    def texts() -> Iterator[bytes]:
        for n, row in enumerate(rows):
            yield (f"number {n}" if row.id is None else repr(row.id))[:64].encode()

    return np.fromiter(texts(), f"S{max(map(len, texts()), default=1)}", len(rows))


def _sizes(rows: list[ImageRow] | list[VideoRow]) -> np.ndarray:
    stated = np.array([[row.height, row.width] for row in rows], np.float64)  # None becomes NaN
    return np.nan_to_num(stated, posinf=0, neginf=0).astype(np.int32)
