"""Read videos from COCO JSON files: images with a video id, or videos with tracks."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.pictures import image_size
from sam2kit.data.rle import decode
from sam2kit.data.sources.base import IDENTITY, LeftOut, ObjectId, Remark, VideoSource
from sam2kit.data.sources.coco_index import CocoIndex, polygons_of
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.frame_folders import read_scaled
from sam2kit.data.sources.listing import read_split, stem, unpacked
from sam2kit.utils.errors import DataError


class COCODataset(VideoSource):
    """Read the videos of one or more COCO JSON files.

    *Two forms.* Per image: ``images`` have ``video_id`` and ``order_in_video``, which defines the
    order and may have gaps. Per track, as in YouTube-VIS and OVIS: ``videos`` have ``file_names``
    in order, and an annotation has ``video_id`` and ``segmentations``, one per frame, null where
    the object is not visible. The names of the videos are their ids (integers or strings), in
    natural order.

    *Files.* The path of an image is ``file_name`` or, if it is missing, ``path``. It is searched
    for under the root. As such paths often come from another computer, leading folders are
    removed one by one until a file exists, first of ``file_name`` and then of ``path``. Two images
    with the same file are an error, so a shortened path never matches the wrong video.

    *Objects.* ``identity`` defines what one object is; the annotations of one object on one frame
    are merged:

    * ``track``: ``track_id``, ``instance_id`` or ``object_id``, the first that any annotation has
      (itself or in its ``attributes``); then all annotations must have it. In the per-track form
      without these keys: the annotation's ``id``;
    * ``category``: all objects of a category are one object;
    * ``auto``: track if possible, else category. Where a frame then has several annotations of a
      category, as in Roboflow's exports, a warning says so, and the doctor reports it.

    Category ids may start at 0, and ids may be whole floats. ``iscrowd`` is ignored.

    *Missing video ids.* If no image has ``video_id`` and ``order_in_video``, as in the exports of
    Roboflow and in CVAT's "COCO 1.0", folders and file names define the videos:
    :func:`sam2kit.data.sources.frame_names.group_frames`.

    *Bad rows.* An annotation that cannot be used (no mask, polygons of two points, run lengths of
    another size, no track where the others have one, an unknown image) is left out, and so is an
    image without a file. They are counted, logged in one line, and reported by the doctor. With
    ``strict`` they are errors.

    *Masks* are polygons, or run lengths, compressed or not. A frame without annotations is
    annotated as empty. A frame is unannotated if its image has ``"annotated": false``. As
    interpolated masks are not ground truth, a frame is also unannotated if ``keyframe`` or
    ``is_keyframe`` (of the image or of any of its annotations, also in their ``attributes``) or
    ``is_det_keyframe`` (of the image) is false.

    *Several files* may use the same ids. Videos with the same name in several files get the name of
    their file as a prefix: ``FILE-VIDEO``.

    Args:
        annotation_file: the JSON file, a list of files, or a pattern such as ``labels/*.json``.
        root: the folder of the images. None (default): the folder of each JSON file.
        split: a text file with one video name per line, or its name under ``ROOT/ImageSets``. None
            (default): all videos.
        identity: ``auto``, ``track`` or ``category``, as above.
        files: whether to search for image files. If False, only masks can be read, at the size that
            the JSON file gives.
        keyframes_only: if False, interpolated masks are used as ground truth.
        intensity: how frames of more than 8 bits are scaled. None (default): the default rule.
        strict: raise an error for annotations and images that cannot be used.

    Raises:
        DataError: an invalid JSON file, an image without a key, a duplicate order, no usable
            annotation, or no image file; on reading, polygons on a file whose size differs from the
            JSON file. With ``strict`` also what is left out otherwise. The message names the file,
            the image or annotation, and the key.
    """

    def __init__(
        self,
        annotation_file: str | Path | Sequence[str | Path],
        root: str | Path | None = None,
        split: str | None = None,
        identity: str = "auto",
        files: bool = True,
        keyframes_only: bool = True,
        intensity: IntensityRule | None = None,
        strict: bool = False,
    ) -> None:
        if identity not in ("auto", "track", "category"):
            raise DataError(
                key="identity",
                value=identity,
                expected="auto, track or category",
                hint="for components, wrap a source of identity category in "
                "sam2kit.data.ConnectedObjects",
            )
        self._scaler = VideoScaler(intensity or IntensityRule())
        json_files = list_files(annotation_file)
        for file in json_files:
            folder = Path(root) if root is not None else file.parent
            if not folder.is_dir():
                raise DataError(
                    f"{folder} (root of {file}) is not a folder",
                    hint="give the folder of the images",
                )
        self._strict = strict
        self._indices = [CocoIndex(file, identity, keyframes_only, strict) for file in json_files]
        locations = _names(self._indices)
        self.root = Path(root) if root is not None else json_files[0].parent
        self.names = (
            read_split(split, self.root, locations) if split is not None else list(locations)
        )
        # Per video: the index of its JSON file, and its index in that file.
        self._locations = [locations[name] for name in self.names]
        self._roots = [Path(root) if root is not None else file.parent for file in json_files]
        # Videos whose frames come from several folders with equal file names: results that are
        # named like the files would overwrite each other.
        self._numbered: list[bool] = []
        # Per video: the frames that have a file; None: all of them.
        self._present: list[np.ndarray | None] = [None] * len(self.names)
        self._left_out: list[LeftOut] = [
            entry for index in self._indices for entry in index.left_out.values()
        ]
        # Per video: the annotations that were left out on reading, by their names.
        self._unreadable: dict[int, dict[str, str]] = {}
        self._paths = self._find_files() if files else None
        if self._paths is not None:
            self._report_unread(json_files)
        if skipped := sum(index.between_keyframes for index in self._indices):
            logger.info(
                "{}: {} of {} frames are not key frames and count as unannotated",
                annotation_file,
                skipped,
                sum(len(index.order) for index in self._indices),
            )

    def _find_files(self) -> list[str]:
        """Find the image files of each video, joined to one string relative to the root.

        Frames without a file are left out, and videos without a frame.

        Raises:
            DataError: an image has no path or shares its file with another image, no image has a
                file, or (with ``strict``) an image has none.
        """
        finders = [_finder(root) for root in self._roots]
        frame_of: dict[str, tuple[int, int]] = {}
        paths = []
        missing: list[DataError] = []
        for i, (k, v) in enumerate(self._locations):
            video_paths, present = [], []
            for t, candidates in enumerate(self._indices[k].files(v)):
                if not candidates:
                    raise DataError(
                        f"{self._where(i, t)} has neither 'file_name' nor 'path'",
                        hint="add one of them",
                    )
                path, tried = finders[k](candidates)
                if path is None:
                    error = DataError(
                        f"{self._where(i, t)} has no file; tried {', '.join(dict.fromkeys(tried))}",
                        hint="set dataset.data_path to the folder that its 'file_name' is relative "
                        "to",
                    )
                    if self._strict:
                        raise error
                    missing.append(error)
                    continue
                video_paths.append(path)
                present.append(t)
                full = f"{self._roots[k]}/{path}"
                # A shortened path may match a file of another video, which would go unnoticed.
                if frame_of.setdefault(full, (i, t)) != (i, t):
                    raise DataError(
                        f"{self._where(i, t)} and {self._where(*frame_of[full])} have the same "
                        f"file {full}",
                        hint=f"give each its own 'file_name' under {self._roots[k]}",
                    )
            if len(present) < self.num_frames(i):
                self._present[i] = np.array(present, np.int32)
            # One string per video, because every DataLoader worker would copy a million small ones.
            paths.append("\0".join(video_paths))
            stems = {stem(path.rpartition("/")[2]) for path in video_paths}
            self._numbered.append(len(stems) < len(video_paths))
        return self._without_empty_videos(paths, missing)

    def _report_unread(self, json_files: list[Path]) -> None:
        """Report unread files in the folders of the images."""
        dropped = DroppedFiles(self.root)
        paths = (
            f"{self._roots[k]}/{path}"
            for (k, _), video_paths in zip(self._locations, self._paths or (), strict=True)
            for path in video_paths.split("\0")
        )
        dropped.add_unread(chain(json_files, paths), listed=True)
        # Other JSON files are usually those of other splits.
        dropped.others = [path for path in dropped.others if path.suffix.lower() != ".json"]
        self._remarks = dropped.report()

    def _without_empty_videos(self, paths: list[str], missing: list[DataError]) -> list[str]:
        """Leave out videos in which no frame has a file, and report the missing files.

        Args:
            paths: the files of each video, joined.
            missing: an error for each missing file.

        Returns:
            The entries of ``paths`` that are not empty.
        """
        if not missing:
            return paths
        count = sum(len(index.order) for index in self._indices)
        used = [i for i, video_paths in enumerate(paths) if video_paths]
        first = missing[0]
        if not used:
            text, _, hint = str(first).rpartition("; ")
            raise DataError(f"none of {count} frames has a file. The first: {text}", hint=hint)
        dropped = len(paths) - len(used)
        videos = f", and with them {dropped} of {len(paths)} videos" if dropped else ""
        logger.warning(
            "Left out {} of {} frames without a file{}. The first: {}. dataset.strict=true "
            "makes them errors",
            *(len(missing), count, videos, first),
        )
        where = str(self._indices[0].file)
        self._left_out.append(LeftOut("frames", len(missing), where, str(first)))
        self.names = [self.names[i] for i in used]
        self._locations = [self._locations[i] for i in used]
        self._present = [self._present[i] for i in used]
        self._numbered = [self._numbered[i] for i in used]
        return [paths[i] for i in used]

    def _where(self, i: int, t: int) -> str:
        """Return the JSON file and the image, for error messages."""
        k, v = self._locations[i]
        return f"{self._indices[k].file}: {self._indices[k].frame(v, t)}"

    def num_frames(self, i: int) -> int:
        present = self._present[i]
        if present is not None:
            return len(present)
        k, v = self._locations[i]
        begin, end = self._indices[k].first[v : v + 2].tolist()
        return end - begin

    @property
    def remarks(self) -> list[Remark]:
        merged = [(str(index.file), index.merged) for index in self._indices if index.merged]
        return [*super().remarks, *(Remark(IDENTITY, *entry) for entry in merged)]

    def left_out_masks(self, i: int) -> list[LeftOut]:
        unreadable = self._unreadable.get(i)
        if not unreadable:
            return []
        where, message = next(iter(unreadable.items()))
        return [LeftOut("masks", len(unreadable), where, message)]

    def order(self, i: int, t: int) -> float:
        """Return ``order_in_video`` of frame ``t`` of video ``i``, or its ``file_names`` index."""
        index, f = self._frame(i, t)
        return float(index.order[f])

    def frame_name(self, i: int, t: int) -> str:
        has_names = self._paths is not None and not self._numbered[i]
        return stem(self._path(i, t).name) if has_names else f"{t:05d}"

    def frame_path(self, i: int, t: int) -> Path | None:
        return self._path(i, t) if self._paths else None

    def read_frame(self, i: int, t: int) -> np.ndarray:
        self._path(i, t)
        return read_scaled(self, self._scaler, i, t)

    def annotated_frames(self, i: int) -> Iterator[int]:
        k, v = self._locations[i]
        begin, end = self._indices[k].first[v : v + 2].tolist()
        annotated, present = self._indices[k].annotated[begin:end], self._present[i]
        return iter(np.flatnonzero(annotated if present is None else annotated[present]).tolist())

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        index, f = self._frame(i, t)
        if not index.annotated[f]:
            return None
        k, v = self._locations[i]
        stored = index.masks(v, f - int(index.first[v]))
        if not stored:
            return {}
        json_size = tuple(index.sizes[f].tolist())
        size = (
            image_size(self._path(i, t)) if self._paths else json_size if all(json_size) else None
        )
        masks: dict[ObjectId, np.ndarray] = {}
        for object_id, segmentation, where in stored:
            # Run lengths have a size of their own, which is checked when they are decoded. Polygons
            # have none: if the image was resized after the annotation, they would be misplaced.
            if isinstance(segmentation, list) and all(json_size) and size != json_size:
                raise DataError(
                    f"{where}: its image has 'height' and 'width' {list(json_size)}, but the file "
                    f"{self._path(i, t)} has {list(size or ())}",
                    hint="correct the size in the JSON file, or replace the file",
                )
            mask = self._decode(i, segmentation, size, where)
            if mask is None:
                continue
            masks[object_id] = masks[object_id] | mask if object_id in masks else mask
        return masks

    def _decode(
        self, i: int, segmentation: Any, size: tuple[int, int] | None, where: str
    ) -> np.ndarray | None:
        """Decode a mask of video ``i``; return None, and count it, if it cannot be used."""
        polygons, unusable = None, 0
        if isinstance(segmentation, list):
            polygons, unusable = polygons_of(segmentation)
        try:
            if self._strict and unusable:
                polygons = segmentation  # the decoder raises an error
            return decode(polygons or segmentation, size, where)
        except DataError as error:
            if self._strict or size is None:
                raise
            if not self._unreadable:
                logger.warning(
                    "Left out an annotation that cannot be used: {}. More are not logged; "
                    "sam2kit doctor counts them, and dataset.strict=true makes them errors",
                    error,
                )
            self._unreadable.setdefault(i, {})[where] = str(error)
            return None

    def _frame(self, i: int, t: int) -> tuple[CocoIndex, int]:
        """Return the index of the video's JSON file, and the number of the frame in it."""
        k, v = self._locations[i]
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self.num_frames(i)}")
        present = self._present[i]
        if present is not None:
            t = int(present[t])
        return self._indices[k], int(self._indices[k].first[v]) + t

    def _path(self, i: int, t: int) -> Path:
        if self._paths is None:
            raise DataError(
                f"{self._where(i, t)} was opened without image files", hint="set files=True"
            )
        return self._roots[self._locations[i][0]] / unpacked(self._paths[i], "\0")[t]


def list_files(annotation_file: str | Path | Sequence[str | Path]) -> list[Path]:
    """List annotation files: one file, a list, or the sorted matches of a pattern.

    Raises:
        DataError: no file matches the pattern.
    """
    if isinstance(annotation_file, (str, Path)):
        if os.path.exists(annotation_file) or not glob.has_magic(str(annotation_file)):
            return [Path(annotation_file)]
        annotation_file = sorted(glob.glob(str(annotation_file), recursive=True))
    if not annotation_file:
        raise DataError(
            "no file matches the pattern",
            key="dataset.annotation_file",
            hint="check it; relative paths start at the working directory",
        )
    return [Path(file) for file in annotation_file]


def _names(indices: list[CocoIndex]) -> dict[str, tuple[int, int]]:
    """Map each video name to the index of its JSON file and its index in that file.

    Raises:
        DataError: two videos have the same name, also with their files as a prefix.
    """
    counts = Counter(name for index in indices for name in index.names)
    parent = os.path.commonpath([index.file.parent.absolute() for index in indices])
    locations: dict[str, tuple[int, int]] = {}
    for k, index in enumerate(indices):
        prefix = index.file.absolute().relative_to(parent).with_suffix("")
        for v, name in enumerate(index.names):
            name = name if counts[name] == 1 else "-".join([*prefix.parts, name])
            if name in locations:
                other = indices[locations[name][0]].file
                raise DataError(
                    f"{index.file} and {other} both have a video {name!r}",
                    hint="give each video its own id",
                )
            locations[name] = k, v
    return locations


def _finder(root: Path) -> Callable[[list[str]], tuple[str | None, list[str]]]:
    """Return a function that finds a file under ``root`` from the paths of a JSON file.

    The function takes candidate paths, and returns the existing path relative to the root, or None
    and all paths that it tried. It lists each folder once, which is much faster than a stat call
    for each of a million files.
    """

    @lru_cache(1024)
    def listing(folder: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(root / folder))
        except OSError:
            return frozenset()

    @lru_cache(1024)
    def tails(folder: str) -> list[str]:
        parts = [part for part in folder.split("/") if part not in ("", ".", "..")]
        return ["/".join(parts[k:]) for k in range(len(parts) + 1)]

    def find(candidates: list[str]) -> tuple[str | None, list[str]]:
        tried = []
        for path in candidates:
            folder, _, name = path.replace("\\", "/").rpartition("/")
            for below in tails(folder):
                tail = f"{below}/{name}" if below else name
                if name in listing(below):
                    return tail, []
                tried.append(f"{root}/{tail}")
        return None, tried

    return find
