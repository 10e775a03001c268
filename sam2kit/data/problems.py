"""Describe problems of a video, for training and the doctor alike.

Training raises what the doctor reports, so both use the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from shlex import quote

import numpy as np

from sam2kit.data.sources.base import IGNORED, ObjectId, Remark, VideoSource
from sam2kit.utils.errors import DataError

MAX_LISTED = 10  # frames that a message lists


def frame_label(source: VideoSource, i: int, t: int) -> str:
    """Name a frame in messages: by its file if it has one, otherwise by video and frame name."""
    path = source.frame_path(i, t)
    return str(path) if path else f"video {source.name(i)!r}, frame {source.frame_name(i, t)}"


def too_short(name: str, count: int, span: int) -> str:
    """Describe a video of ``count`` frames that is shorter than the ``span`` of a clip."""
    return f"video {name!r} has {count} frames, but a clip spans {span}"


def nothing_visible(name: str, count: int, image_size: int) -> DataError:
    """Make the error for a video of ``count`` frames without an object to train on."""
    return DataError(
        f"video {name!r}: none of its {count} frames shows an object at {image_size} pixels",
        hint="remove the video from the split or annotate it",
    )


def no_masks(where: str, section: str = "dataset", remarks: Sequence[Remark] = ()) -> DataError:
    """Make the error for data without any masks, if generated objects are not enabled.

    Args:
        where: the dataset.
        section: its section of the configuration.
        remarks: the remarks of the source: the first unread file may contain the masks.
    """
    unread = next((r for r in remarks if r.kind == IGNORED), None)
    candidate = f" (not read: {unread.where})" if unread else ""
    return DataError(
        f"{where} has no masks, so there is nothing to train on or to score{candidate}",
        key=f"{section.replace('valdataset', 'dataset')}.synthetic_objects",
        value=0,
        expected="above 0 for videos without masks",
        hint=f"draw masks with: sam2kit annotate {quote(where)}; if masks are stored elsewhere, "
        "give dataset.masks_path or dataset.corrections; dataset.synthetic_objects=3 trains on "
        "generated objects that are composited onto the frames",
    )


def truth_out_of_reach(
    name: str, annotated: Sequence[int], shown: Sequence[int], limit: int
) -> DataError:
    """Make the error for a video in which no clip has ground truth after the prompted frame.

    Args:
        name: name of the video.
        annotated: its annotated frames, sorted.
        shown: annotated frames that show an object, at least one.
        limit: value of ``dataset.max_annotation_gap``.
    """
    listed = ", ".join(map(str, annotated[:MAX_LISTED])) + ", ..." * (len(annotated) > MAX_LISTED)
    more = "annotate another frame of this video, or remove the video from the split"
    if len(annotated) < 2:
        return DataError(
            f"video {name!r}: only frame {listed} is annotated, so no tracked frame has "
            "ground truth",
            hint=more,
        )
    gap = min(abs(u - t) for t in shown for u in annotated if u != t)
    return DataError(
        f"video {name!r}: its annotated frames {listed} are too far apart, so no tracked frame has "
        "ground truth",
        key="dataset.max_annotation_gap",
        value=limit,
        expected=f"at least {gap}",
        hint=f"set dataset.max_annotation_gap={gap}, or {more}",
    )


def mixed_frame_sizes(name: str, sizes: Iterable[tuple[int, ...]]) -> DataError:
    """Make the error for a video with frames of several sizes (rows, columns)."""
    return DataError(
        f"video {name!r}: its frames differ in size, {sorted(set(sizes))}",
        hint="make all frames of a video the same size",
    )


def mask_size_mismatch(
    frame: str, size: tuple[int, ...], masks: Mapping[ObjectId, np.ndarray] | None
) -> DataError | None:
    """Make the error for the first mask that does not have the size of its frame.

    Args:
        frame: name of the frame (:func:`frame_label`).
        size: rows and columns of the frame.
        masks: the masks by object. None: the frame is unannotated.

    Returns:
        The error; None if all masks have the size of the frame.
    """
    for object_id, mask in (masks or {}).items():
        if mask.shape != size:
            return DataError(
                f"{frame}: the mask of object {object_id!r} has {mask.shape[0]} rows and "
                f"{mask.shape[1]} columns, but the frame has {size[0]} and {size[1]}",
                hint="export masks at the size of their frames",
            )
    return None
