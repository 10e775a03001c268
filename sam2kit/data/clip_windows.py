"""Choose the frame numbers of clips, for training and the doctor alike; needs no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def regular_window(start: int, steps: Sequence[int], num_frames: int, stride: int) -> list[int]:
    """Return frame numbers from ``start`` on, reversing at the ends of the video.

    Args:
        start: the first frame.
        steps: distance of each frame from the first one, in strides.
        num_frames: number of frames of the video.
        stride: frames per step.
    """
    usable = range(start % stride, num_frames, stride)
    last = len(usable) - 1
    positions = start // stride + np.asarray(steps)
    # A triangle wave of period 2 * last: 0 1 2 1 0 ... for last = 2.
    reflected = last - np.abs(positions % max(2 * last, 1) - last)
    return [usable[k] for k in reflected.tolist()]


def window_to(start: int, target: int, num_frames: int, count: int, stride: int) -> list[int]:
    """Return ``count`` frame numbers from ``start`` through ``target``, reversing at the ends.

    Up to ``target`` they are evenly spaced, as close to the stride as possible.

    Args:
        start, target: two frames of the video, in any order.
        num_frames: number of frames of the video.
        count: at least 2.
        stride: frames per step after ``target``.
    """
    distance = abs(target - start)
    position = min(max(round(distance / stride), 1), count - 1)
    offsets = np.array(
        [k * distance // position for k in range(position)]
        + [distance + stride * k for k in range(count - position)]
    )
    last = num_frames - 1
    frames = start + np.sign(target - start) * offsets
    return (last - np.abs(frames % (2 * last) - last)).tolist()


def nearest_annotated(start: int, annotated: Collection[int], limit: int) -> int | None:
    """Return the nearest annotated frame after ``start`` or, if there is none, before it.

    Args:
        start: a frame.
        annotated: the annotated frames.
        limit: maximum distance.

    Returns:
        The frame, or None if there is none within the limit.
    """
    near = [t for t in annotated if t != start and abs(t - start) <= limit]
    return min(near, key=lambda t: (t < start, abs(t - start))) if near else None


def count_truth(
    starts: Collection[int],
    annotated: Collection[int],
    num_frames: int,
    count: int,
    stride: int,
    limit: int,
) -> float:
    """Return the mean number of tracked frames with ground truth per clip.

    Args:
        starts: the first frames of the clips: annotated frames that show an object.
        annotated: the annotated frames.
        num_frames: number of frames of the video.
        count: number of frames of a clip, at least 2.
        stride, limit: ``frame_stride`` and ``max_annotation_gap`` of the configuration.
    """
    known, totals = set(annotated), []
    for start in starts:
        window = regular_window(start, range(count), num_frames, stride)
        if not known.intersection(window[1:]):
            target = nearest_annotated(start, annotated, limit)
            if target is None:  # a clip starts on another frame then
                continue
            window = window_to(start, target, num_frames, count, stride)
        totals.append(sum(t in known for t in window[1:]))
    return float(np.mean(totals)) if totals else 0.0
