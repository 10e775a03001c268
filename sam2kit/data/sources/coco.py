"""COCO JSON with videos: images that say which video they belong to, or videos with tracks."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from loguru import logger

from sam2kit.data.rle import decode
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.coco_index import CocoIndex
from sam2kit.data.sources.frame_folders import image_size, read_image
from sam2kit.data.sources.listing import read_split, stem
from sam2kit.utils.errors import DataError


class COCODataset(VideoSource):
    """Videos of one or more COCO JSONs.

    *Two forms.* Image by image: ``images`` have ``video_id`` and ``order_in_video``, which gives
    their order and may have gaps. Track by track, as YouTube-VIS and OVIS have it: ``videos`` have
    ``file_names`` in order, and an annotation has ``video_id`` and ``segmentations``, one for each
    frame, null where its object is not seen. Videos are named by their ids (numbers or texts) and
    stand in natural order.

    *Files.* ``file_name``, or ``path`` where there is none, is looked for under the root; then,
    because such paths are often those of another computer, ever shorter tails of ``file_name`` and
    of ``path`` are; at last ``path`` itself as it stands. Two images that would share a file are an
    error, so a tail never matches the wrong video.

    *Objects.* ``identity`` says what makes one, frame by frame; annotations of one object on one
    frame are merged:

    * ``track``: ``track_id``, ``instance_id`` or ``object_id``, the first that any annotation has
      (itself or in its ``attributes``); then all must. Track by track without these, the
      annotation's ``id``;
    * ``category``: the category, all of whose objects are one;
    * ``auto``: track where that is possible, else category.

    Category ids may start at 0. ``iscrowd`` makes no difference.

    *Masks* are polygons, or run lengths compressed or not. A frame without annotations shows no
    object, and is known not to. Nobody looked at one whose image has ``"annotated": false``, or, as
    interpolated masks are not true ones, on which ``keyframe``, ``is_keyframe`` (of the image or of
    any of its annotations, also in their ``attributes``) or ``is_det_keyframe`` (of the image) is
    false.

    *Several files* keep their ids apart. Videos of one name in several files get the name of the
    file before theirs: ``FILE-VIDEO``.

    Args:
        annotation_file: the JSON; or several, as a list or a pattern such as ``labels/*.json``.
        root: where the files are; None: each JSON's folder.
        split: a text file with a video on each line, or its name under ``ROOT/ImageSets``.
        identity: as above.
        files: False looks for no files: masks alone can be read, and are as large as the JSON says.
        keyframes_only: False takes interpolated masks for true ones.

    Raises:
        DataError: a damaged JSON, a missing key, an order given twice, an annotation of an unknown
            image, a track that is not as long as its video, a file that is nowhere; on reading, run
            lengths that are damaged or not of the frame's size, polygons on a file whose size is
            not what the JSON says. The message names the file, the image or annotation, and the
            key.
    """

    def __init__(
        self,
        annotation_file: str | Path | Sequence[str | Path],
        root: str | Path | None = None,
        split: str | None = None,
        identity: str = "auto",
        files: bool = True,
        keyframes_only: bool = True,
    ) -> None:
        if identity not in ("auto", "track", "category"):
            raise DataError(
                f"identity is {identity!r}; choose from auto, track, category (and for components "
                "put sam2kit.data.ConnectedObjects around category)"
            )
        found = list_files(annotation_file)
        for file in found:
            folder = Path(root) if root is not None else file.parent
            if not folder.is_dir():
                raise DataError(f"{folder} (root of {file}) is not a folder")
        self._indices = [CocoIndex(file, identity, keyframes_only) for file in found]
        places = _names(self._indices)
        self.root = Path(root) if root is not None else found[0].parent
        self.names = read_split(split, self.root, places) if split is not None else list(places)
        self._places = [places[name] for name in self.names]
        self._roots = [Path(root) if root is not None else file.parent for file in found]
        self._paths = self._find_files() if files else None
        if left := sum(index.between_keyframes for index in self._indices):
            logger.info(
                "{}: {} of {} frames are no key frames; their masks are not used",
                annotation_file,
                left,
                sum(len(index.order) for index in self._indices),
            )

    def _find_files(self) -> list[str]:
        """The files of each video as one text, relative to the root."""
        finders = [_finder(root) for root in self._roots]
        owner: dict[str, tuple[int, int]] = {}
        paths = []
        for i, (k, v) in enumerate(self._places):
            found = []
            for t, stated in enumerate(self._indices[k].files(v)):
                if not stated:
                    raise DataError(
                        f"{self._where(i, t)} has neither 'file_name' nor 'path'; give one"
                    )
                path, tried = finders[k](stated)
                if path is None:
                    raise DataError(
                        f"{self._where(i, t)} is nowhere; tried "
                        f"{', '.join(dict.fromkeys(tried))}. Give the folder that its 'file_name' "
                        "starts from as dataset.data_path"
                    )
                found.append(path)
                full = f"{self._roots[k]}/{path}"
                if owner.setdefault(full, (i, t)) != (i, t):
                    raise DataError(
                        f"{self._where(i, t)} and {self._where(*owner[full])} would both be "
                        f"{full}; give each its own 'file_name' under {self._roots[k]}"
                    )
            paths.append("\0".join(found))
        return paths

    def _where(self, i: int, t: int) -> str:
        k, v = self._places[i]
        return f"{self._indices[k].file}: {self._indices[k].frame(v, t)}"

    def num_frames(self, i: int) -> int:
        k, v = self._places[i]
        begin, end = self._indices[k].first[v : v + 2].tolist()
        return end - begin

    def order(self, i: int, t: int) -> float:
        """``order_in_video`` of frame ``t`` of video ``i``, or its place in ``file_names``."""
        index, f = self._frame(i, t)
        return float(index.order[f])

    def frame_name(self, i: int, t: int) -> str:
        return stem(self._path(i, t).name) if self._paths else f"{t:05d}"

    def frame_path(self, i: int, t: int) -> Path | None:
        return self._path(i, t) if self._paths else None

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self._path(i, t))

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        index, f = self._frame(i, t)
        if not index.annotated[f]:
            return None
        stored = index.masks(self._places[i][1], t)
        if not stored:
            return {}
        stated = tuple(index.sizes[f].tolist())
        size = image_size(self._path(i, t)) if self._paths else stated if all(stated) else None
        masks: dict[ObjectId, np.ndarray] = {}
        for owner, segmentation, where in stored:
            if isinstance(segmentation, list) and all(stated) and size != stated:
                raise DataError(
                    f"{where}: its image has 'height' and 'width' {list(stated)}, the file "
                    f"{self._path(i, t)} {list(size or ())}, and polygons do not say which they "
                    "mean; correct one of the two"
                )
            mask = decode(segmentation, size, where)
            masks[owner] = masks[owner] | mask if owner in masks else mask
        return masks

    def _frame(self, i: int, t: int) -> tuple[CocoIndex, int]:
        k, v = self._places[i]
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self.num_frames(i)}")
        return self._indices[k], int(self._indices[k].first[v]) + t

    def _path(self, i: int, t: int) -> Path:
        if self._paths is None:
            raise DataError(f"{self._where(i, t)} was opened without its files (files=False)")
        return self._roots[self._places[i][0]] / self._paths[i].split("\0")[t]


def list_files(annotation_file: str | Path | Sequence[str | Path]) -> list[Path]:
    """One file, a list of them, or those that fit a pattern, in order of their names.

    Raises:
        DataError: no file fits the pattern.
    """
    if isinstance(annotation_file, (str, Path)):
        if os.path.exists(annotation_file) or not glob.has_magic(str(annotation_file)):
            return [Path(annotation_file)]
        annotation_file = sorted(glob.glob(str(annotation_file), recursive=True))
    if not annotation_file:
        raise DataError("no file fits the pattern in dataset.annotation_file; check it")
    return [Path(file) for file in annotation_file]


def _names(indices: list[CocoIndex]) -> dict[str, tuple[int, int]]:
    """Number of the file and number of the video in it, by name."""
    common = Counter(name for index in indices for name in index.names)
    above = os.path.commonpath([index.file.parent.absolute() for index in indices])
    places: dict[str, tuple[int, int]] = {}
    for k, index in enumerate(indices):
        below = index.file.absolute().relative_to(above).with_suffix("")
        for v, name in enumerate(index.names):
            name = name if common[name] == 1 else "-".join([*below.parts, name])
            if name in places:
                other = indices[places[name][0]].file
                raise DataError(
                    f"{index.file} and {other} both have a video {name!r}; give each its own id"
                )
            places[name] = k, v
    return places


def _finder(root: Path) -> Callable[[list[str]], tuple[str | None, list[str]]]:
    """A function from the names of a file to where it is under the root, and what was tried.

    It lists folders, each once, instead of asking for each of a million files.
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

    def find(stated: list[str]) -> tuple[str | None, list[str]]:
        tried = []
        for path in stated:
            folder, _, name = path.replace("\\", "/").rpartition("/")
            for below in tails(folder):
                tail = f"{below}/{name}" if below else name
                if name in listing(below):
                    return tail, []
                tried.append(f"{root}/{tail}")
        return None, tried

    return find
