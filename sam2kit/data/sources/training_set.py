"""Read a training set: accepted masks that refer to video files and frame folders elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.pictures import image_size
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.frame_folders import read_scaled
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.mask_files import MaskFiles, share_decision
from sam2kit.data.sources.video_decoder import FrameFolder, OneVideo, VideoFile, open_video
from sam2kit.data.sources.video_files import COCOMasks
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_json

INDEX_FILE = "training_set.json"
MASKS, COCO_FILE, VIDEOS, FRAMES = "Annotations", "annotations.json", "videos", "JPEGImages"
VERSION = 1


class ListedObject(msgspec.Struct):
    """An object of a video; ``name`` is its display name."""

    id: int | str
    name: str


class StoredVideo(msgspec.Struct, omit_defaults=True):
    """A video of a training set.

    Attributes:
        folder: name of its folder of masks.
        frames: number of frames.
        size: rows and columns of the first frame.
        path: the video file or frame folder, relative to the training set, with ``/``.
        absolute: the same as an absolute path, for a set that was moved without its videos.
        files: image files relative to the training set, one per frame; empty if ``path`` is set.
        objects: the objects.
    """

    folder: str
    frames: int
    size: tuple[int, int]
    path: str = ""
    absolute: str = ""
    files: list[str] = []
    objects: list[ListedObject] = []


class Index(msgspec.Struct):
    """The content of ``training_set.json``."""

    version: int
    format: str
    videos: dict[str, StoredVideo]


class TrainingSet(VideoSource):
    """Read a folder that :func:`~sam2kit.data.training_set.add_to_training_set` wrote.

    ::

        training_set.json       videos: where they are, number of frames, objects
        Annotations/VIDEO/      masks, as palette PNG, or 16-bit PNG for more than 254 objects
        annotations.json        instead of Annotations: all masks as COCO run lengths
        provenance/VIDEO.json   how each mask was made, by which model, and when
        videos/, JPEGImages/    only copied videos and frames

    Videos are not copied. The index gives their paths relative to the folder, so the folder can be
    moved together with the videos. A missing video is searched for in the folder ``videos``
    of the training set, and then at its former absolute path. Only frames with masks are annotated.

    Args:
        root: the folder.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.

    Raises:
        DataError: the index or the masks cannot be read, or a video is missing or has another
            number of frames; on reading, a damaged frame or mask.
    """

    def __init__(self, root: str | Path, split: str | None = None) -> None:
        self.root = Path(root)
        index = read_index(self.root)
        if not index.videos:
            raise DataError(
                f"{self.root / INDEX_FILE} lists no videos",
                hint="add frames with sam2kit training-set, or in the annotator",
            )
        stored = index.videos
        self.names = list(stored) if split is None else read_split(split, self.root, list(stored))
        entries = [stored[name] for name in self.names]
        with ThreadPoolExecutor(8) as pool:  # FFmpeg releases Python's global lock
            self._videos = list(pool.map(self._open, self.names, entries))
        self.objects = [{o.id: o.name for o in entry.objects} for entry in entries]
        self._masks: list[MaskFiles | COCOMasks] = []
        if index.format == "coco":
            path = self.root / COCO_FILE
            content = COCODataset(path, files=False)
            indices = {name: k for k, name in enumerate(content.names)}
            for name, entry in zip(self.names, entries, strict=True):
                if name not in indices:
                    raise DataError(
                        f"{path} has no video {name!r}, but {INDEX_FILE} lists it",
                        hint="create the training set again",
                    )
                masks = COCOMasks(content, path, indices[name], name, entry.frames)
                self._masks.append(masks)
        else:
            for video, entry in zip(self._videos, entries, strict=True):
                self._masks.append(_mask_files(self.root / MASKS / entry.folder, video))
            # sam2kit wrote the masks, so the meaning of their values is known.
            png_masks = [masks for masks in self._masks if isinstance(masks, MaskFiles)]
            share_decision(png_masks, "ids", None, self.root)
        self._current: int | None = None

    def _open(self, name: str, entry: StoredVideo) -> OneVideo:
        video = open_stored(self.root, name, entry)
        if video.num_frames(0) != entry.frames:
            raise DataError(
                f"{video.path} has {video.num_frames(0)} frames, but video {name!r} of "
                f"{self.root} was annotated with {entry.frames}",
                hint="restore the video that was annotated",
            )
        return video

    def _video(self, i: int) -> OneVideo:
        """Return video ``i``, and close the file of the video that was read before."""
        if self._current != i:
            if self._current is not None and isinstance(
                previous := self._videos[self._current], VideoFile
            ):
                previous.close()
            self._current = i
        return self._videos[i]

    def num_frames(self, i: int) -> int:
        return self._videos[i].num_frames(0)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self._video(i).read_frame(0, t)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        video, masks = self._video(i), self._masks[i]
        if not 0 <= t < video.num_frames(0):
            raise IndexError(f"frame {t} of {video.path}, which has {video.num_frames(0)}")
        if isinstance(masks, MaskFiles) and next(masks.paths(t), None) is None:
            return None
        return masks.read(t, f"{t} of {video.path}", frame_size(video, t))

    def annotated_frames(self, i: int) -> Iterator[int]:
        masks = self._masks[i]
        frames = masks.annotated() if isinstance(masks, MaskFiles) else sorted(masks.positions)
        return iter([int(t) for t in frames])

    def mask_paths(self, i: int, t: int) -> list[Path]:
        masks = self._masks[i]
        return [path for _, path in masks.paths(t)] if isinstance(masks, MaskFiles) else []

    def frame_name(self, i: int, t: int) -> str:
        return self._videos[i].frame_name(0, t)

    def frame_path(self, i: int, t: int) -> Path | None:
        return self._videos[i].frame_path(0, t)

    def frame_rate(self, i: int) -> float:
        return self._videos[i].fps

    def video_path(self, i: int) -> Path | None:
        return self._videos[i].video_path(0)


class FrameFiles(OneVideo):
    """Read image files from any folders as one video without masks."""

    def __init__(self, path: Path, files: list[Path]) -> None:
        super().__init__(path)
        self._files, self._scaler = files, VideoScaler(IntensityRule())

    def num_frames(self, i: int) -> int:
        return len(self._files)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_scaled(self, self._scaler, i, t)

    def frame_path(self, i: int, t: int) -> Path:
        """Return the file of frame ``t``."""
        return self._files[t]

    def video_path(self, i: int) -> Path | None:
        return None


def read_index(root: Path) -> Index:
    """Read and check ``training_set.json``.

    Raises:
        DataError: it is missing, damaged, or of a later version of sam2kit.
    """
    path = root / INDEX_FILE
    hint = "create the training set again with sam2kit training-set"
    try:
        index = msgspec.convert(read_json(path, hint=hint), Index)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(f"{path} is not the index of a training set ({error})", hint=hint) from None
    if index.version != VERSION or index.format not in ("davis", "coco"):
        raise DataError(
            f"{path} has version {index.version} and format {index.format!r}",
            hint="read it with the version of sam2kit that wrote it",
        )
    for name, entry in index.videos.items():
        # The set may be downloaded, and masks are also written into these folders.
        is_inside = Path(entry.folder).name == entry.folder and "\\" not in entry.folder
        if not is_inside or entry.folder in ("", ".."):
            raise DataError(
                f"{path}: video {name!r}",
                key="folder",
                value=entry.folder,
                expected="the name of a folder in this training set",
                hint="create the training set again with sam2kit training-set",
            )
    return index


def open_stored(root: Path, name: str, entry: StoredVideo) -> OneVideo:
    """Open a video of a training set, wherever it is now.

    Args:
        root: the training set.
        name: name of the video, for error messages.
        entry: its entry in the index.

    Raises:
        DataError: it is missing or cannot be read.
    """
    if entry.files:
        files = [root / file for file in entry.files]
        if missing := [file for file in files if not file.is_file()]:
            raise DataError(
                f"{len(missing)} of {len(files)} frames of video {name!r} are missing, such as "
                f"{missing[0]}",
                hint=f"move them back, or move {root} together with its videos",
            )
        return FrameFiles(root, files)
    path = root / entry.path
    base = entry.path.rpartition("/")[2]
    candidates = [path, root / VIDEOS / base]
    if entry.absolute:
        candidates.append(Path(entry.absolute))
    existing = next((p for p in candidates if p.exists()), None)
    if existing is None:
        raise DataError(
            f"video {name!r} of the training set {root} is missing: {path.resolve()} does not "
            "exist",
            hint=f"move the video back, or put {base} into {root / VIDEOS}",
        )
    return open_video(existing)


def frame_size(video: OneVideo, t: int) -> tuple[int, int]:
    """Return rows and columns of a frame, without decoding it where that can be avoided."""
    if isinstance(video, VideoFile):
        return video.size
    if (path := video.frame_path(0, t)) is not None:
        return image_size(path)
    height, width = video.read_frame(0, t).shape[:2]
    return height, width


def frame_names(video: OneVideo) -> list[str]:
    """Return the names of the mask files of a video: unique, and safe as file names."""
    names = [video.frame_name(0, t) for t in range(video.num_frames(0))]
    numbered = not isinstance(video, FrameFolder) or len(set(names)) < len(names)
    return [f"{t:05d}" for t in range(len(names))] if numbered else names


def _mask_files(folder: Path, video: OneVideo) -> MaskFiles:
    """Index the masks of one video."""
    if not folder.is_dir():
        raise DataError(f"{folder} is missing", hint="create the training set again")
    names = frame_names(video)
    indices: Callable[[str], int | None] = {name: t for t, name in enumerate(names)}.get
    return MaskFiles(folder, len(names), indices, f"masks are named like {names[0]}.png")
