"""Intervals, paired differences and thresholds against values worked out by hand."""

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

HERE, MISSED = square(4, 4), square(4, 20)


def data_set(tracker, hits):
    """Videos by name, each with objects that are hit or missed on their one frame."""
    videos = []
    for name, objects in hits.items():
        scorer = VideoScorer(name, CONVENTIONS["all_frames"], list(objects))
        found = {o: HERE if hit else MISSED for o, hit in objects.items()}
        scorer.add(0, dict.fromkeys(objects, HERE), found)
        videos.append(scorer.result())
    return DataSetScores(tracker, videos)


def test_interval_covers_the_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        shift = generator.normal(size=(30, 1))  # what the objects of a video share
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


def test_differences_are_those_of_the_same_objects():
    tuned = data_set("tuned", {"v": {1: True, 2: True}, "w": {1: False, 9: True}})
    copy = data_set("copy", {"v": {1: False, 2: True}, "w": {1: True}, "x": {1: True}})
    found = paired_differences(tuned, copy, np.random.default_rng(0), "J")
    assert found["mean"] == 0.0 and found["objects"] == 3 and found["unpaired"] == 2
    assert (found["better"], found["worse"]) == (1, 1)
    assert found["differences"][0] == {"video": "v", "object": 1, "difference": 1.0}
    assert (found["low"], found["high"]) == (-1.0, 0.5)
    assert found["trackers"] == ["tuned", "copy"] and found["score"] == "J"


def test_iou_of_all_thresholds_in_one_pass():
    generator = np.random.default_rng(0)
    truth = square(4, 4)
    logits = generator.normal(size=truth.shape).round(1) + truth
    thresholds = np.array([-9.0, -0.5, 0.0, 0.5, 9.0])
    expected = [iou(logits > t, truth) for t in thresholds]
    np.testing.assert_array_equal(iou_by_threshold(logits, truth, thresholds), expected)
    empty = np.zeros_like(truth)
    found = iou_by_threshold(logits, empty, thresholds)
    np.testing.assert_array_equal(found, [iou(logits > t, empty) for t in thresholds])
    assert found[-1] == 1.0


def test_of_equal_thresholds_the_nearest_to_zero():
    thresholds = np.array([-2.0, -1.0, 0.5, 2.0])
    assert best_threshold(thresholds, np.array([0.7, 0.7, 0.7, 0.1])) == 0.5
    assert best_threshold(thresholds, np.array([0.7, 0.7, 0.7, 0.9])) == 2.0


def test_presence_is_judged_by_both_kinds_of_frames():
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], [1])
    for t, (there, score) in enumerate([(1, 3.0), (1, 1.0), (1, -1.0), (0, 0.5)]):
        scorer.add(t, {1: HERE} if there else {}, {}, object_scores={1: score})
    found = presence_by_threshold([scorer.result()], np.array([-2.0, 0.0, 0.7, 5.0]))
    np.testing.assert_allclose(found, [(1 + 0) / 2, (2 / 3 + 0) / 2, (2 / 3 + 1) / 2, 0.5])
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], [1])
    scorer.add(0, {1: HERE}, {}, object_scores={1: 1.0})
    assert np.isnan(presence_by_threshold([scorer.result()], np.zeros(2))).all()
