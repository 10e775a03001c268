"""Compare trackers by paired differences and bootstrap intervals, and choose thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.scores import DataSetScores, VideoScores

RESAMPLES = 5000
LEVEL = 0.95


def bootstrap_interval(
    groups: Sequence[np.ndarray], generator: np.random.Generator, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """Compute the 95% percentile interval of the mean of all values by resampling groups.

    This is the cluster bootstrap (Davison and Hinkley, Bootstrap Methods and their Application,
    1997, section 3.8). The objects of a video share its light, motion and length, so their scores
    are not independent: resampling single objects would give intervals that are too narrow.

    Args:
        groups: arrays ``[N_g]`` of values without NaN, one per video; empty ones are ignored.
        generator: draws the groups.
        resamples: number of bootstrap samples.

    Returns:
        Lower and upper bound. None: fewer than two groups, from which no spread can be estimated.
    """
    groups = [g for g in groups if len(g)]
    if len(groups) < 2:
        return None
    # The mean of a sample needs only the sum and the size of each group.
    sums = np.array([g.sum() for g in groups])
    counts = np.array([len(g) for g in groups])
    drawn = generator.integers(len(groups), size=(resamples, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def score_interval(
    scores: DataSetScores, generator: np.random.Generator, score: str = "J&F"
) -> dict[str, Any]:
    """Compute the mean of a score over all objects, with its bootstrap interval over videos.

    Args:
        scores: the scores of a tracker.
        generator: draws the videos.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        ``mean``; ``low`` and ``high``, the bounds of the interval; ``objects`` and ``videos``, the
        numbers of those that have the score. ``mean`` is None without objects, the bounds are None
        with fewer than two videos.
    """
    return _with_interval([list(_values(v, score).values()) for v in scores.videos], generator)


def paired_differences(
    one: DataSetScores, other: DataSetScores, generator: np.random.Generator, score: str = "J&F"
) -> dict[str, Any]:
    """Compute the difference between two trackers on the same objects, with its interval.

    Args:
        one, other: scores on the same videos. Objects that only one of them has a score for are
            left out and counted in ``unpaired``.
        generator: draws the videos of the bootstrap.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        ``mean``, ``low`` and ``high`` of ``one`` minus ``other``; numbers of ``objects`` and
        ``videos``; numbers of objects on which ``one`` is ``better`` and ``worse``; ``unpaired``;
        and ``differences``, one entry per object with ``video``, ``object`` and ``difference``, the
        largest difference first.
    """
    others = {video.name: _values(video, score) for video in other.videos}
    rows, groups, unpaired = [], [], 0
    for video in one.videos:
        values, other_values = _values(video, score), others.pop(video.name, {})
        paired = [identity for identity in values if identity in other_values]
        unpaired += len(values.keys() ^ other_values.keys())
        groups.append([values[identity] - other_values[identity] for identity in paired])
        rows += [
            {"video": video.name, "object": identity, "difference": difference}
            for identity, difference in zip(paired, groups[-1], strict=True)
        ]
    differences = [row["difference"] for row in rows]
    return {
        "score": score,
        "trackers": [one.tracker, other.tracker],
        **_with_interval(groups, generator),
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
        # What is left in ``others`` are the videos that only the other tracker has.
        "unpaired": unpaired + sum(map(len, others.values())),
        "differences": sorted(rows, key=lambda row: -row["difference"]),
    }


def _values(video: VideoScores, score: str) -> dict[Any, float]:
    """Return one score of each object that has it, by object."""
    return {o: s[score] for o, s in video.objects().items() if s[score] is not None}


def _with_interval(groups: list[list[float]], generator: np.random.Generator) -> dict[str, Any]:
    values = np.concatenate([np.zeros(0), *groups])  # the empty array: there may be no groups
    bounds = bootstrap_interval([np.array(g) for g in groups], generator)
    low, high = bounds or (None, None)
    return {
        "mean": float(values.mean()) if len(values) else None,
        "low": low,
        "high": high,
        "objects": len(values),
        "videos": sum(map(bool, groups)),
    }


def iou_by_threshold(logits: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Compute the IoU of ``logits > threshold`` with the ground truth for each threshold.

    Args:
        logits: float ``[H,W]``.
        truth: bool ``[H,W]``.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` float64, 1 where both masks are empty. :func:`best_threshold` takes the mean of
        these over many frames.
    """
    return np.array([iou(logits > threshold, truth) for threshold in thresholds])


def best_threshold(thresholds: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold with the highest score; among equal ones, the one closest to 0.

    The default threshold of tracking is 0, so it changes only if that improves the score.

    Args:
        thresholds, scores: ``[K]``.
    """
    best = np.flatnonzero(scores == scores.max())
    return float(thresholds[best[np.abs(thresholds[best]).argmin()]])


def presence_by_threshold(videos: Sequence[VideoScores], thresholds: np.ndarray) -> np.ndarray:
    """Compute the balanced accuracy of predicting presence from object scores, per threshold.

    An object is predicted present if its score exceeds the threshold. Balanced accuracy is the mean
    of two fractions: visible frames predicted present, and absent frames predicted absent (Youden's
    index, scaled to 0..1). Rare absences thus have the same weight as the many visible frames.

    Args:
        videos: scores with ``object_score``. To avoid a bias, these videos must not be the ones
            that are reported on.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` from 0 to 1; all NaN if no scored frame is visible, or none is absent.
    """
    usable = [v.scored & np.isfinite(v.object_score) for v in videos]
    score = np.concatenate([v.object_score[u] for v, u in zip(videos, usable, strict=True)])
    present = np.concatenate([v.truth_present[u] for v, u in zip(videos, usable, strict=True)])
    if present.all() or not present.any():
        return np.full(len(thresholds), np.nan)
    passed = score > np.asarray(thresholds)[:, None]
    return (passed[:, present].mean(1) + (~passed[:, ~present]).mean(1)) / 2
