"""Collect accepted masks of annotated videos in a folder to train on, without copying the videos.

:class:`~sam2kit.data.sources.training_set.TrainingSet` reads the folder; its documentation lists
the files.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from loguru import logger
from PIL import Image

from sam2kit.data.pictures import image_size, read_picture
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.listing import FRAME_ENDINGS
from sam2kit.data.sources.mask_files import OBJECTS_FILE, object_names
from sam2kit.data.sources.mask_values import VOID, MaskValues
from sam2kit.data.sources.training_set import (
    COCO_FILE,
    FRAMES,
    INDEX_FILE,
    MASKS,
    VERSION,
    VIDEOS,
    Index,
    ListedObject,
    StoredVideo,
    frame_names,
    open_stored,
    read_index,
)
from sam2kit.data.sources.video_decoder import OneVideo, open_video
from sam2kit.data.writers import (
    COCO_CATEGORIES,
    LARGEST_NUMBER,
    coco_annotation,
    coco_image,
    write_id_mask,
)
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.files import atomic_write, write_text
from sam2kit.utils.locks import locked
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import MAX_MASKS_BYTES, damage_is, read_json
from sam2kit.utils.text import plural, suggest

LOCK_FILE, PROVENANCE_FOLDER = ".lock", "provenance"
FORMATS = ("davis", "coco")
PROVENANCE = ("click", "box", "painted", "propagated", "imported", "automatic", "truth", "accepted")


@dataclass(frozen=True, eq=False)
class AcceptedFrame:
    """The masks of one frame that a person accepted as ground truth.

    Attributes:
        index: frame number in the video, from 0.
        masks: bool ``[H,W]`` of all visible objects of the frame, at the size of the frame. An
            object without a mask, or with an empty one, is absent on this frame.
        provenance: how the mask of an object was made, one of :data:`PROVENANCE`. Objects that are
            not listed have been ``accepted``.
        model: name or path of the checkpoint that tracked the masks. None (default): no model.
    """

    index: int
    masks: Mapping[ObjectId, np.ndarray]
    provenance: Mapping[ObjectId, str] = field(default_factory=dict)
    model: str | None = None


class TrainingSetSummary(NamedTuple):
    """The result of :func:`add_to_training_set`.

    Attributes:
        folder: the training set.
        video: name of the video in it.
        written: number of frames that the set did not have before.
        replaced: number of frames whose masks changed.
        unchanged: number of frames that the set already has with the same masks.
        overlaps: number of frames on which masks overlap, so that PNG files cannot store all of
            them.
        others: number of further frames of the video that the set has from earlier calls.
    """

    folder: Path
    video: str
    written: int = 0
    replaced: int = 0
    unchanged: int = 0
    overlaps: int = 0
    others: int = 0

    @property
    def counts(self) -> str:
        """The numbers of frames in words."""
        text = f"{plural(self.written, 'frame')} added, {self.replaced} replaced, "
        text += f"{self.unchanged} unchanged"
        if self.others:
            text += f"; {self.others} earlier ones remain in the set (to remove them, delete the "
            text += "folder and create the set again)"
        return text

    def __str__(self) -> str:
        return f"{self.video}: {self.counts} ({self.folder})"


def add_to_training_set(
    folder: str | Path,
    source: VideoSource,
    i: int,
    frames: Iterable[AcceptedFrame],
    *,
    names: Mapping[ObjectId, str] | None = None,
    format: str | None = None,
    copy: bool = False,
) -> TrainingSetSummary:
    """Add accepted frames of one video to a training set, which is created if it is missing.

    The masks of a frame replace those that the set has for it; other frames and videos are kept.
    Frames that were never added are unannotated. The set refers to the video by a path relative to
    the folder. Frames are copied only on request, or if no file contains them alone: those of
    stacks and volumes become 8-bit PNG files, scaled as the source scales them.

    An interruption leaves a complete set with some of the frames; calling again adds the rest.

    Args:
        folder: the training set.
        source: opened by :func:`~sam2kit.data.build.open_source` or similar.
        i: index of the video in ``source``.
        frames: the frames, in any order; each is written before the next one is requested.
        names: display names of the objects. None (default): the ids.
        format: ``davis`` (PNG files) or ``coco`` (one JSON file, in which masks may overlap). None
            (default): the format of the existing set, or ``davis``.
        copy: also copy the video into the folder, so that the folder can be moved alone.

    Raises:
        ConfigError: the folder cannot be written, contains something else, has another format, or
            is in use by another process.
        DataError: a frame is not in the video, or a mask does not have the size of its frame.
    """
    root = Path(folder)
    if format not in (None, *FORMATS):
        raise ConfigError(
            key="format",
            value=format,
            expected=" or ".join(FORMATS),
            hint="davis writes PNG files, coco one JSON file",
        )
    with _writing(root):
        index = _open_index(root, format)
        name, video = _add_video(root, index, source, i, copy)
        entry = index.videos[name]
        writer = (_CocoFile if index.format == "coco" else _PngFiles)(root, name, entry, video)
        provenance = _Provenance(root, name, entry)
        counts: Counter[str] = Counter()
        others = writer.frames()
        try:
            for frame in _checked(source, i, entry, frames):
                others.discard(frame.index)
                _add_objects(entry, frame, names or {})
                result = writer.add(frame)
                counts[result] += 1
                provenance.add(frame, result != "unchanged")
        finally:
            # Also after an error, for the frames before it. The index comes last, so that it never
            # lists missing files.
            if counts:
                writer.close()
                provenance.close()
                _write_index(root, index)
    numbers = {key: counts[key] for key in ("written", "replaced", "unchanged")}
    summary = TrainingSetSummary(
        root, name, **numbers, overlaps=writer.overlaps, others=len(others)
    )
    logger.info("{}", summary)
    if summary.overlaps:
        logger.warning(
            "{}: masks overlap on {}; a PNG stores one object per pixel, so the smaller "
            "object is kept there. The format coco keeps both",
            *(name, plural(summary.overlaps, "frame")),
        )
    return summary


def _checked(
    source: VideoSource, i: int, entry: StoredVideo, frames: Iterable[AcceptedFrame]
) -> Iterator[AcceptedFrame]:
    """Yield frames after checking their numbers, masks and provenance.

    Raises:
        DataError: see :func:`add_to_training_set`.
    """
    seen, name = set[int](), source.name(i)
    for frame in frames:
        if not 0 <= frame.index < entry.frames or frame.index in seen:
            raise DataError(
                f"frames of video {name!r}",
                key="index",
                value=frame.index,
                expected=f"from 0 to {entry.frames - 1}, each once",
                hint="give each frame of the video at most once",
            )
        seen.add(frame.index)
        for made in frame.provenance.values():
            if made not in PROVENANCE:
                raise DataError(
                    f"frame {frame.index} of video {name!r}",
                    key="provenance",
                    value=made,
                    expected=f"one of {', '.join(PROVENANCE)}",
                    hint="use one of these values",
                )
        path = source.frame_path(i, frame.index)
        size = image_size(path) if path else entry.size
        for identity, mask in frame.masks.items():
            if mask.shape != size or mask.dtype != bool:
                raise DataError(
                    f"the mask of object {identity!r} on frame {frame.index} of video {name!r} is "
                    f"{mask.dtype} {mask.shape}, but its frame has {size}",
                    hint="give bool masks of the size of the frame",
                )
        yield frame


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    """Create and lock the folder, and turn errors of the file system into errors with a fix."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root, LOCK_FILE, ConfigError, key="folder"):
            yield
    except OSError as error:
        raise ConfigError(
            f"the training set {root} cannot be written ({error}); it is complete up to the last "
            "change",
            key="folder",
            value=str(root),
            hint="check permissions and free disk space, and repeat the command",
        ) from error


def _open_index(root: Path, format: str | None) -> Index:
    """Read the index of a training set, or create a new one in an empty folder."""
    if (root / INDEX_FILE).exists():
        index = read_index(root)
        if format not in (None, index.format):
            raise ConfigError(
                f"the training set {root} has masks in the format {index.format}",
                key="format",
                value=format,
                expected=index.format,
                hint=f"omit the format, or choose a new folder for {format}",
            )
        return index
    others = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    if others:
        raise ConfigError(
            f"{root} is not a training set: it contains {', '.join(others[:3])}",
            key="folder",
            value=str(root),
            hint="choose a new folder",
        )
    index = Index(VERSION, format or FORMATS[0], {})
    _write_index(root, index)  # an interrupted first call can then be repeated
    return index


def _write_index(root: Path, index: Index) -> None:
    content = msgspec.json.format(msgspec.json.encode(index), indent=1)
    write_text(root / INDEX_FILE, content.decode() + "\n")


def _add_video(
    root: Path, index: Index, source: VideoSource, i: int, copy: bool
) -> tuple[str, OneVideo]:
    """Find or add the index entry of a video, and return its name there and the opened video."""
    num_frames, path = source.num_frames(i), source.video_path(i)
    if path is not None and open_video(path).num_frames(0) != num_frames:
        path = None  # the source uses only some of its frames
    files = [source.frame_path(i, t) for t in range(num_frames)] if path is None else []
    image_files = [file for file in files if file is not None]
    if len(image_files) < len(files):
        image_files = []
    name = _find_video(root, index, source, i, path, image_files)
    if name is None:
        name = _unused(source.name(i) or "video", list(index.videos))
        if name != source.name(i):
            logger.info("{} has another video {!r}; adding it as {!r}", root, source.name(i), name)
        size = source.read_frame(i, 0).shape[:2]
        entry = StoredVideo(file_name(name), num_frames, (size[0], size[1]))
        index.videos[name] = entry
        entry.folder = _unused(file_name(name), [v.folder for v in index.videos.values()][:-1])
    entry = index.videos[name]
    entry.absolute = "" if path is None else str(path.resolve())
    entry.files = [_relative(root, file) for file in image_files]
    copied = entry.path.startswith((f"{VIDEOS}/", f"{FRAMES}/"))
    if path is not None and not copied:
        entry.path = _copy_video(root, entry, path) if copy else _relative(root, path)
    elif path is None and not copied and (copy or not entry.files):
        entry.path = _copy_frames(root, entry, source, i, image_files)
    if entry.path:
        entry.files = []
    return name, open_stored(root, name, entry)


def _find_video(
    root: Path, index: Index, source: VideoSource, i: int, path: Path | None, files: list[Path]
) -> str | None:
    """Return the name under which a training set has a video, or None."""
    name, num_frames = source.name(i), source.num_frames(i)
    target = None if path is None else path.resolve()
    relative = [_relative(root, file) for file in files]
    for known, entry in index.videos.items():
        if target is not None:
            places = [(root / entry.path).resolve()] if entry.path else []
            if target in places or str(target) == entry.absolute:
                return known
            # A video that was moved: its former path is empty now.
            moved = places and not places[0].exists() and not Path(entry.absolute).exists()
            if moved and places[0].name == target.name and entry.frames == num_frames:
                return known
        elif files and entry.files == relative:
            return known
    for known, entry in index.videos.items():
        same_name = known == name or known.startswith(f"{name or 'video'}-")
        is_copied = entry.path.startswith(f"{FRAMES}/") and entry.frames == num_frames
        if same_name and is_copied and _are_copied(source, i, open_stored(root, known, entry)):
            return known
    return None


def _are_copied(source: VideoSource, i: int, copies: OneVideo) -> bool:
    """Return whether the first, middle and last frame of a video equal those of its copy."""
    num_frames = source.num_frames(i)
    for t in {0, num_frames // 2, num_frames - 1}:
        file, copied = source.frame_path(i, t), copies.frame_path(0, t)
        if file and copied and filecmp.cmp(file, copied, shallow=False):
            continue
        if not np.array_equal(source.read_frame(i, t), copies.read_frame(0, t)):
            return False
    return True


def _unused(name: str, used: Sequence[str]) -> str:
    """Return a name that differs from the used ones, also where case does not matter."""
    taken, number, candidate = {n.casefold() for n in used}, 1, name
    while candidate.casefold() in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _relative(root: Path, path: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), root.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return path.resolve().as_posix()


def _copy_video(root: Path, entry: StoredVideo, path: Path) -> str:
    """Copy a video file or a folder of frames into a training set, and return its new path."""
    target = root / VIDEOS / f"{entry.folder}{'' if path.is_dir() else path.suffix}"
    target.parent.mkdir(exist_ok=True)
    logger.info("copying {} to {}", path.resolve(), target)
    if path.is_dir():
        _replace_folder(target, lambda folder: _copy_files(open_video(path), folder))
    else:
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)
    return target.relative_to(root).as_posix()


def _copy_files(video: OneVideo, folder: Path) -> None:
    for t in range(video.num_frames(0)):
        file = video.frame_path(0, t)
        assert file is not None  # a folder of frames has one file per frame
        _copy_image(file, folder / file.name)


def _copy_image(file: Path, target: Path) -> None:
    """Copy an image file.

    Raises:
        DataError: it is no image. In a downloaded dataset, a link named like a frame may lead to
            any file, which would then be part of a folder that is made to be shared.
    """
    image_size(file)
    shutil.copyfile(file, target)


def _copy_frames(
    root: Path, entry: StoredVideo, source: VideoSource, i: int, files: list[Path]
) -> str:
    """Copy the image files of a video, or write its frames as PNG, and return the folder's path.

    Args:
        root, entry: the training set, and the entry of the video.
        source, i: the video.
        files: its image files, one per frame; empty if it has none.
    """
    num_frames, target = source.num_frames(i), root / FRAMES / entry.folder
    logger.info(
        "copying the {} frames of {!r}{} to {}",
        *(num_frames, source.name(i), f" ({files[0].resolve()} ...)" if files else "", target),
    )
    are_frames = bool(files) and all(f.name.lower().endswith(FRAME_ENDINGS) for f in files)
    # Only the source knows how frames of more than 8 bits are scaled.
    is_file_copy = are_frames and read_picture(files[0]).dtype == np.uint8

    def write(folder: Path) -> None:
        for t in range(num_frames):
            if is_file_copy:
                _copy_image(files[t], folder / f"{t:05d}{files[t].suffix}")
                continue
            frame = source.read_frame(i, t)
            is_grey = bool((frame == frame[..., :1]).all())
            Image.fromarray(frame[..., 0] if is_grey else frame).save(folder / f"{t:05d}.png")

    target.parent.mkdir(exist_ok=True)
    _replace_folder(target, write)
    return target.relative_to(root).as_posix()


def _replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under a temporary name, so that it is complete as soon as it exists."""
    temporary = target.with_name(f".{target.name}.part")
    for folder in (temporary, target):
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir()
    write(temporary)
    temporary.replace(target)


def _add_objects(entry: StoredVideo, frame: AcceptedFrame, names: Mapping[ObjectId, str]) -> None:
    """Add the objects of a frame to the index entry of its video, and update their names."""
    known = {o.id: o for o in entry.objects}
    for identity in frame.masks:
        if identity not in known:
            known[identity] = ListedObject(identity, str(identity))
            entry.objects.append(known[identity])
        if identity in names:
            known[identity].name = names[identity]


def _visible(frame: AcceptedFrame) -> dict[ObjectId, np.ndarray]:
    return {identity: mask for identity, mask in frame.masks.items() if mask.any()}


class _PngFiles:
    """Write the masks of one video as PNG, one file per frame.

    Attributes:
        overlaps: number of frames on which masks overlap.
    """

    def __init__(self, root: Path, name: str, entry: StoredVideo, video: OneVideo) -> None:
        self.folder, self.entry, self.stems = root / MASKS / entry.folder, entry, frame_names(video)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.numbers = {identity: n for n, identity in object_names(self.folder).items()}
        if not self.numbers:  # without objects.json, the ids are the numbers
            ids = (stored.id for stored in entry.objects)
            self.numbers = {i: i for i in ids if isinstance(i, int) and 0 < i < VOID}
        self.overlaps = 0

    def frames(self) -> set[int]:
        """Return the indices of the frames that the set has."""
        return {t for t, stem in enumerate(self.stems) if (self.folder / f"{stem}.png").exists()}

    def add(self, frame: AcceptedFrame) -> str:
        """Write a frame, and return the name of a count of :class:`TrainingSetSummary`."""
        masks = _visible(frame)
        self._number(masks)
        is_wide = max(self.numbers.values(), default=0) >= VOID
        size = next((mask.shape for mask in masks.values()), self.entry.size)
        ids = np.zeros(size, np.uint16 if is_wide else np.uint8)
        # Where masks overlap, the smaller object is in front: otherwise it could vanish.
        areas = {identity: np.count_nonzero(mask) for identity, mask in masks.items()}
        for identity in sorted(masks, key=lambda o: -areas[o]):
            ids[masks[identity]] = self.numbers[identity]
        self.overlaps += sum(areas.values()) > np.count_nonzero(ids)
        path = self.folder / f"{self.stems[frame.index]}.png"
        is_replaced = path.exists()
        if is_replaced and np.array_equal(MaskValues().read(path)[0], ids):
            return "unchanged"
        with atomic_write(path) as temporary:
            write_id_mask(temporary, ids)
        return "replaced" if is_replaced else "written"

    def _number(self, identities: Iterable[ObjectId]) -> None:
        """Choose the pixel value of new objects, and save it before masks use it.

        An id from 1 to 254 is its own value, if no other object has the value already. The values
        of earlier masks never change.
        """
        new = [identity for identity in identities if identity not in self.numbers]
        if not new:
            return
        used = set(self.numbers.values())
        for identity in new:
            is_free = isinstance(identity, int) and 0 < identity < VOID and identity not in used
            free = int(identity) if is_free else next(n for n in count(1) if n not in used)
            self.numbers[identity] = free
            used.add(free)
        if len(used) > LARGEST_NUMBER:
            raise DataError(
                f"{len(used)} objects exceed the maximum of {LARGEST_NUMBER} in a 16-bit PNG",
                hint="use the format coco",
            )
        if any(number != identity for identity, number in self.numbers.items()):
            by_number = {number: identity for identity, number in self.numbers.items()}
            write_text(self.folder / OBJECTS_FILE, json.dumps(by_number))

    def close(self) -> None:
        """Do nothing: each file is complete."""


class _CocoFile:
    """Write the masks of one video into the COCO file of a training set.

    Attributes:
        overlaps: 0, because the file keeps overlapping masks.
    """

    overlaps = 0

    def __init__(self, root: Path, name: str, entry: StoredVideo, video: OneVideo) -> None:
        self.path, self.name, self.entry = root / COCO_FILE, name, entry
        self.stems = frame_names(video)
        self.rows: dict[tuple[str, int], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        if not self.path.exists():
            return
        hint = "restore the file from a backup, or choose a new folder"
        content = read_json(self.path, hint=hint, max_bytes=MAX_MASKS_BYTES)
        with damage_is(DataError, self.path, hint):
            by_image: dict[int, tuple[str, int]] = {}
            for image in content["images"]:
                key = str(image["video_id"]), int(image["order_in_video"])
                self.rows[key], by_image[image["id"]] = (image, []), key
            for annotation in content["annotations"]:
                self.rows[by_image[annotation["image_id"]]][1].append(annotation)

    def frames(self) -> set[int]:
        """Return the indices of the frames that the set has."""
        return {t for name, t in self.rows if name == self.name}

    def add(self, frame: AcceptedFrame) -> str:
        """Add a frame, and return the name of a count of :class:`TrainingSetSummary`."""
        masks = {identity: encode_mask(mask) for identity, mask in _visible(frame).items()}
        before = self.rows.get((self.name, frame.index))
        if before and {a["track_id"]: a["segmentation"] for a in before[1]} == masks:
            return "unchanged"
        size = next((tuple(runs["size"]) for runs in masks.values()), self.entry.size)
        file = f"{self.entry.folder}/{self.stems[frame.index]}.png"
        image = coco_image(0, self.name, frame.index, file, size)
        annotations = [coco_annotation(0, 0, *item) for item in masks.items()]
        self.rows[self.name, frame.index] = image, annotations
        return "replaced" if before else "written"

    def close(self) -> None:
        """Write the file."""
        images, annotations = [], []
        for n, key in enumerate(sorted(self.rows), 1):
            image, rows = self.rows[key]
            images.append(image | {"id": n})
            annotations += [row | {"image_id": n} for row in rows]
        annotations = [row | {"id": n} for n, row in enumerate(annotations, 1)]
        content = {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
        write_text(self.path, json.dumps(content))


class _Provenance:
    """Update the file that records how each mask of a video was made."""

    def __init__(self, root: Path, name: str, entry: StoredVideo) -> None:
        self.path, self.name = root / PROVENANCE_FOLDER / f"{entry.folder}.json", name
        self.frames = _read_provenance(self.path) if self.path.exists() else {}

    def add(self, frame: AcceptedFrame, is_changed: bool) -> None:
        """Record a frame."""
        made = [{"id": o, "made": frame.provenance.get(o, "accepted")} for o in frame.masks]
        row = {"objects": made, "model": frame.model}
        before = self.frames.get(frame.index, {})
        if is_changed or row != {k: v for k, v in before.items() if k != "added"}:
            added = datetime.now().astimezone().isoformat(timespec="seconds")
            self.frames[frame.index] = row | {"added": added}

    def close(self) -> None:
        """Write the file."""
        frames = dict(sorted(self.frames.items()))
        content = {"version": VERSION, "video": self.name, "frames": frames}
        self.path.parent.mkdir(exist_ok=True)
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def read_provenance(folder: str | Path, video: str) -> dict[int, dict[str, Any]]:
    """Read how the masks of a video in a training set were made.

    Args:
        folder: the training set.
        video: name of the video in it.

    Returns:
        By frame number: ``objects`` (a list of ``id`` and ``made``, one of :data:`PROVENANCE`),
        ``model`` (None: no model) and ``added`` (date and time).

    Raises:
        DataError: the training set or the file cannot be read.
    """
    root = Path(folder)
    videos = read_index(root).videos
    if video not in videos:
        raise DataError(
            f"the training set {root} has no video of this name",
            key="video",
            value=video,
            hint=suggest(video, videos),
        )
    return _read_provenance(root / PROVENANCE_FOLDER / f"{videos[video].folder}.json")


def _read_provenance(path: Path) -> dict[int, dict[str, Any]]:
    hint = "delete it and add the frames again"
    try:
        content = read_json(path, hint=hint)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist", hint="add the frames again") from None
    with damage_is(DataError, path, hint):
        return {int(t): dict(row) for t, row in content["frames"].items()}
