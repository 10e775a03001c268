"""Compute field-specific scores for cell tracking and medical volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sam2kit.data.lineage import Track, tracks_from
from sam2kit.data.sources.base import ObjectId, VideoSource, innermost
from sam2kit.data.sources.ctc import CTCDataset
from sam2kit.data.sources.stacks import labels_in
from sam2kit.data.sources.tiff import TiffDataset
from sam2kit.evaluation.cell_tracking import CellTrackingScorer
from sam2kit.evaluation.volume_scores import dice, hd95

Masks = Mapping[ObjectId, np.ndarray]
CELL_SCORES = ("SEG", "DET", "TRA")
VOLUME_SCORES = ("volume_dice", "HD95")
FIELD_SCORES = CELL_SCORES + VOLUME_SCORES


def field_scores(
    source: VideoSource,
    i: int,
    predicted: Callable[[int], Masks],
    tracks: Mapping[int, Track] | None = None,
) -> dict[str, Any]:
    """Compute the field-specific scores of a video.

    Args:
        source: the videos.
        i: index of the video.
        predicted: function that returns the masks of a frame, bool ``[H,W]`` by object. Where masks
            overlap, the later mask is used.
        tracks: predicted tracks, whose labels are then the object ids; frames count from the first
            one of ``source``. None (default): no predicted parents.

    Returns:
        ``SEG``, ``DET`` and ``TRA`` for TIFF stacks and Cell Tracking Challenge data
        (:meth:`~sam2kit.evaluation.cell_tracking.CellTrackingScorer.result`); ``volume_dice``,
        ``HD95`` in mm and ``volume_objects``, the scores of each object, for volumes; otherwise
        nothing.
    """
    located, k, start = innermost(source, i)
    if isinstance(located, CTCDataset):
        frames = range(start, start + source.num_frames(i))
        return _score_markers(located, k, frames, predicted, tracks)
    if isinstance(located, TiffDataset):
        return _score_cells(source, i, predicted, tracks)
    if located.geometry(k) is not None:
        return _score_volume(source, i, predicted)
    return {}


def _score_markers(
    source: CTCDataset,
    i: int,
    frames: range,
    predicted: Callable[[int], Masks],
    tracks: Mapping[int, Track] | None,
) -> dict[str, Any]:
    scorer = CellTrackingScorer(tracks_from(source.tracks(i), frames.start), tracks)
    numbers: dict[ObjectId, int] = {}
    for k, t in enumerate(frames):
        result = _label_image(predicted(k), numbers, source.frame_size(i), tracks is not None)
        scorer.add(source.markers(i, t), source.segmentation(i, t), result)
    return scorer.result()


def _score_cells(
    source: VideoSource,
    i: int,
    predicted: Callable[[int], Masks],
    tracks: Mapping[int, Track] | None,
) -> dict[str, Any]:
    """Score a video whose masks are both segmentation and markers."""
    truth_numbers: dict[ObjectId, int] = {}
    numbers: dict[ObjectId, int] = {}
    lineage: dict[int, Track] = {}
    scorer = CellTrackingScorer(lineage, tracks)
    seen: dict[ObjectId, tuple[int, int]] = {}  # first and last visible frame
    for t in range(source.num_frames(i)):
        masks = source.read_masks(i, t)
        size = next((m.shape for m in (masks or {}).values()), None)
        size = size or source.read_frame(i, t).shape[:2]
        truth = None if masks is None else _label_image(masks, truth_numbers, size)
        result = _label_image(predicted(t), numbers, size, tracks is not None)
        scorer.add(truth, truth, result)
        for o, mask in (masks or {}).items():
            if mask.any():
                seen[o] = (seen.get(o, (t, t))[0], t)
    parents = source.parents(i)
    lineage |= {
        truth_numbers[o]: Track(*span, truth_numbers.get(parents.get(o, ""), 0))
        for o, span in seen.items()
    }
    return scorer.result()


def _label_image(
    masks: Masks, numbers: dict[ObjectId, int], size: tuple[int, ...], keep_ids: bool = False
) -> np.ndarray:
    """Return the masks as ``[H,W]`` labels.

    Args:
        masks: bool ``[H,W]`` by object.
        numbers: label of each object, filled from 1 on.
        size: rows and columns.
        keep_ids: use the object ids as labels.
    """
    image = np.zeros(size, np.int32)
    for object_id, mask in masks.items():
        number = object_id if keep_ids else numbers.setdefault(object_id, len(numbers) + 1)
        image[mask] = number
    return image


def _score_volume(source: VideoSource, i: int, predicted: Callable[[int], Masks]) -> dict[str, Any]:
    geometry = source.geometry(i)
    assert geometry is not None
    truth_numbers: dict[ObjectId, int] = {}
    frames = []
    for t in range(source.num_frames(i)):
        if (masks := source.read_masks(i, t)) is None:
            continue
        size = next((m.shape for m in masks.values()), None) or source.read_frame(i, t).shape[:2]
        truth = _label_image(masks, truth_numbers, size)
        frames.append((truth, _label_image(predicted(t), truth_numbers, size)))
    objects = {}
    shown = {number for truth, _ in frames for number in labels_in(truth)}
    for object_id, number in truth_numbers.items():
        if number not in shown:
            continue  # the object is only in the prediction
        one, other = (np.stack([frame[k] == number for frame in frames]) for k in (0, 1))
        distance = hd95(one, other, geometry.spacing)
        objects[str(object_id)] = {"dice": dice(one, other), "HD95": distance}
    return volume_summary([objects]) | {"volume_objects": objects}


def volume_summary(videos: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Return means over the objects of all videos.

    Args:
        videos: ``volume_objects`` of each video.

    Returns:
        ``volume_dice``; ``HD95`` in mm over the objects for which it is defined; and
        ``HD95_undefined``, the number of objects without a predicted voxel.
    """
    objects = [scores for video in videos for scores in video.values()]
    distances = [o["HD95"] for o in objects if o["HD95"] is not None]
    return {
        "volume_dice": _mean([o["dice"] for o in objects]),
        "HD95": _mean(distances),
        "HD95_undefined": len(objects) - len(distances),
    }


def field_summary(videos: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over videos for SEG, DET and TRA, and over objects for volumes."""
    videos = list(videos)
    scores: dict[str, Any] = {}
    cells = [video for video in videos if "TRA" in video]
    if cells:
        scores = {k: _mean([v[k] for v in cells if v[k] is not None]) for k in CELL_SCORES}
    volumes = [video["volume_objects"] for video in videos if "volume_objects" in video]
    return scores | volume_summary(volumes) if volumes else scores


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
