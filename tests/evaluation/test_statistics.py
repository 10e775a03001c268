"""Test intervals, paired differences and thresholds against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import square

from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, VideoScorer
from sam2kit.evaluation.statistics import (
    best_threshold,
    bootstrap_interval,
    iou_by_threshold,
    paired_differences,
    presence_by_threshold,
    score_interval,
)

OBJECT, ELSEWHERE = square(4, 4), square(4, 20)


def data_set(tracker, hits):
    """Score a data set of videos with one frame each, on which objects are hit or missed."""
    videos = []
    for name, objects in hits.items():
        scorer = VideoScorer(name, CONVENTIONS["all_frames"], list(objects))
        prediction = {o: OBJECT if hit else ELSEWHERE for o, hit in objects.items()}
        scorer.add(0, dict.fromkeys(objects, OBJECT), prediction)
        videos.append(scorer.result())
    return DataSetScores(tracker, videos)


def test_the_interval_covers_the_mean_about_95_percent_of_the_time():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        shift = generator.normal(size=(30, 1))  # the same for all objects of a video
        groups = list(shift + 0.3 * generator.normal(size=(30, 4)))
        low, high = bootstrap_interval(groups, generator, 500)
        inside += low < 0 < high
    assert 0.88 < inside / 300 < 0.99


def test_interval_needs_two_groups():
    generator = np.random.default_rng(0)
    assert bootstrap_interval([np.array([1.0, 2.0]), np.zeros(0)], generator) is None
    assert bootstrap_interval([np.array([2.0])] * 3, generator) == (2.0, 2.0)


def test_the_same_generator_gives_the_same_interval():
    scores = data_set("a", {"v": {1: True, 2: False}, "w": {1: True}})
    one, other = (score_interval(scores, np.random.default_rng(3)) for _ in range(2))
    assert one == other and one["mean"] == pytest.approx(2 / 3)
    assert (one["low"], one["high"]) == (0.5, 1.0) and (one["objects"], one["videos"]) == (3, 2)


def test_differences_compare_the_same_objects():
    tuned = data_set("tuned", {"v": {1: True, 2: True}, "w": {1: False, 9: True}})
    copy = data_set("copy", {"v": {1: False, 2: True}, "w": {1: True}, "x": {1: True}})
    result = paired_differences(tuned, copy, np.random.default_rng(0), "J")
    assert result["mean"] == 0.0 and result["objects"] == 3 and result["unpaired"] == 2
    assert (result["better"], result["worse"]) == (1, 1)
    assert result["differences"][0] == {"video": "v", "object": 1, "difference": 1.0}
    assert (result["low"], result["high"]) == (-1.0, 0.5)
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
