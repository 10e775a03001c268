"""Read and score PNG masks of any tracker, in one file per frame or per object."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sam2kit.data.pictures import read_labels
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.listing import find_entry, list_folder
from sam2kit.data.sources.mask_files import SAMPLED_VIDEOS, object_names, share_decision
from sam2kit.data.sources.mask_search import is_frame_folder
from sam2kit.data.sources.mask_values import MaskDecision
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.scores import (
    CONVENTIONS,
    Convention,
    DataSetScores,
    VideoScorer,
    VideoScores,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name
from sam2kit.utils.sampling import evenly_spaced

MAX_INNER = 64  # folders that are searched for results, if the given one has none


def score_predictions(
    source: VideoSource, folder: str | Path, convention: Convention | None = None
) -> DataSetScores:
    """Score PNG masks written by any tracker.

    The files are ``FOLDER/VIDEO/FRAME.png`` with all object numbers (DAVIS), or
    ``FOLDER/VIDEO/OBJECT/FRAME.png`` with one directory per object (SA-V, and SAM 2's own tool with
    ``--per_obj_png_file``). The directory of a video ``cam1/clip`` may also have the name that
    ``sam2kit evaluate`` uses (:func:`sam2kit.utils.paths.file_name`).

    Every annotated frame needs a mask with the frame's name and size. If the convention only scores
    frames after a prompt, objects are assumed to be prompted on their first visible frame.

    Args:
        source: videos with ground truth.
        folder: directory of the masks, whose name becomes the tracker's name.
        convention: scoring convention. If None (default), ``davis2017`` if a video has more than
            one object, otherwise ``davis2016``, which merges all predicted ids into one object.

    Raises:
        DataError: a directory or file is missing; a mask is unreadable or has another size; the
            prediction has ids that are not in the ground truth (unless the convention ignores
            them); or there is no object in the ground truth.
    """
    return score_results(source, open_results(source, Path(folder)), Path(folder), convention)


def open_results(source: VideoSource, folder: Path) -> list[ResultMasks]:
    """Open the results of all videos, whose values have the same meaning.

    Raises:
        DataError: a directory is missing, or as for :class:`ResultMasks`.
    """
    candidates = {name: result_folder(folder, name) for name in source.names}
    folders = {name: path for name, path in candidates.items() if path is not None}
    missing = [name for name in source.names if name not in folders]
    if missing:
        raise DataError(
            f"{folder} has no directory for {len(missing)} of {len(source)} videos, such as "
            f"{missing[0]!r}",
            hint=_other_level(folder, source.names)
            or f"store masks as {folder.name}/VIDEO/FRAME.png or, per object, as "
            f"{folder.name}/VIDEO/OBJECT/FRAME.png, or list the videos to score in "
            "valdataset.split",
        )
    results = [ResultMasks(folders[name]) for name in source.names]
    # All files come from one tracker, so their values have the same meaning.
    share_decision(results, "auto", None, folder)
    return results


def _other_level(folder: Path, names: Sequence[str]) -> str | None:
    """Return a hint with the folder above or below that has results of all videos, or None."""
    names_inside = sorted(list_folder(folder, ()).folders) if folder.is_dir() else []
    inner = [folder / name for name in names_inside[:MAX_INNER] if not is_frame_folder(name)]
    for other in (Path(os.path.normpath(folder / "..")), *inner):
        if all(result_folder(other, name) is not None for name in names):
            return f"give {other}, which has them"
    return None


def score_results(
    source: VideoSource,
    results: Sequence[ResultMasks],
    folder: Path,
    convention: Convention | None = None,
) -> DataSetScores:
    """Score the results of :func:`open_results`; see :func:`score_predictions`."""
    # Check all files before scoring, which may take minutes.
    visibility = [first_visible_frames(source, i) for i in range(len(source))]
    object_counts = [len(first) for first, _ in visibility]
    if not any(object_counts):
        raise DataError(
            "the ground truth contains no objects",
            hint="check valdataset.data_path and valdataset.split",
        )
    if convention is None:
        convention = CONVENTIONS["davis2017" if max(object_counts) > 1 else "davis2016"]
    frames = [{t: source.frame_name(i, t) for t in visibility[i][1]} for i in range(len(source))]
    missing_files = [
        result.folder / f"{name}.png"
        for result, names in zip(results, frames, strict=True)
        for name in names.values()
        if not result.has(name)
    ]
    if missing_files:
        raise DataError(
            f"{missing_files[0]} is missing (missing masks: {len(missing_files)})",
            hint="write a mask for every annotated frame, even if no object is visible",
        )
    videos = [
        _score_video(source, i, results[i], frames[i], convention, visibility[i][0])
        for i in range(len(source))
    ]
    return DataSetScores(folder.resolve().name, videos)


def _score_video(
    source: VideoSource,
    i: int,
    result: ResultMasks,
    frames: Mapping[int, str],
    convention: Convention,
    first_visible: dict[ObjectId, int],
) -> VideoScores:
    scorer = VideoScorer(source.names[i], convention, list(first_visible))
    for t in range(source.num_frames(i)):
        truth = source.read_masks(i, t)
        prediction: dict[ObjectId, np.ndarray] = {}
        if t in frames:
            # Read the frame only if its size is not known from a mask.
            size = next((mask.shape for mask in (truth or {}).values()), None)
            prediction = result.read(frames[t], size or source.read_frame(i, t).shape[:2])
        void = source.read_void(i, t) if convention.void == "ignore" else None
        prompted = [o for o, first in first_visible.items() if first == t]
        scorer.add(t, truth, prediction, void, prompted if convention.after_prompt else ())
    return scorer.result()


def read_prediction(
    source: VideoSource, i: int, result: ResultMasks, t: int
) -> dict[ObjectId, np.ndarray]:
    """Read the masks of one frame of a video; empty if there is no file.

    Raises:
        DataError: see :meth:`ResultMasks.read`.
    """
    frame = source.frame_name(i, t)
    return result.read(frame, source.raw_frame(i, t).shape[:2]) if result.has(frame) else {}


def result_folder(folder: Path, video: str) -> Path | None:
    """Return the directory of a video's results in ``folder`` or ``folder/masks``, or None.

    It has the video's name or, as written by ``sam2kit evaluate``, the name converted to a file
    name: ``cam1/clip`` becomes ``cam1_clip-`` and a checksum.
    """
    names = dict.fromkeys([video, file_name(video)])
    bases = (folder, folder / "masks")
    candidates = [find_entry(base, name) for base in bases for name in names]
    return next((path for path in candidates if path.is_dir()), None)


class ResultMasks:
    """Read a tracker's PNG masks of one video, with all objects per file or one directory each.

    Args:
        folder: directory of the masks. If it contains PNG files, pixel values are object numbers (0
            is background), which ``objects.json`` may map to ids. Otherwise each subdirectory has
            the name of an object (``002`` is object 2), whose pixels are nonzero in its files.

    Attributes:
        decision: meaning of the values of files with object numbers, by default inferred from the
            video's files.

    Raises:
        DataError: two directories belong to one object, or ``objects.json`` cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listing = list_folder(folder, (".png",))
        self._names = object_names(folder)
        self._objects: dict[ObjectId, Path] = {}
        for name in [] if listing.files else sorted(listing.folders):
            object_id: ObjectId = int(name) if name.isdecimal() else name
            if object_id in self._objects:
                raise DataError(
                    f"{folder}: two directories belong to object {object_id}",
                    hint="keep one of them",
                )
            self._objects[object_id] = folder / name
        self._files = sorted(listing.files)
        self.decision = MaskDecision(self.sample(SAMPLED_VIDEOS), where=folder)

    def sample(self, count: int) -> list[Path]:
        """Return up to ``count`` evenly spaced files with object numbers."""
        return [self.folder / self._files[k] for k in evenly_spaced(len(self._files), count)]

    def has(self, frame: str) -> bool:
        """Return whether the frame of this name has a mask of any object."""
        folders = self._objects.values() or [self.folder]
        return any(find_entry(folder, f"{frame}.png").is_file() for folder in folders)

    def read(self, frame: str, size: tuple[int, ...]) -> dict[ObjectId, np.ndarray]:
        """Read the masks of one frame; an object without a file is absent.

        Args:
            frame: name of the frame without extension.
            size: H and W of the frame in pixels.

        Returns:
            Bool ``[H,W]`` by object.

        Raises:
            DataError: a file cannot be read or has another size.
        """
        name = f"{frame}.png"
        if not self._objects:
            path = find_entry(self.folder, name)
            ids, objects = self.decision.values.read(path)
            _check_size(path, ids.shape, size)
            return {self._names.get(n, name): ids == n for n, name in objects.items()}
        masks: dict[ObjectId, np.ndarray] = {}
        for object_id, folder in self._objects.items():
            path = find_entry(folder, name)
            if path.is_file():
                pixels = read_labels(path).pixels
                _check_size(path, pixels.shape, size)
                masks[object_id] = pixels > 0
        return masks


def _check_size(path: Path, shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    if shape != size:
        raise DataError(
            f"{path} has {shape[0]} rows and {shape[1]} columns, but its frame has "
            f"{size[0]} and {size[1]}",
            hint="write masks at the size of the frames",
        )
