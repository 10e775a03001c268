"""Compare trackers by paired differences, intervals and p-values, and choose thresholds.

docs/compare.md explains the methods. ``python -m benchmarks.coverage`` simulates the coverage of
the intervals.
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
    f"No intervals are shown, because they are not meaningful for fewer than {MIN_VIDEOS} videos. "
    "The numbers only describe these videos and do not generalize to others."
)
POWER, GAIN = 0.8, 0.03
# Standard deviation of the gain of one run between DAVIS videos (benchmarks/results/proof.md).
PLANNED_SPREAD = 0.061
# The sample deviation of a few skewed values is often too small. One degree of freedom less than
# usual, a variance increased by 1 / (2 N) and, for scores, this fraction of the variance of a
# Bernoulli variable with the same mean raise the simulated coverage to at least 93%
# (python -m benchmarks.coverage).
_LOST_DEGREES, _COIN_SHARE = 2, 0.05
_SIGN_FLIPS = 2**14  # all combinations for up to 14 videos, otherwise random ones


def mean_interval(
    groups: Sequence[np.ndarray], bounded: bool = False
) -> tuple[float, float] | None:
    """Compute the 95% interval of the mean with the t distribution over groups.

    The objects of a video share its lighting, motion and length, so their scores are not
    independent. Therefore the standard error is the jackknife's over groups (Tukey, 1958), and the
    degrees of freedom are based on the effective number of groups, which is smaller if a few groups
    have most of the values. Scores are logit-transformed, so that their intervals stay between 0
    and 1 and have the asymmetry of skewed scores.

    Args:
        groups: arrays ``[N_g]`` of values without NaN, one per video; empty arrays are ignored.
        bounded: whether the values are scores from 0 to 1, or (default) any numbers, such as
            differences.

    Returns:
        Lower and upper bound, or None for fewer than :data:`MIN_VIDEOS` groups, for which the
        interval would be too narrow or useless.
    """
    groups = [g for g in groups if len(g)]
    if len(groups) < MIN_VIDEOS:
        return None
    n = len(groups)
    mean, error = _mean_and_error(groups)
    error *= math.sqrt(1 + 1 / (2 * n))
    counts = np.array([len(g) for g in groups])
    effective = counts.sum() ** 2 / (counts**2).sum()
    # Quantile of Student's t; stats.t.ppf returns the same value but is ten times slower.
    quantile = float(stdtrit(max(effective - _LOST_DEGREES, 1), (1 + LEVEL) / 2))
    if not bounded or error == 0:
        return mean - quantile * error, mean + quantile * error
    slope = mean * (1 - mean)  # inverse of the logit's derivative
    error = math.sqrt(error**2 + _COIN_SHARE * slope / (n + 1) ** 2)
    low, high = expit(logit(mean) + quantile * error / slope * np.array([-1, 1]))
    return float(low), float(high)


def _mean_and_error(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the mean of all values and its jackknife standard error over at least two groups."""
    # The mean without one group only depends on the sums and sizes of the groups.
    sums = np.array([g.sum() for g in groups])
    counts = np.array([len(g) for g in groups])
    mean = sums.sum() / counts.sum()
    left_out = (sums.sum() - sums) / (counts.sum() - counts)
    n = len(groups)
    return float(mean), math.sqrt((n - 1) / n * ((left_out - mean) ** 2).sum())


def sign_flip_p_value(groups: Sequence[np.ndarray]) -> float | None:
    """Test whether the mean difference is 0 by flipping the signs of whole groups.

    Under the null hypothesis, the differences of a video are equally likely to have the opposite
    sign (Fisher's randomisation test). Up to 14 groups, all combinations of signs are used; for
    more groups, 16,384 random combinations with a fixed seed.

    Args:
        groups: arrays ``[N_g]`` of differences without NaN, one per video; empty arrays are
            ignored.

    Returns:
        The two-sided p-value, at least 2 / 2^N for N groups, or None without values.
    """
    sums = np.array([g.sum() for g in groups if len(g)])
    if len(sums) < 2:
        return 1.0 if len(sums) else None  # a single group is never significant
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

    If all null hypotheses hold, any corrected value is below 0.05 with a probability of at most 5%.

    Args:
        p_values: from 0 to 1; None means no comparison and stays None.
    """
    corrected: list[float | None] = [None] * len(p_values)
    indices = [i for i, p in enumerate(p_values) if p is not None]
    largest = 0.0
    for rank, i in enumerate(sorted(indices, key=lambda i: p_values[i] or 0.0)):
        largest = max(largest, min(1.0, (len(indices) - rank) * (p_values[i] or 0.0)))
        corrected[i] = largest
    return corrected


def videos_needed(spread: float, gain: float = GAIN, power: float = POWER) -> int:
    """Compute the number of videos that a paired comparison needs to detect a gain.

    Args:
        spread: standard deviation of the difference between videos, as in
            :func:`difference_summary`.
        gain: the true mean difference, above 0.
        power: probability that a two-sided t test at 5% detects the gain.

    Returns:
        The smallest sufficient number of videos, at least :data:`MIN_VIDEOS`: fewer have no
        interval, and no p-value below 0.05.
    """

    def reached(n: int) -> bool:
        limit = stats.t.ppf((1 + LEVEL) / 2, n - 1)
        return bool(stats.nct.sf(limit, n - 1, gain * math.sqrt(n) / spread) >= power)

    if spread < gain / 20:  # SciPy's distribution has no value
        return MIN_VIDEOS
    # Start at the normal approximation, which is too small by about two.
    factor = stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(power)
    normal = (factor * spread / gain) ** 2
    if normal > 1000:
        return math.ceil(normal) + 2
    return next(n for n in range(max(MIN_VIDEOS, math.floor(normal)), 1100) if reached(n))


def power_text(spread: float | None, videos: int) -> str:
    """Describe how many videos would show a gain of :data:`GAIN`; empty without a spread."""
    if spread is None:
        return ""
    return (
        f"To detect a gain of {GAIN:.2f} with {POWER:.0%} probability, about "
        f"{videos_needed(spread):,} videos are needed (the standard deviation of the difference "
        f"between videos is {spread:.3f}); this comparison has {videos}."
    )


def planned_power(videos: int) -> str:
    """Describe how many validation videos a comparison needs, before a spread was measured.

    Args:
        videos: number of validation videos.
    """
    return (
        f"validation: {plural(videos, 'video')}. To detect a gain of {GAIN:.2f} with {POWER:.0%} "
        f"probability, about {videos_needed(PLANNED_SPREAD):,} videos are needed, if the gain "
        f"varies between videos as on DAVIS (standard deviation {PLANNED_SPREAD:.3f}). For fewer "
        f"than {MIN_VIDEOS} videos, no interval is computed."
    )


def score_interval(scores: DataSetScores, score: str = "J&F") -> dict[str, Any]:
    """Compute the mean of a score over all objects, with its interval over videos.

    Args:
        scores: the scores of a tracker.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        ``mean``; ``low`` and ``high``, the bounds of the interval; ``objects`` and ``videos``, the
        numbers of objects and videos with this score. ``mean`` is None without objects, and the
        bounds are None for fewer than :data:`MIN_VIDEOS` videos.
    """
    summary = _summary([np.array(list(_values(v, score).values())) for v in scores.videos], True)
    del summary["spread"]
    return summary


def difference_summary(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """Summarise differences: mean, interval, p-value and spread.

    Args:
        groups: arrays ``[N_g]`` of differences without NaN, one per video; empty arrays are
            ignored.

    Returns:
        ``mean``, ``low`` and ``high``, ``objects`` and ``videos`` as :func:`score_interval`;
        ``spread``, the standard deviation between videos (None with fewer than two); ``p``, the
        p-value of :func:`sign_flip_p_value`; numbers of objects ``better`` (above 0) and ``worse``.
    """
    values = np.concatenate([np.zeros(0), *groups])  # works without groups
    return {
        **_summary(groups, False),
        "p": sign_flip_p_value(groups),
        "better": int((values > 0).sum()),
        "worse": int((values < 0).sum()),
    }


def interval_text(low: float | None, high: float | None, signed: bool = True) -> str | None:
    """Return an interval as text, such as ``+0.010 to +0.090``, or None if it is undefined.

    Args:
        low, high: the bounds.
        signed: whether to write the sign of positive numbers, as for differences.
    """
    sign = "+" if signed else "-"
    return None if low is None else f"{low:{sign}.3f} to {high:{sign}.3f}"


def mean_text(summary: Mapping[str, Any], signed: bool = True) -> str | None:
    """Return ``+0.050 (+0.010 to +0.090)``, or None if there is no mean.

    Args:
        summary: ``mean``, and ``low`` and ``high``, which are None or missing without an interval.
        signed: as for :func:`interval_text`.
    """
    if summary["mean"] is None:
        return None
    text = f"{summary['mean']:{'+' if signed else '-'}.3f}"
    interval = interval_text(summary.get("low"), summary.get("high"), signed)
    return f"{text} ({interval})" if interval else text


def seed_summary(differences: Mapping[Any, Mapping[Any, float]]) -> dict[str, Any]:
    """Summarise the differences of runs that only differ in their seed.

    The differences of an object are first averaged over the seeds, because more seeds on the same
    videos do not count as more videos.

    Args:
        differences: differences by seed and by (video, object). Objects that are missing for a seed
            are ignored.

    Returns:
        :func:`difference_summary` of the averages, together with ``seeds``, the mean of each seed,
        and ``seed_spread``, the standard deviation of these means (None for one seed); ``spread``
        is the standard deviation between videos.
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
        one, other: scores on the same videos. Objects with only one score are ignored and counted
            in ``unpaired``.
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
        # The remaining ``others`` are videos that only the other tracker has.
        "unpaired": unpaired + sum(map(len, others.values())),
        "differences": sorted(rows, key=lambda row: -row["difference"]),
    }


def by_motion(
    trackers: Sequence[DataSetScores], copied: str = COPY, score: str = "J&F"
) -> list[dict[str, Any]]:
    """Compare the first tracker with the others, separately for moving and for slow objects.

    Args:
        trackers: scores on the same videos.
        copied: the name of the copied first mask.
        score: one of :data:`sam2kit.evaluation.scores.SCORES`.

    Returns:
        The entries of :func:`motion_halves`; empty if there is no copied mask.
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
    """Compare the first tracker with the others, separately for moving and for slow objects.

    A gain on slow objects only may come from a tracker that hardly moves its masks. Objects are
    split at the median score of the copied first mask, which is low for objects that move or change
    their shape.

    Args:
        scores: maps each tracker to its scores by (video, object).
        copied: the name of the copied first mask.

    Returns:
        One entry for the moving half of the objects and one for the slow half: ``half``; numbers of
        ``objects`` and ``videos``; ``scores``, the mean of each tracker; and ``differences``, the
        :func:`difference_summary` of the first tracker minus each other tracker. Empty if there is
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
    """Group values by (video, object) into one array per video, sorted by name."""
    groups: dict[str, list[float]] = {}
    for key in sorted(values, key=str):
        groups.setdefault(key[0], []).append(values[key])
    return [np.array(group) for group in groups.values()]


def _values(video: VideoScores, score: str) -> dict[Any, float]:
    """Return a score by object, for the objects that have it."""
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
        ``[K]`` float64, 1 if both masks are empty. Average over many frames for
        :func:`best_threshold`.
    """
    return np.array([iou(logits > threshold, truth) for threshold in thresholds])


def best_threshold(thresholds: np.ndarray, scores: np.ndarray) -> float:
    """Return the threshold with the highest score, and the closest to 0 among ties.

    Tracking uses 0 by default, so the threshold changes only if this improves the score.

    Args:
        thresholds, scores: ``[K]``.
    """
    best = np.flatnonzero(scores == scores.max())
    return float(thresholds[best[np.abs(thresholds[best]).argmin()]])


def presence_by_threshold(videos: Sequence[VideoScores], thresholds: np.ndarray) -> np.ndarray:
    """Compute the balanced accuracy of predicting presence from object scores, per threshold.

    An object is predicted present if its score exceeds the threshold. Balanced accuracy is the mean
    of two fractions: visible frames predicted present, and absent frames predicted absent (Youden's
    index, scaled to 0..1). It gives rare absences the same weight as the many visible frames.

    Args:
        videos: scores with ``object_score``. To avoid bias, do not report scores of these videos.
        thresholds: ``[K]``.

    Returns:
        ``[K]`` from 0 to 1; all NaN unless there are both visible and absent scored frames.
    """
    usable = [v.scored & np.isfinite(v.object_score) for v in videos]
    score = np.concatenate([v.object_score[u] for v, u in zip(videos, usable, strict=True)])
    present = np.concatenate([v.truth_present[u] for v, u in zip(videos, usable, strict=True)])
    if present.all() or not present.any():
        return np.full(len(thresholds), np.nan)
    passed = score > np.asarray(thresholds)[:, None]
    return (passed[:, present].mean(1) + (~passed[:, ~present]).mean(1)) / 2
