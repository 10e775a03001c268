"""Scores of videos against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import square

from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, VideoScorer, VideoScores, metrics
from sam2kit.utils.errors import DataError

HERE, MISSED = square(4, 4), square(4, 20)
GONE = np.zeros_like(HERE)


def score(truth, found, convention="all_frames", prompted=(), name="v", ids=(1,)):
    """One object's scores; truth and found are masks by frame, None where nobody looked."""
    scorer = VideoScorer(name, CONVENTIONS[convention], ids)
    for t, (a, b) in enumerate(zip(truth, found, strict=True)):
        scorer.add(t, None if a is None else {1: a}, {1: b}, prompted=[1] if t in prompted else [])
    return scorer.result()


def test_means_leave_out_what_the_convention_says():
    truth = [HERE, HERE, None, HERE, HERE]
    found = [HERE, MISSED, HERE, HERE, MISSED]
    assert score(truth, found).objects()[1]["J"] == 0.5
    davis = score(truth, found, "davis2017")
    assert davis.scored[:, 0].tolist() == [False, True, False, True, False]
    assert davis.objects()[1]["J"] == davis.objects()[1]["dice"] == 0.5
    own = score(truth, found, "prompted", prompted=[1, 3])
    assert own.scored[:, 0].tolist() == [False, False, False, False, True]
    assert own.objects()[1]["J"] == 0.0 and own.objects()[1]["frames"] == 1
    assert score(truth, found, "prompted").objects()[1]["J"] is None


def test_json_gives_back_the_same_bits():
    result = score([None, HERE, square(5, 4)], [GONE, square(4, 5), HERE], "prompted", [1])
    again = VideoScores.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again.convention == result.convention and again.object_ids == [1]
    for name in ("J", "F", "object_score", "prompted", "scored"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        assert getattr(again, name).dtype == getattr(result, name).dtype
    assert metrics([DataSetScores("a", [again])]) == metrics([DataSetScores("a", [result])])


def test_a_video_without_objects_goes_through_json():
    scorer = VideoScorer("v", CONVENTIONS["davis2017"], [])
    for t in range(3):
        scorer.add(t, {}, {})
    result = scorer.result()
    again = VideoScores.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.J.shape == result.J.shape == (3, 0)
    assert metrics([DataSetScores("a", [again])])["trackers"]["a"]["J"] is None


def test_ids_and_sizes_that_do_not_match():
    scorer = VideoScorer("v", CONVENTIONS["davis2017"], [1])
    with pytest.raises(DataError, match=r"v, frame 0.*objects \[2\]"):
        scorer.add(0, {1: HERE}, {2: HERE})
    with pytest.raises(DataError, match="24 rows and 32"):
        scorer.add(0, {1: np.zeros((8, 8), bool)}, {1: HERE})


def two_objects(truth, found, convention):
    scorer = VideoScorer("v", CONVENTIONS[convention], [1, 2])
    for t, (a, b) in enumerate(zip(truth, found, strict=True)):
        scorer.add(t, a, b)
    return scorer.result()


def test_late_objects_and_unseen_frames():
    truth = [{1: HERE}, {1: HERE}, {1: HERE, 2: MISSED}, {1: HERE, 2: MISSED}, {1: HERE}]
    scored = {
        name: two_objects(truth, truth, name).scored.astype(int).T.tolist()
        for name in ("davis2017", "sav", "all_frames")
    }
    assert scored["davis2017"] == [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert scored["sav"] == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]
    assert scored["all_frames"] == [[1] * 5, [1] * 5]
    early = [dict(t) for t in truth]
    early[1][2] = MISSED  # a prediction starts the frames that count too
    assert two_objects(truth, early, "sav").scored[:, 1].tolist() == [0, 1, 1, 1, 0]


def test_foreground_takes_all_objects_as_one():
    truth = [{1: HERE, 2: MISSED}] * 4
    found = [{7: HERE | MISSED}] * 4
    result = two_objects(truth, found, "davis2016")
    assert result.object_ids == [1] and result.objects()[1]["J"] == 1.0


def test_ids_of_the_prediction_alone_are_left_out_where_the_convention_says():
    scorer = VideoScorer("v", CONVENTIONS["sav"], [1])
    scorer.add(0, {1: HERE}, {1: HERE, 2: MISSED})
    assert scorer.result().J[0, 0] == 1.0
    with pytest.raises(DataError, match=r"truth has objects \[3\]"):
        scorer.add(1, {3: HERE}, {})
    with pytest.raises(ValueError, match="frame 5 after 1"):
        scorer.add(5, {1: HERE}, {})


def test_means_over_objects_videos_and_the_data_set():
    a = two_objects([{1: HERE, 2: HERE}] * 2, [{1: HERE, 2: MISSED}] * 2, "all_frames")
    b = score([HERE] * 2, [HERE] * 2, name="w")
    nothing = VideoScorer("x", CONVENTIONS["all_frames"], []).result()
    found = metrics([DataSetScores("mine", [a, b, nothing]), DataSetScores("copy", [a])])
    assert found["schema_version"] == 2 and found["convention"]["name"] == "all_frames"
    assert found["videos"]["v"]["J"] == 0.5 and found["videos"]["w"]["J&F"] == 1.0
    assert found["videos"]["x"]["J"] is None and found["videos"]["x"]["objects"] == {}
    assert found["trackers"]["mine"]["J"] == pytest.approx(2 / 3), "a mean over three objects"
    assert found["trackers"]["copy"]["J"] == 0.5 == found["videos"]["v"]["trackers"]["copy"]["J"]
    assert found["trackers"]["mine"]["scored_objects"] == 3
    assert "copy" not in found["videos"]["w"]["trackers"]
    json.dumps(found, allow_nan=False)


def test_absence_and_recovery_are_pooled_over_objects():
    truth = [HERE, GONE, GONE, HERE, HERE]
    a = score(truth, [HERE, GONE, GONE, MISSED, HERE])
    b = score(truth, [HERE, HERE, GONE, GONE, GONE], name="w")
    pooled = metrics([DataSetScores("mine", [a, b])])["trackers"]["mine"]
    assert pooled["absent_recall"] == 3 / 4 and pooled["absent_precision"] == 3 / 5
    assert pooled["false_absence"] == 2 / 6
    assert pooled["recovery"] == 1 / 2 and pooled["recovery_frames"] == 2
    assert a.objects()[1]["absent_recall"] == 1.0


def test_object_scores_are_kept():
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], ["cat", "dog"])
    scorer.add(0, {"cat": HERE}, {"cat": HERE}, object_scores={"cat": 2.5})
    assert scorer.result().object_score[0, 0] == 2.5
    assert np.isnan(scorer.result().object_score[0, 1])
