"""Write masks as label images: TIFF stacks, Cell Tracking Challenge folders and NIfTI volumes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.lineage import Track, write_tracks
from sam2kit.data.sources.base import ObjectId
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import atomic_write, write_text
from sam2kit.utils.text import visible_text

MAX_LABEL = 65_535  # of 16-bit label images, which all common tools read


class LabelRecorder:
    """Record the masks of one video as label images, compressed in memory, frame by frame.

    Objects are numbered in the order in which they appear; :meth:`labels` maps them to the labels
    that are written.

    Args:
        video: name of the video in errors.
    """

    def __init__(self, video: str) -> None:
        self.video = video
        self._numbers: dict[ObjectId, int] = {}
        self._frames: list[bytes | None] = []
        self._size: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self._frames)

    def add(self, masks: Mapping[ObjectId, np.ndarray] | None, size: tuple[int, ...]) -> None:
        """Record the masks of the next frame.

        Args:
            masks: ``[H,W]`` by object: bool, or logits above 0 on the object. Where logits of
                several objects are above 0, the highest wins. None: the frame is unannotated.
            size: rows and columns.

        Raises:
            DataError: bool masks overlap, or there are too many objects.
        """
        self._size = size[0], size[1]
        if masks is None:
            self._frames.append(None)
            return
        image = np.zeros(self._size, np.uint16)
        highest = np.zeros(self._size, np.float32)
        for object_id, mask in masks.items():
            inside = mask > 0
            if not inside.any():
                continue
            number = self._numbers.setdefault(object_id, len(self._numbers) + 1)
            if number > MAX_LABEL:
                raise DataError(
                    f"{visible_text(self.video)} has more than {MAX_LABEL} objects, which 16-bit "
                    "label images cannot hold",
                    hint="convert to coco-video",
                )
            if mask.dtype == bool:
                if (taken := int(image[inside].max())) > 0:
                    other = next(o for o, n in self._numbers.items() if n == taken)
                    raise DataError(
                        f"{visible_text(self.video)}, frame {len(self)}: objects {other!r} and "
                        f"{object_id!r} overlap, but a label image holds one object per pixel",
                        hint="convert to coco-video, which keeps both masks",
                    )
            else:
                inside &= mask > highest
                highest[inside] = mask[inside]
            image[inside] = number
        self._frames.append(zlib.compress(image.tobytes(), 1))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the frames."""
        return self._size

    @property
    def annotated(self) -> list[bool]:
        """Whether each frame is annotated."""
        return [frame is not None for frame in self._frames]

    def labels(self) -> dict[ObjectId, int]:
        """Return the label of each object: its id if all ids are valid labels, else from 1."""
        if all(type(o) is int and 0 < o <= MAX_LABEL for o in self._numbers):
            return {o: int(o) for o in self._numbers}
        return dict(self._numbers)

    def images(self, labels: Mapping[ObjectId, int] | None = None) -> Iterator[np.ndarray | None]:
        """Yield the label image of each frame, ``[H,W]`` uint16; None if it is unannotated.

        Args:
            labels: label of each object. None (default): those of :meth:`labels`.
        """
        labels = self.labels() if labels is None else labels
        table = np.zeros(len(self._numbers) + 1, np.uint16)
        for object_id, number in self._numbers.items():
            table[number] = labels[object_id]
        for frame in self._frames:
            if frame is None:
                yield None
            else:
                yield table[np.frombuffer(zlib.decompress(frame), np.uint16).reshape(self._size)]

    def visible(self) -> dict[ObjectId, list[int]]:
        """Return the frames on which each object is visible."""
        frames: dict[ObjectId, list[int]] = {o: [] for o in self._numbers}
        ids = list(self._numbers)
        for t, image in enumerate(self.images(self._numbers)):
            for n in np.unique(image).tolist() if image is not None else ():
                if n:
                    frames[ids[n - 1]].append(t)
        return frames


def names_of(labels: Mapping[ObjectId, int]) -> dict[int, ObjectId]:
    """Return the object ids that differ from their labels, by label."""
    return {label: o for o, label in labels.items() if o != label}


def write_tiff_labels(
    recorder: LabelRecorder, path: Path, parents: Mapping[ObjectId, ObjectId]
) -> None:
    """Write a stack of labels, with object names and parents beside it if there are any.

    Args:
        recorder: the masks.
        path: the file, ``VIDEO_labels.tif``. If a frame is unannotated, a directory of its name
            without extension gets one file per annotated frame instead.
        parents: parent of each object that has one.
    """
    labels = recorder.labels()
    images = recorder.images(labels)
    if all(recorder.annotated):
        write_stack(path, images, (len(recorder), *recorder.size), np.uint16)
    else:
        path = path.with_suffix("")
        path.mkdir()
        for t, image in enumerate(images):
            if image is not None:
                write_image(path / f"{t:05d}.tif", image)
    write_label_names(path.with_suffix(".json"), labels)
    links = {c: p for c, p in parents.items() if c in labels and p in labels}
    if links:
        tracks = {
            labels[o]: Track(frames[0], frames[-1], labels[links[o]] if o in links else 0)
            for o, frames in recorder.visible().items()
        }
        write_tracks(path.with_suffix(".txt"), dict(sorted(tracks.items())))


def write_label_names(path: Path, labels: Mapping[ObjectId, int]) -> None:
    """Write the object ids that differ from their labels, if any, as JSON."""
    _write_names(path, names_of(labels))


def _write_names(path: Path, names: Mapping[int, ObjectId]) -> None:
    path.unlink(missing_ok=True)  # from earlier results
    if names:
        write_text(path, json.dumps(names))


def write_ctc_labels(
    recorder: LabelRecorder,
    parents: Mapping[ObjectId, ObjectId],
    image_path: Callable[[int], Path],
    tracks_path: Path,
) -> None:
    """Write label images and their tracks as the Cell Tracking Challenge defines them.

    A track has no gaps. An object that disappears and returns becomes several tracks, each the
    parent of the next, and ``objects.json`` beside the tracks maps their labels to the id.

    Args:
        recorder: the masks. Unannotated frames get no file.
        parents: parent of each object that has one.
        image_path: returns the file of each frame.
        tracks_path: the file of the tracks.

    Raises:
        DataError: there are too many tracks.
    """
    labels = recorder.labels()
    names = names_of(labels)
    segments = _segments(recorder, labels)
    tracks: dict[int, Track] = {}
    for object_id, parts in segments.items():
        parent = 0
        if parents.get(object_id) in segments:
            # The part of the parent that ends last before the object appears.
            ended = [s for s in segments[parents[object_id]] if s.end < parts[0].begin]
            parent = max(ended, key=lambda s: s.end).label if ended else 0
        for label, begin, end in parts:
            tracks[label] = Track(begin, end, parent)
            parent = label
            if label != labels[object_id]:
                names[label] = object_id
    if max(tracks, default=0) > MAX_LABEL:
        raise DataError(
            f"{visible_text(recorder.video)} has more tracks than 16-bit label images can hold, "
            f"{MAX_LABEL}",
            hint="convert to coco-video",
        )
    later_parts = [(labels[o], *part) for o, parts in segments.items() for part in parts[1:]]
    for t, image in enumerate(recorder.images(labels)):
        if image is not None:
            for old, label, begin, end in later_parts:
                if begin <= t <= end:
                    image[image == old] = label
            write_image(image_path(t), image)
    write_tracks(tracks_path, dict(sorted(tracks.items())))
    _write_names(tracks_path.with_name("objects.json"), names)


class _Segment(NamedTuple):
    """A part of an object without gaps: its label, first and last frame."""

    label: int
    begin: int
    end: int


def _segments(
    recorder: LabelRecorder, labels: Mapping[ObjectId, int]
) -> dict[ObjectId, list[_Segment]]:
    """Split each object where it is absent from an annotated frame; later parts get new labels."""
    order = np.cumsum(recorder.annotated)
    next_label = max(labels.values(), default=0) + 1
    segments: dict[ObjectId, list[_Segment]] = {}
    for object_id, frames in recorder.visible().items():
        breaks = [k for k in range(1, len(frames)) if order[frames[k]] - order[frames[k - 1]] > 1]
        label = labels[object_id]
        segments[object_id] = []
        for start, stop in zip([0, *breaks], [*breaks, len(frames)], strict=True):
            if start:
                label, next_label = next_label, next_label + 1
            segments[object_id].append(_Segment(label, frames[start], frames[stop - 1]))
    return segments


def write_nifti_labels(recorder: LabelRecorder, path: Path, geometry: VolumeGeometry) -> None:
    """Write a label volume on the grid of the volume that the frames came from.

    Args:
        recorder: the masks; every frame must be annotated.
        path: the file, ``.nii`` or ``.nii.gz``.
        geometry: the position of the frames in the volume.

    Raises:
        DataError: a frame is unannotated.
    """
    if not all(recorder.annotated):
        raise DataError(
            f"{visible_text(recorder.video)}: frame {recorder.annotated.index(False)} is "
            "unannotated, which a label volume cannot represent",
            hint="convert to tiff or coco-video, which support unannotated frames",
        )
    labels = recorder.labels()
    frames = np.stack([image for image in recorder.images(labels) if image is not None])
    write_nifti(path, geometry.volume(frames), geometry)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    write_label_names(path.with_name(f"{stem}.json"), labels)


def write_nifti(path: Path, volume: np.ndarray, geometry: VolumeGeometry) -> None:
    """Write a volume with the affine of a geometry, in mm."""
    import nibabel  # imported here: it is needed for this format only

    image = nibabel.Nifti1Image(volume, geometry.affine, dtype=volume.dtype)
    image.header.set_xyzt_units("mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    # nibabel chooses the format by the extension.
    with atomic_write(path, suffix="".join(path.suffixes[-2:])) as temporary:
        nibabel.save(image, temporary)


def write_stack(
    path: Path,
    frames: Iterator[np.ndarray | None],
    shape: tuple[int, ...],
    dtype: np.dtype | type,
    compress: bool = True,
) -> None:
    """Write a TIFF stack frame by frame, with the axes in its metadata.

    Args:
        path: the file.
        frames: ``[H,W]``, or ``[H,W,3]`` for colours, or ``[H,W,2]`` for two channels.
        shape: number of frames, and the shape of a frame.
        dtype: type of the frames.
        compress: compress the pages without loss.
    """
    import tifffile  # imported here: it is needed for this format only

    axes, photometric = "TYX", "minisblack"
    if len(shape) == 4:
        axes, photometric = "TYXS", "rgb"
        if shape[3] != 3:
            axes, photometric = "TCYX", "minisblack"
            shape = (shape[0], shape[3], *shape[1:3])
            frames = (np.moveaxis(frame, -1, 0) for frame in frames if frame is not None)
    pages = frames
    if axes == "TCYX":
        pages = (page for frame in frames if frame is not None for page in frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        tifffile.imwrite(
            temporary,
            pages,
            shape=shape,
            dtype=dtype,
            photometric=photometric,
            metadata={"axes": axes},
            compression="zlib" if compress else None,
        )


def write_image(path: Path, image: np.ndarray) -> None:
    """Write one compressed TIFF image, ``[H,W]`` or ``[H,W,3]``."""
    import tifffile  # imported here: it is needed for this format only

    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3 and image.shape[2] != 3:
        raise DataError(
            f"the frames have {image.shape[2]} channels, but {path.name} can store one or three",
            key="dataset.stack_channels",
            hint="choose one channel, such as dataset.stack_channels=[0]",
        )
    photometric = "rgb" if image.ndim == 3 else "minisblack"
    with atomic_write(path) as temporary:
        tifffile.imwrite(temporary, image, photometric=photometric, compression="zlib")
