"""Test intervals, paired differences and thresholds against values computed by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from data_helpers import square
from scipy import stats

from benchmarks.coverage import simulate
from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, VideoScorer
from sam2kit.evaluation.statistics import (
    best_threshold,
    by_motion,
    difference_summary,
    holm,
    interval_text,
    iou_by_threshold,
    mean_interval,
    mean_text,
    paired_differences,
    power_text,
    presence_by_threshold,
    score_interval,
    seed_summary,
    sign_flip_p_value,
    videos_needed,
)

OBJECT, ELSEWHERE = square(4, 4), square(4, 20)


def data_set(tracker, hits):
    """Score a dataset of videos with one frame each, on which objects are hit or missed."""
    videos = []
    for name, objects in hits.items():
        scorer = VideoScorer(name, CONVENTIONS["all_frames"], list(objects))
        prediction = {o: OBJECT if hit else ELSEWHERE for o, hit in objects.items()}
        scorer.add(0, dict.fromkeys(objects, OBJECT), prediction)
        videos.append(scorer.result())
    return DataSetScores(tracker, videos)


def videos_with(*counts, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=n) for n in counts]


@pytest.mark.parametrize("kind", ["J&F about 0.8", "difference, a fifth gains much"])
def test_the_interval_covers_the_mean_of_skewed_values(kind):
    rows = simulate(kind, "1 to 4", 1000)
    assert rows[0]["videos"] == 3 and rows[0]["coverage"] is None
    coverage, bootstrap = ([row[key] for row in rows[1:]] for key in ("coverage", "bootstrap"))
    assert all(0.91 < share < 0.98 for share in coverage)
    assert np.mean(bootstrap) < 0.91 < 0.93 < np.mean(coverage)


def test_with_one_object_per_video_the_interval_is_that_of_the_t_test():
    """Up to the corrections for skewed values: a degree of freedom and a larger variance."""
    groups = videos_with(*[1] * 9)
    values = np.concatenate(groups)
    error = stats.sem(values) * np.sqrt(1 + 1 / 18)
    expected = values.mean() + error * stats.t.ppf(0.975, 7) * np.array([-1, 1])
    np.testing.assert_allclose(mean_interval(groups), expected)
    summary = difference_summary(groups)
    assert summary["spread"] == pytest.approx(values.std(ddof=1))
    assert (summary["objects"], summary["videos"]) == (9, 9)


def test_a_video_with_most_of_the_objects_widens_the_interval():
    even, uneven = videos_with(*[4] * 8), videos_with(*[1] * 7, 25)
    widths = [np.ptp(mean_interval(groups)) for groups in (even, uneven)]
    assert widths[1] > 2 * widths[0]


def test_intervals_of_scores_stay_between_0_and_1_and_are_longer_towards_the_middle():
    groups = [np.array([x]) for x in (0.99, 0.98, 0.995, 0.97, 0.99, 0.5)]
    low, high = mean_interval(groups, bounded=True)
    mean = np.mean(groups)
    assert 0 < low < mean < high < 1 and mean - low > high - mean
    assert mean_interval([np.array([1.0])] * 6, bounded=True) == (1.0, 1.0)


def test_fewer_than_six_videos_have_no_interval():
    assert mean_interval([*videos_with(*[3] * 5), np.zeros(0)]) is None
    assert mean_interval(videos_with(*[3] * 6)) is not None


@pytest.mark.parametrize("count", [3, 8, 20])
def test_p_value_of_the_sign_flips(count):
    groups = videos_with(*[2] * count)
    sums = np.array([g.sum() + 0.5 for g in groups])
    p_value = sign_flip_p_value([g + 0.25 for g in groups])
    signs = np.array(list(product((-1, 1), repeat=min(count, 8))))
    if count <= 8:
        assert p_value == pytest.approx(np.mean(abs(signs @ sums) >= abs(sums.sum()) - 1e-12))
    else:
        assert p_value == pytest.approx(stats.ttest_1samp(sums, 0).pvalue, abs=0.03)
        assert p_value == sign_flip_p_value([g + 0.25 for g in groups])


def test_p_values_of_few_videos():
    assert sign_flip_p_value([]) is None and sign_flip_p_value([np.zeros(0)]) is None
    assert sign_flip_p_value([np.array([0.3])]) == 1.0
    assert sign_flip_p_value([np.array([x]) for x in (0.1, 0.2, 0.3)]) == 0.25


def test_holm_correction():
    """The example of R's documentation of p.adjust, computed by hand."""
    assert holm([0.01, 0.04, 0.03, None]) == [0.03, 0.06, 0.06, None]
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([None]) == [None]


def test_number_of_videos_for_a_gain():
    """Known sizes of paired t tests with a power of 80%: effects of 1.0, 0.5 and 0.2 deviations."""
    assert [videos_needed(0.03 / d, gain=0.03) for d in (1.0, 0.5, 0.2)] == [10, 34, 199]
    # Two would suffice for the t test, but fewer than six have no interval.
    assert videos_needed(0.0) == videos_needed(1e-17) == videos_needed(1e-3) == 6
    assert videos_needed(0.025) == 8
    assert videos_needed(3.0) == pytest.approx((2.8016 * 100) ** 2, abs=20)
    assert "199 videos" in power_text(0.15, 9) and "has 9" in power_text(0.15, 9)
    assert power_text(None, 1) == ""


def test_seeds_are_averaged_within_each_object():
    one = {("v", 1): 0.1, ("v", 2): 0.3, ("w", 1): 0.2}
    two = {("v", 1): 0.3, ("v", 2): 0.5, ("w", 1): 0.0, ("x", 1): 9.0}
    summary = seed_summary({1: one, 2: two})
    assert summary["mean"] == pytest.approx((0.2 + 0.4 + 0.1) / 3)
    assert summary["seeds"] == pytest.approx({1: 0.2, 2: 0.8 / 3})
    assert summary["seed_spread"] == pytest.approx(np.std([0.2, 0.8 / 3], ddof=1))
    assert (summary["objects"], summary["videos"]) == (3, 2)
    assert seed_summary({1: one})["seed_spread"] is None
    assert seed_summary({1: one, 2: {}})["mean"] is None


def test_moving_and_slow_objects():
    tuned = data_set("tuned", {"v": {1: True, 2: True}, "w": {1: False, 2: True}})
    start = data_set("start", {"v": {1: True, 2: False}, "w": {1: False, 2: True}})
    copied = data_set("copy", {"v": {1: True, 2: False}, "w": {1: False, 2: True}})
    moving, slow = by_motion([tuned, start, copied], "copy", "J")
    assert (moving["half"], moving["objects"], moving["videos"]) == ("moving", 2, 2)
    assert moving["scores"] == {"tuned": 0.5, "start": 0.0, "copy": 0.0}
    assert slow["scores"] == {"tuned": 1.0, "start": 1.0, "copy": 1.0}
    assert moving["differences"]["start"]["mean"] == 0.5
    assert slow["differences"]["start"]["mean"] == 0.0
    assert by_motion([tuned, start], "copy") == []


def test_scores_without_enough_videos():
    scores = data_set("a", {"v": {1: True, 2: False}, "w": {1: True}})
    result = score_interval(scores)
    assert result["mean"] == pytest.approx(2 / 3) and (result["low"], result["high"]) == (
        None,
        None,
    )
    assert (result["objects"], result["videos"]) == (3, 2)


def test_differences_compare_the_same_objects():
    tuned = data_set("tuned", {"v": {1: True, 2: True}, "w": {1: False, 9: True}})
    copy = data_set("copy", {"v": {1: False, 2: True}, "w": {1: True}, "x": {1: True}})
    result = paired_differences(tuned, copy, "J")
    assert result["mean"] == 0.0 and result["objects"] == 3 and result["unpaired"] == 2
    assert (result["better"], result["worse"]) == (1, 1)
    assert result["differences"][0] == {"video": "v", "object": 1, "difference": 1.0}
    assert (result["low"], result["high"], result["p"]) == (None, None, 1.0)
    assert result["trackers"] == ["tuned", "copy"] and result["score"] == "J"


def test_iou_by_threshold():
    generator = np.random.default_rng(0)
    truth = square(4, 4)
    logits = generator.normal(size=truth.shape).round(1) + truth
    thresholds = np.array([-9.0, -0.5, 0.0, 0.5, 9.0])
    expected = [iou(logits > t, truth) for t in thresholds]
    np.testing.assert_array_equal(iou_by_threshold(logits, truth, thresholds), expected)
    empty = np.zeros_like(truth)
    ious = iou_by_threshold(logits, empty, thresholds)
    np.testing.assert_array_equal(ious, [iou(logits > t, empty) for t in thresholds])
    assert ious[-1] == 1.0


def test_among_equal_thresholds_the_closest_to_zero_is_best():
    thresholds = np.array([-2.0, -1.0, 0.5, 2.0])
    assert best_threshold(thresholds, np.array([0.7, 0.7, 0.7, 0.1])) == 0.5
    assert best_threshold(thresholds, np.array([0.7, 0.7, 0.7, 0.9])) == 2.0


def test_presence_is_scored_on_visible_and_on_absent_frames():
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], [1])
    for t, (visible, score) in enumerate([(1, 3.0), (1, 1.0), (1, -1.0), (0, 0.5)]):
        scorer.add(t, {1: OBJECT} if visible else {}, {}, object_scores={1: score})
    accuracy = presence_by_threshold([scorer.result()], np.array([-2.0, 0.0, 0.7, 5.0]))
    np.testing.assert_allclose(accuracy, [(1 + 0) / 2, (2 / 3 + 0) / 2, (2 / 3 + 1) / 2, 0.5])
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], [1])
    scorer.add(0, {1: OBJECT}, {}, object_scores={1: 1.0})
    assert np.isnan(presence_by_threshold([scorer.result()], np.zeros(2))).all()


def test_means_and_intervals_as_text():
    assert interval_text(0.01, 0.09) == "+0.010 to +0.090" and interval_text(None, None) is None
    assert interval_text(-0.01, 0.09, signed=False) == "-0.010 to 0.090"
    summary = {"mean": 0.05, "low": 0.01, "high": 0.09}
    assert mean_text(summary) == "+0.050 (+0.010 to +0.090)"
    assert mean_text(summary, signed=False) == "0.050 (0.010 to 0.090)"
    assert mean_text({"mean": 0.05}) == "+0.050" and mean_text({"mean": None}) is None
