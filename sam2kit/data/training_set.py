"""Collect accepted masks of annotated videos in a folder to train on, without copying the videos.

:class:`~sam2kit.data.sources.training_set.TrainingSet` reads the folder; its documentation lists
the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource

FORMATS = ("davis", "coco")
PROVENANCE = ("click", "box", "painted", "propagated", "imported", "automatic", "accepted")


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
    """What :func:`add_to_training_set` did.

    Attributes:
        folder: the training set.
        video: name of the video in it.
        written: number of frames that the set did not have before.
        replaced: number of frames whose masks changed.
        unchanged: number of frames that the set has with the same masks already.
        overlaps: number of frames on which masks overlap, so that palette PNG cannot hold all.
    """

    folder: Path
    video: str
    written: int = 0
    replaced: int = 0
    unchanged: int = 0
    overlaps: int = 0


def add_to_training_set(
    folder: str | Path,
    source: VideoSource,
    i: int,
    frames: Sequence[AcceptedFrame],
    *,
    names: Mapping[ObjectId, str] | None = None,
    format: str | None = None,
    copy: bool = False,
) -> TrainingSetSummary:
    """Add accepted frames of one video to a training set, which is created if it is missing.

    The masks of a frame replace those that the set has for it; other frames and videos are kept.
    Frames that were never added are unannotated. The set refers to the video by a path relative to
    the folder. Frames are copied only if no file holds them, or on request.

    An interruption leaves a complete set with some of the frames; calling again adds the rest.

    Args:
        folder: the training set.
        source: opened by :func:`~sam2kit.data.build.open_source` or similar.
        i: index of the video in ``source``.
        frames: the frames, in any order.
        names: names of objects to show to people. None (default): the ids.
        format: ``davis`` (PNG files) or ``coco`` (one JSON file, in which masks may overlap). None
            (default): the format of the existing set, or ``davis``.
        copy: also copy the video into the folder, so that the folder can be moved alone.

    Raises:
        ConfigError: the folder cannot be written, holds something else, or has another format.
        DataError: a frame is not in the video, or a mask does not have the size of its frame.
    """
    raise NotImplementedError
