"""Compare trackers by paired differences, intervals and p-values, and choose thresholds.

docs/compare.md explains the methods. ``python -m benchmarks.coverage`` simulates how often the
intervals contain the true mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import expit, logit, stdtrit

from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.scores import COPY, DataSetScores, VideoScores
from sam2kit.utils.text import plural

LEVEL = 0.95
MIN_VIDEOS = 6
NO_INTERVAL = (
    f"An interval from fewer than {MIN_VIDEOS} videos is not meaningful, so none is shown: these "
    "numbers hold for these videos, and nothing follows about others."
)
POWER, GAIN = 0.8, 0.03
PLANNED_SPREAD = 0.12  # of the gain between videos of DAVIS (benchmarks/results/proof.md)
# The deviation of a few skewed values is often too small. One degree of freedom less than usual, a
# variance that is larger by 1 / (2 N), and for scores this share of the variance of a coin with the
# same mean bring the simulated coverage to 93% or more (python -m benchmarks.coverage).
_LOST_DEGREES, _COIN_SHARE = 2, 0.05
_SIGN_FLIPS = 2**14  # all of them for up to 14 videos, otherwise as many at random


def mean_interval(
    groups: Sequence[np.ndarray], bounded: bool = False
) -> tuple[float, float] | None:
    """Compute the 95% interval of the mean of all values by the t distribution over groups.

    The objects of a video share its light, motion and length, so their scores are not independent.
    The standard error is therefore the jackknife's, which leaves out one group at a time (Tukey,
    1958), and the degrees of freedom follow the effective number of groups, which is smaller if a
    few groups have most of the values. Scores are transformed by the logit: their intervals stay
    between 0 and 1 and are longer towards the middle, as the skewed scores require.

    Args:
        groups: arrays ``[N_g]`` of values without NaN, one per video; empty ones are ignored.
        bounded: whether the values are scores from 0 to 1. False (default): any numbers, such as
            differences.

    Returns:
        Lower and upper bound. None: fewer than :data:`MIN_VIDEOS` groups, from which the interval
        would be too narrow or useless.
    """
    groups = [g for g in groups if len(g)]
    if len(groups) < MIN_VIDEOS:
        return None
    n = len(groups)
    mean, error = _mean_and_error(groups)
    error *= math.sqrt(1 + 1 / (2 * n))
    counts = np.array([len(g) for g in groups])
    effective = counts.sum() ** 2 / (counts**2).sum()
    # The quantile of Student's t; stats.t.ppf gives the same and takes ten times as long.
    quantile = float(stdtrit(max(effective - _LOST_DEGREES, 1), (1 + LEVEL) / 2))
    if not bounded or error == 0:
        return mean - quantile * error, mean + quantile * error
    slope = mean * (1 - mean)  # the inverse of the derivative of the logit
    error = math.sqrt(error**2 + _COIN_SHARE * slope / (n + 1) ** 2)
    low, high = expit(logit(mean) + quantile * error / slope * np.array([-1, 1]))
    return float(low), float(high)


def _mean_and_error(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean of all values and its jackknife standard error over at least two groups."""
    # The mean without a group needs only the sum and the size of each group.
    sums = np.array([g.sum() for g in groups])
    counts = np.array([len(g) for g in groups])
    mean = sums.sum() / counts.sum()
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    n = len(groups)
    return float(mean), math.sqrt((n - 1) / n * ((left_out - mean) ** 2).sum())


def sign_flip_p_value(groups: Sequence[np.ndarray]) -> float | None:
    """Test whether the mean difference is 0, by changing the signs of whole groups.

    If a tracker is neither better nor worse, the differences of a video could as well have the
    opposite sign (Fisher's randomisation test). All combinations of signs are counted for up to 14
    groups; for more, 16,384 random ones with a fixed seed.

    Args:
        groups: arrays ``[N_g]`` of differences without NaN, one per video; empty ones are ignored.

    Returns:
        The two-sided p-value, at least 2 / 2^N for N groups. None: no values.
    """
    sums = np.array([g.sum() for g in groups if len(g)])
    if len(sums) < 2:
        return 1.0 if len(sums) else None  # a single sign says nothing
    result = stats.permutation_test(
        (sums,),
        lambda x, axis: x.sum(axis=axis),
        permutation_type="samples",
        n_resamples=_SIGN_FLIPS,
        vectorized=True,
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for the number of comparisons (Holm, 1979).

    If all hypotheses hold, the probability that any corrected value is below 0.05 is at most 5%.

    Args:
        p_values: from 0 to 1; None is no comparison, and stays None.
    """
    corrected: list[float | None] = [None] * len(p_values)
    indices = [i for i, p in enumerate(p_values) if p is not None]
    largest = 0.0
    for rank, i in enumerate(sorted(indices, key=lambda i: p_values[i] or 0.0)):
        largest = max(largest, min(1.0, (len(indices) - rank) * (p_values[i] or 0.0)))
        corrected[i] = largest
    return corrected


def videos_needed(spread: float, gain: float = GAIN, power: float = POWER) -> int:
    """Compute how many videos a paired comparison needs to show a gain.

    Args:
        spread: standard deviation of the difference between videos, as in
            :func:`difference_summary`.
        gain: the true mean difference, above 0.
        power: probability that the two-sided t test at 5% finds it.

    Returns:
        The smallest number of videos that reaches the power, at least 2.
    """

    def reached(n: int) -> bool:
        limit = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        return bool(stats.nct.sf(limit, n - 1, gain * math.sqrt(n) / spread) >= power)

    if spread < gain / 20:  # two videos are enough, and SciPy's distribution has no value
        return 2
    # The normal distribution gives a number that is too small by about two.
    factor = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(power)
    normal = (factor * spread / gain) ** 2
    if normal > 1000:
        return math.ceil(normal) + 2
    return next(n for n in range(max(2, math.floor(normal)), 1100) if reached(n))


def power_text(spread: float | None, videos: int) -> str:
    """Say how many videos would show a gain of :data:`GAIN`; empty if no spread was measured."""
    if spread is None:
        return ""
    return (
        f"To show a gain of {GAIN:.2f} with {POWER:.0%} probability, about "
        f"{videos_needed(spread):,} videos are needed (the difference varies between videos with a "
        f"standard deviation of {spread:.3f}); this comparison has {videos}."
    )


def planned_power(videos: int) -> str:
    """Say how many validation videos a comparison needs, before a spread was measured.

    Args:
        videos: number of validation videos.
    """
    return (
        f"validation: {plural(videos, 'video')}. To show a gain of {GAIN:.2f} with {POWER:.0%} "
        f"probability, about {videos_needed(PLANNED_SPREAD):,} videos are needed, if the gain "
        f"varies between videos as on DAVIS (standard deviation {PLANNED_SPREAD:.2f}). From fewer "
        f"than {MIN_VIDEOS} videos no interval is computed."
    )


def score_interval(scores: DataSetScores, score: str = "J&F") -> dict[str, Any]:
    """Compute the mean of a score over all objects, with its interval over videos.

    Args:
        scores: the scores of a tracker.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        ``mean``; ``low`` and ``high``, the bounds of the interval; ``objects`` and ``videos``, the
        numbers of those that have the score. ``mean`` is None without objects, the bounds are None
        with fewer than :data:`MIN_VIDEOS` videos.
    """
    summary = _summary([np.array(list(_values(v, score).values())) for v in scores.videos], True)
    del summary["spread"]
    return summary


def difference_summary(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """Summarise differences: mean, interval, p-value and spread.

    Args:
        groups: arrays ``[N_g]`` of differences without NaN, one per video; empty ones are ignored.

    Returns:
        ``mean``, ``low`` and ``high``, ``objects`` and ``videos`` as :func:`score_interval`;
        ``spread``, the standard deviation between videos (None with fewer than two); ``p``, the
        p-value of :func:`sign_flip_p_value`; numbers of objects ``better`` (above 0) and ``worse``.
    """
    values = np.concatenate([np.zeros(0), *groups])  # the empty array: there may be no groups
    return {
        **_summary(groups, False),
        "p": sign_flip_p_value(groups),
        "better": int((values > 0).sum()),
        "worse": int((values < 0).sum()),
    }


def seed_summary(differences: Mapping[Any, Mapping[Any, float]]) -> dict[str, Any]:
    """Summarise the differences of runs that differ in their seed alone.

    The differences of an object are averaged over the seeds first, because seeds on the same videos
    are no further videos.

    Args:
        differences: maps each seed to its differences, and (video, object) to a difference. Objects
            that a seed lacks are left out.

    Returns:
        :func:`difference_summary` of the averages; ``seeds``, the mean of each seed; and
        ``seed_spread``, the standard deviation of these means (None with one seed), beside
        ``spread``, the standard deviation between videos.
    """
    common = set.intersection(*(set(d) for d in differences.values()))
    averages = {key: float(np.mean([d[key] for d in differences.values()])) for key in common}
    means = {
        seed: float(np.mean([values[key] for key in common]))
        for seed, values in differences.items()
        if common
    }
    return {
        **difference_summary(by_video(averages)),
        "seeds": means,
        "seed_spread": float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None,
    }


def paired_differences(
    one: DataSetScores, other: DataSetScores, score: str = "J&F"
) -> dict[str, Any]:
    """Compute the difference between two trackers on the same objects, with its interval.

    Args:
        one, other: scores on the same videos. Objects that only one of them has a score for are
            left out and counted in ``unpaired``.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        :func:`difference_summary` of ``one`` minus ``other``; ``unpaired``; and ``differences``,
        one entry per object with ``video``, ``object`` and ``difference``, the largest difference
        first.
    """
    others = {video.name: _values(video, score) for video in other.videos}
    rows, groups, unpaired = [], [], 0
    for video in one.videos:
        values, other_values = _values(video, score), others.pop(video.name, {})
        paired = [identity for identity in values if identity in other_values]
        unpaired += len(values.keys() ^ other_values.keys())
        groups.append(np.array([values[identity] - other_values[identity] for identity in paired]))
        rows += [
            {"video": video.name, "object": identity, "difference": difference}
            for identity, difference in zip(paired, groups[-1].tolist(), strict=True)
        ]
    return {
        "score": score,
        "trackers": [one.tracker, other.tracker],
        **difference_summary(groups),
        # What is left in ``others`` are the videos that only the other tracker has.
        "unpaired": unpaired + sum(map(len, others.values())),
        "differences": sorted(rows, key=lambda row: -row["difference"]),
    }


def by_motion(
    trackers: Sequence[DataSetScores], copied: str = COPY, score: str = "J&F"
) -> list[dict[str, Any]]:
    """Compare the first tracker with the others on moving and on slow objects apart.

    Args:
        trackers: scores on the same videos.
        copied: the name of the copied first mask.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        The entries of :func:`motion_halves`; none if there is no copied mask.
    """
    return motion_halves(
        {
            t.tracker: {(v.name, o): x for v in t.videos for o, x in _values(v, score).items()}
            for t in trackers
        },
        copied,
    )


def motion_halves(
    scores: Mapping[str, Mapping[Any, float]], copied: str = COPY
) -> list[dict[str, Any]]:
    """Compare the first tracker with the others on moving and on slow objects apart.

    A gain on slow objects alone may come from standing still. Objects are split at the median score
    of the copied first mask, which loses the objects that move or change their shape.

    Args:
        scores: maps each tracker to its scores by (video, object).
        copied: the name of the copied first mask.

    Returns:
        One entry for the moving half of the objects and one for the slow half: ``half``; numbers of
        ``objects`` and ``videos``; ``scores``, the mean of each tracker; and ``differences``, the
        :func:`difference_summary` of the first tracker minus each other one. No entries if there is
        no copied mask, or fewer than two objects.
    """
    if copied not in scores:
        return []
    common = set.intersection(*(set(s) for s in scores.values()))
    ranked = sorted(common, key=lambda key: (scores[copied][key], str(key)))
    half = (len(ranked) + 1) // 2
    parts = {"moving": ranked[:half], "slow": ranked[half:]} if len(ranked) > 1 else {}
    main, *others = scores
    return [
        {
            "half": name,
            "objects": len(keys),
            "videos": len({video for video, _ in keys}),
            "scores": {t: float(np.mean([s[key] for key in keys])) for t, s in scores.items()},
            "differences": {
                other: difference_summary(
                    by_video({key: scores[main][key] - scores[other][key] for key in keys})
                )
                for other in others
            },
        }
        for name, keys in parts.items()
    ]


def by_video(values: Mapping[Any, float]) -> list[np.ndarray]:
    """Group values by (video, object) into one array per video, in the order of the names."""
    groups: dict[str, list[float]] = {}
    for key in sorted(values, key=str):
        groups.setdefault(key[0], []).append(values[key])
    return [np.array(group) for group in groups.values()]


def _values(video: VideoScores, score: str) -> dict[Any, float]:
    """Return one score of each object that has it, by object."""
    return {o: s[score] for o, s in video.objects().items() if s[score] is not None}


def _summary(groups: Sequence[np.ndarray], bounded: bool) -> dict[str, Any]:
    groups = [g for g in groups if len(g)]
    values = np.concatenate([np.zeros(0), *groups])
    low, high = mean_interval(groups, bounded) or (None, None)
    n = len(groups)
    return {
        "mean": float(values.mean()) if n else None,
        "low": low,
        "high": high,
        "objects": len(values),
        "videos": n,
        "spread": _mean_and_error(groups)[1] * math.sqrt(n) if n > 1 else None,
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
