"""Read and score results stored as label images in the format of the dataset.

``VIDEO_labels.tif`` for TIFF stacks, ``VIDEO_RES/mask000.tif`` with ``res_track.txt`` for the Cell
Tracking Challenge, and ``VIDEO.nii.gz`` for volumes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from sam2kit.data.lineage import Track, read_tracks, tracks_from
from sam2kit.data.sources.base import ObjectId, VideoSource, innermost
from sam2kit.data.sources.listing import list_folder
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.mask_search import label_base
from sam2kit.data.sources.nifti import NIFTI_ENDINGS, load_nifti
from sam2kit.data.sources.stacks import (
    integer_labels,
    labels_in,
    masks_by_label,
    overlapping,
)
from sam2kit.data.sources.tiff import TIFF_ENDINGS, TiffSequence, TiffStack, find_labels, sidecar
from sam2kit.data.sources.volumes import volume_stem
from sam2kit.evaluation.field_scores import field_scores
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.scores import (
    CONVENTIONS,
    Convention,
    DataSetScores,
    VideoScorer,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name
from sam2kit.utils.text import visible_text


class LabelResults(NamedTuple):
    """The results of one video.

    Attributes:
        path: the file or directory.
        read: function that returns the labels of a frame, ``[H,W]``, or None if it has none.
        names: object ids by label, where they differ from the label.
        tracks: the tracks with their parents, from the first frame of the source, or None if the
            results have none.
    """

    path: Path
    read: Callable[[int], np.ndarray | None]
    names: Mapping[int, ObjectId]
    tracks: Mapping[int, Track] | None = None


def find_label_results(source: VideoSource, folder: Path) -> list[LabelResults] | None:
    """Find results stored as label images; return None unless every video has results.

    Raises:
        DataError: a file is damaged, or does not have one label image per frame.
    """
    if not folder.is_dir():
        return None
    finders = (_find_ctc, _find_nifti, _find_tiff)
    results = []
    for i in range(len(source)):
        result = next((r for r in (find(source, i, folder) for find in finders) if r), None)
        if result is None:
            return None
        results.append(result)
    return results


def _find_ctc(source: VideoSource, i: int, folder: Path) -> LabelResults | None:
    name = file_name(source.name(i))
    path = folder if folder.name == f"{name}_RES" and len(source) == 1 else folder / f"{name}_RES"
    if not path.is_dir():
        return None
    files = [n for n in list_folder(path, TIFF_ENDINGS).files if re.match(r"mask\d+\.", n)]
    images = {int(re.findall(r"\d+", n)[0]): path / n for n in files}
    count = source.num_frames(i)
    numbers = [int(n) for t in range(count) for n in re.findall(r"\d+$", source.frame_name(i, t))]
    start = innermost(source, i)[2]
    if len(numbers) != count:
        numbers, start = list(range(count)), 0
    if missing := [n for n in numbers if n not in images]:
        raise DataError(
            f"{path} has no mask{missing[0]:03d}.tif (missing masks: {len(missing)})",
            hint="write a label image for every frame, even if no object is visible",
        )
    stack = TiffSequence([images[n] for n in numbers])
    names = read_object_names(path / "objects.json")
    # Like the files, the tracks of a part of a video have the frame numbers of the whole video.
    tracks = tracks_from(read_tracks(path / "res_track.txt"), start)
    return LabelResults(path, stack.read, names, tracks)


def _find_nifti(source: VideoSource, i: int, folder: Path) -> LabelResults | None:
    geometry, name = source.geometry(i), file_name(source.name(i))
    files = list_folder(folder, NIFTI_ENDINGS).files
    for file in sorted(files) if geometry is not None else ():
        stem = volume_stem(folder / file, NIFTI_ENDINGS)
        if name not in (stem, label_base(stem)):
            continue
        path = folder / file
        volume, count = load_nifti(path), source.num_frames(i)
        assert geometry is not None
        if geometry.num_frames(volume.shape) != count:
            raise DataError(
                f"{path} has {geometry.num_frames(volume.shape)} slices, but {name} has {count}",
                hint="write results with the shape of their volume",
            )
        names = read_object_names(folder / f"{stem}.json")
        return LabelResults(path, partial(geometry.frame, volume), names)
    return None


def _find_tiff(source: VideoSource, i: int, folder: Path) -> LabelResults | None:
    path = find_labels(folder, file_name(source.name(i)))
    if path is None or not path.is_file():
        return None
    count = source.num_frames(i)
    stack = TiffStack(path, num_frames=count)
    if stack.num_frames != count:
        raise DataError(
            f"{path} has {stack.num_frames} label images, but {source.name(i)} has {count} frames",
            hint="write one label image per frame",
        )
    tracks = sidecar(path, ".txt")
    names = read_object_names(sidecar(path, ".json"))
    return LabelResults(path, stack.read, names, read_tracks(tracks) if tracks.is_file() else None)


def score_label_results(
    source: VideoSource,
    results: list[LabelResults],
    folder: Path,
    convention: Convention | None = None,
) -> tuple[DataSetScores, dict[str, dict[str, Any]]]:
    """Score label images of every video.

    If a result has ids that are not in the ground truth, as with most cell trackers, its objects
    are matched one-to-one with ground-truth objects for J and F, greedily by the number of common
    pixels. SEG, DET and TRA match objects in each frame separately.

    Args:
        source: videos with ground truth.
        results: the results from :func:`find_label_results`.
        folder: directory of the results, whose name becomes the tracker's name.
        convention: scoring convention. If None (default), ``all_frames``.

    Returns:
        The scores, and the result of :func:`~sam2kit.evaluation.field_scores.field_scores` by
        video.

    Raises:
        DataError: a label image is damaged, or differs in size from its frame.
    """
    convention = convention or CONVENTIONS["all_frames"]
    videos, fields = [], {}
    for i, result in enumerate(results):
        name = source.name(i)
        first, _ = first_visible_frames(source, i)
        ids = _object_ids(source, i, result, set(first))
        scorer = VideoScorer(name, convention, list(first))
        for t in range(source.num_frames(i)):
            truth = source.read_masks(i, t)
            masks = masks_by_label(_labels(source, i, t, result), ids, str(result.path))
            known = {o: m for o, m in masks.items() if o in first}
            prompted = [o for o, start in first.items() if start == t]
            void = source.read_void(i, t) if convention.void == "ignore" else None
            scorer.add(t, truth, known, void, prompted if convention.after_prompt else ())
        videos.append(scorer.result())
        names = {} if result.tracks is not None else result.names

        def predicted(t: int, i: int = i, result: LabelResults = result, names: Any = names) -> Any:
            return masks_by_label(_labels(source, i, t, result), names, str(result.path))

        fields[name] = field_scores(source, i, predicted, result.tracks)
    return DataSetScores(folder.resolve().name, videos), fields


def _labels(source: VideoSource, i: int, t: int, result: LabelResults) -> np.ndarray:
    """Read the labels of a frame and check their size."""
    masks = source.read_masks(i, t)
    size = next((m.shape for m in (masks or {}).values()), None)
    size = size or source.raw_frame(i, t).shape[:2]
    labels = result.read(t)
    if labels is None:
        return np.zeros(size, np.uint16)
    if labels.shape != size:
        raise DataError(
            f"{result.path}, frame {t}: the labels have the shape {labels.shape}, but the frame "
            f"has {size[0]} rows and {size[1]} columns",
            hint="write labels at the size of the frames",
        )
    return integer_labels(labels, str(result.path))


def _object_ids(
    source: VideoSource, i: int, result: LabelResults, known: set[ObjectId]
) -> dict[int, ObjectId]:
    """Return the ground-truth object of each label in a result."""
    common: Counter[tuple[int, ObjectId]] = Counter()
    present: set[int] = set()
    numbers: dict[int, ObjectId] = dict(enumerate(sorted(known, key=str), 1))
    for t in range(source.num_frames(i)):
        labels = _labels(source, i, t, result)
        present |= set(labels_in(labels))
        truth = np.zeros(labels.shape, np.int64)
        masks = source.read_masks(i, t) or {}
        for number, object_id in numbers.items():
            if object_id in masks:
                truth[masks[object_id]] = number
        for label, number, count in overlapping(labels, truth):
            if label and number:
                common[label, numbers[number]] += count
    named = {label: result.names.get(label, label) for label in present}
    if set(named.values()) <= known:
        return named
    ids: dict[int, ObjectId] = {}
    for (label, object_id), _ in common.most_common():
        if label not in ids and object_id not in ids.values():
            ids[label] = object_id
    logger.info(
        "{}: labels differ from the ground truth's ids; matched {} of {} with objects by overlap",
        visible_text(source.name(i)),
        len(ids),
        len(present),
    )
    # An unmatched label must not be confused with the object of the same number.
    return ids | {label: f"unmatched {label}" for label in present - set(ids)}
