"""Read and score masks in DAVIS layout that any tracker wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.mask_files import object_names, read_id_mask, values_in
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

    Every annotated frame of every video needs a mask of the frame's name and size. Where the
    convention counts frames after a prompt, an object's first visible frame is taken for it.

    Args:
        source: the truth.
        folder: the masks; its name becomes the tracker's.
        convention: None takes ``davis2016`` where no video of the truth has more than one object
            (then all that a result shows is that object, whatever numbers it has), else
            ``davis2017``.

    Raises:
        DataError: no such folder or file, an unreadable mask, another size, ids that only the
            prediction has (unless the convention ignores them), no object in any video.
    """
    folder = Path(folder)
    missing = [name for name in source.names if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no folder for {len(missing)} of {len(source)} videos, such as "
            f"{missing[0]!r}; results lie in {folder.name}/VIDEO/FRAME.png (name the videos to "
            "score in valdataset.split)"
        )
    seen = [first_visible_frames(source, i) for i in range(len(source))]
    objects = [len(first) for first, _ in seen]
    if not any(objects):
        raise DataError("the truth shows no object in any video; there is nothing to score")
    if convention is None:
        convention = CONVENTIONS["davis2017" if max(objects) > 1 else "davis2016"]
    paths = [
        {t: folder / name / f"{source.frame_name(i, t)}.png" for t in seen[i][1]}
        for i, name in enumerate(source.names)
    ]
    absent = [path for files in paths for path in files.values() if not path.is_file()]
    if absent:
        raise DataError(
            f"{absent[0]} is missing, one of {len(absent)}: every annotated frame needs a mask "
            "of its name (an empty one where nothing was found)"
        )
    videos = [
        _score_video(source, i, paths[i], convention, seen[i][0], object_names(folder / name))
        for i, name in enumerate(source.names)
    ]
    return DataSetScores(folder.resolve().name, videos)


def _score_video(
    source: VideoSource,
    i: int,
    files: Mapping[int, Path],
    convention: Convention,
    first_seen: dict[ObjectId, int],
    names: Mapping[int, ObjectId],
) -> VideoScores:
    scorer = VideoScorer(source.names[i], convention, list(first_seen))
    for t in range(source.num_frames(i)):
        truth = source.read_masks(i, t)
        found: dict[ObjectId, np.ndarray] = {}
        if t in files:
            size = next((mask.shape for mask in (truth or {}).values()), None)
            found = read_result(files[t], names, size or source.read_frame(i, t).shape[:2])
        void = source.read_void(i, t) if convention.void == "ignore" else None
        prompted = [o for o, first in first_seen.items() if first == t]
        scorer.add(t, truth, found, void, prompted if convention.after_prompt else ())
    return scorer.result()


def read_result(
    path: Path, names: Mapping[int, ObjectId], size: tuple[int, ...]
) -> dict[ObjectId, np.ndarray]:
    """Read one PNG of a tracker's masks, bool ``[H,W]`` by object.

    Args:
        names: see :func:`object_names`.
        size: H and W of the frame.

    Raises:
        DataError: unreadable, or of another size.
    """
    ids = read_id_mask(path)
    if ids.shape != size:
        raise DataError(
            f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, its frame "
            f"{size[0]} and {size[1]}; results must have the frames' size"
        )
    return {names.get(n, n): ids == n for n in values_in(ids) if n}
