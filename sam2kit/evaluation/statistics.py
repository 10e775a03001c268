"""Comparing trackers: paired differences, bootstrap intervals, thresholds chosen on other data."""

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
    """The 95% percentile interval of the mean of all values, resampling whole groups.

    The objects of a video share its light, motion and length, so that resampling videos with all
    their objects gives honest intervals and resampling objects too narrow ones (the cluster
    bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

    Args:
        groups: ``[N_g]`` values each, without NaN; empty groups do not count.
        generator: draws the groups.
        resamples: how often.

    Returns:
        Lower and upper bound; None for fewer than two groups, which tell nothing of the spread.
    """
    groups = [g for g in groups if len(g)]
    if len(groups) < 2:
        return None
    sums = np.array([g.sum() for g in groups])
    counts = np.array([len(g) for g in groups])
    drawn = generator.integers(len(groups), size=(resamples, len(groups)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def score_interval(
    scores: DataSetScores, generator: np.random.Generator, score: str = "J&F"
) -> dict[str, Any]:
    """The mean of a score over all objects with its interval, videos resampled.

    Returns:
        ``mean``, ``low``, ``high`` (None where there is nothing to take them of), ``objects``,
        ``videos``.
    """
    return _with_interval([list(_values(v, score).values()) for v in scores.videos], generator)


def paired_differences(
    one: DataSetScores, other: DataSetScores, generator: np.random.Generator, score: str = "J&F"
) -> dict[str, Any]:
    """How much better ``one`` is than ``other`` on the same objects, videos resampled.

    Args:
        one, other: scores on the same videos; objects that either has no score for are left out
            and counted in ``unpaired``.
        generator: draws the videos.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        ``mean``, ``low``, ``high`` of the differences, ``objects``, ``videos``, ``better`` and
        ``worse`` (numbers of objects), ``unpaired``, and ``differences``: one entry for each object
        with ``video``, ``object`` and ``difference``, the largest first.
    """
    others = {video.name: _values(video, score) for video in other.videos}
    rows, groups, unpaired = [], [], 0
    for video in one.videos:
        mine, theirs = _values(video, score), others.pop(video.name, {})
        both = [identity for identity in mine if identity in theirs]
        unpaired += len(mine.keys() ^ theirs.keys())
        groups.append([mine[identity] - theirs[identity] for identity in both])
        rows += [
            {"video": video.name, "object": identity, "difference": difference}
            for identity, difference in zip(both, groups[-1], strict=True)
        ]
    values = [row["difference"] for row in rows]
    return {
        "score": score,
        "trackers": [one.tracker, other.tracker],
        **_with_interval(groups, generator),
        "better": sum(v > 0 for v in values),
        "worse": sum(v < 0 for v in values),
        "unpaired": unpaired + sum(map(len, others.values())),
        "differences": sorted(rows, key=lambda row: -row["difference"]),
    }


def _values(video: VideoScores, score: str) -> dict[Any, float]:
    """A score by object, of the objects that have one."""
    return {o: s[score] for o, s in video.objects().items() if s[score] is not None}


def _with_interval(groups: list[list[float]], generator: np.random.Generator) -> dict[str, Any]:
    values = np.concatenate([np.zeros(0), *groups])
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
    """Return the IoU of ``logits > threshold`` with the truth for each threshold.

    Args:
        logits: float ``[H,W]``.
        truth: bool ``[H,W]``.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` float64; 1 where both masks are empty. Means of it over many frames go into
        :func:`best_threshold`.
    """
    return np.array([iou(logits > threshold, truth) for threshold in thresholds])


def best_threshold(thresholds: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the highest score; of equal ones the nearest to 0, which tracking uses."""
    best = np.flatnonzero(scores == scores.max())
    return float(thresholds[best[np.abs(thresholds[best]).argmin()]])


def presence_by_threshold(videos: Sequence[VideoScores], thresholds: np.ndarray) -> np.ndarray:
    """Balanced accuracy of saying "present" where the object score passes a threshold.

    It is the mean of the shares of visible frames called present and of absent frames called
    absent (Youden's index, moved to 0..1), so that the rare absences weigh as much as the rest.

    Args:
        videos: scores whose ``object_score`` the tracker gave; choose on videos that are not those
            the threshold is reported on.
        thresholds: ``[K]``.

    Returns:
        ``[K]``, NaN where the videos have no visible or no absent frame that counts.
    """
    counts = [v.scored & np.isfinite(v.object_score) for v in videos]
    score = np.concatenate([v.object_score[c] for v, c in zip(videos, counts, strict=True)])
    there = np.concatenate([v.truth_present[c] for v, c in zip(videos, counts, strict=True)])
    if there.all() or not there.any():
        return np.full(len(thresholds), np.nan)
    passed = score > np.asarray(thresholds)[:, None]
    return (passed[:, there].mean(1) + (~passed[:, ~there]).mean(1)) / 2
