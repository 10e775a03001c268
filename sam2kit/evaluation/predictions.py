"""Read and score masks that any tracker wrote in DAVIS layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.listing import find_entry
from sam2kit.data.sources.mask_files import object_names
from sam2kit.data.sources.mask_values import MaskValues, decide, values_in
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.scores import (
    CONVENTIONS,
    Convention,
    DataSetScores,
    VideoScorer,
    VideoScores,
)
from sam2kit.utils.errors import DataError


def score_predictions(
    source: VideoSource, folder: str | Path, convention: Convention | None = None
) -> DataSetScores:
    """Score masks in DAVIS layout, ``FOLDER/VIDEO/FRAME.png``, written by any tracker.

    Every annotated frame of every video needs a mask of the frame's name and size. If the
    convention scores only frames after a prompt, each object is assumed to have been prompted on
    its first visible frame.

    Args:
        source: videos with ground truth.
        folder: the masks. The name of the folder becomes the name of the tracker.
        convention: None (default): ``davis2017`` if a video has more than one object, otherwise
            ``davis2016``, which merges all ids of the prediction into one object.

    Raises:
        DataError: a folder or file is missing; a mask is unreadable or of another size; the
            prediction has ids that the ground truth does not have (unless the convention ignores
            them); or no video shows an object.
    """
    # Check all files before the first video is scored, which may take minutes.
    folder = Path(folder)
    folders = [find_entry(folder, name) for name in source.names]
    missing = [name for name, path in zip(source.names, folders, strict=True) if not path.is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no folder for {len(missing)} of {len(source)} videos, such as "
            f"{missing[0]!r}",
            hint=f"store masks as {folder.name}/VIDEO/FRAME.png, or list the videos to score in "
            "valdataset.split",
        )
    visibility = [first_visible_frames(source, i) for i in range(len(source))]
    object_counts = [len(first) for first, _ in visibility]
    if not any(object_counts):
        raise DataError(
            "the ground truth shows no object in any video",
            hint="check valdataset.data_path and valdataset.split",
        )
    if convention is None:
        convention = CONVENTIONS["davis2017" if max(object_counts) > 1 else "davis2016"]
    paths = [
        {t: find_entry(path, f"{source.frame_name(i, t)}.png") for t in visibility[i][1]}
        for i, path in enumerate(folders)
    ]
    missing_files = [path for files in paths for path in files.values() if not path.is_file()]
    if missing_files:
        raise DataError(
            f"{missing_files[0]} is missing, one of {len(missing_files)} missing masks",
            hint="write a mask for every annotated frame, an empty one where no object is visible",
        )
    # The files are those of one tracker, so their values have one meaning.
    values = decide([path for files in paths for path in files.values()], where=str(folder))
    videos = [
        _score_video(
            source, i, paths[i], convention, visibility[i][0], object_names(folders[i]), values
        )
        for i in range(len(source))
    ]
    return DataSetScores(folder.resolve().name, videos)


def _score_video(
    source: VideoSource,
    i: int,
    files: Mapping[int, Path],
    convention: Convention,
    first_visible: dict[ObjectId, int],
    names: Mapping[int, ObjectId],
    values: MaskValues,
) -> VideoScores:
    scorer = VideoScorer(source.names[i], convention, list(first_visible))
    for t in range(source.num_frames(i)):
        truth = source.read_masks(i, t)
        prediction: dict[ObjectId, np.ndarray] = {}
        if t in files:
            # Read the frame only if no mask has its size.
            size = next((mask.shape for mask in (truth or {}).values()), None)
            size = size or source.read_frame(i, t).shape[:2]
            prediction = read_result(files[t], names, size, values)
        void = source.read_void(i, t) if convention.void == "ignore" else None
        prompted = [o for o, first in first_visible.items() if first == t]
        scorer.add(t, truth, prediction, void, prompted if convention.after_prompt else ())
    return scorer.result()


def read_result(
    path: Path,
    names: Mapping[int, ObjectId],
    size: tuple[int, ...],
    values: MaskValues | None = None,
) -> dict[ObjectId, np.ndarray]:
    """Read a tracker's masks on one frame from a PNG file.

    Args:
        path: the file; a pixel's value is the number of its object, and 0 is background.
        names: object by number; see :func:`object_names`. A number without a name is the object.
        size: H and W of the frame in pixels.
        values: what the values of the tracker's files mean. None (default): object numbers.

    Returns:
        Bool ``[H,W]`` by object.

    Raises:
        DataError: the file cannot be read or has another size.
    """
    ids, colours = (values or MaskValues()).read(path)
    names = {**colours, **names}
    if ids.shape != size:
        raise DataError(
            f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, but its frame has "
            f"{size[0]} and {size[1]}",
            hint="write masks at the size of the frames",
        )
    return {names.get(n, n): ids == n for n in values_in(ids) if n}
