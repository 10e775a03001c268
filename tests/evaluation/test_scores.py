"""Test scores of videos against values computed by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import square

from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, VideoScorer, VideoScores, metrics
from sam2kit.utils.errors import DataError

OBJECT, ELSEWHERE = square(4, 4), square(4, 20)
EMPTY = np.zeros_like(OBJECT)


def score(truth, prediction, convention="all_frames", prompted=(), name="v", ids=(1,)):
    """Score one object from masks by frame; None in ``truth`` is an unannotated frame."""
    scorer = VideoScorer(name, CONVENTIONS[convention], ids)
    for t, (a, b) in enumerate(zip(truth, prediction, strict=True)):
        scorer.add(t, None if a is None else {1: a}, {1: b}, prompted=[1] if t in prompted else [])
    return scorer.result()


def test_the_convention_decides_which_frames_are_scored():
    truth = [OBJECT, OBJECT, None, OBJECT, OBJECT]
    prediction = [OBJECT, ELSEWHERE, OBJECT, OBJECT, ELSEWHERE]
    assert score(truth, prediction).objects()[1]["J"] == 0.5
    davis = score(truth, prediction, "davis2017")
    assert davis.scored[:, 0].tolist() == [False, True, False, True, False]
    assert davis.objects()[1]["J"] == davis.objects()[1]["dice"] == 0.5
    twice = score(truth, prediction, "prompted", prompted=[1, 3])
    assert twice.scored[:, 0].tolist() == [False, False, False, False, True]
    assert twice.objects()[1]["J"] == 0.0 and twice.objects()[1]["frames"] == 1
    assert score(truth, prediction, "prompted").objects()[1]["J"] is None


def test_json_preserves_every_bit():
    result = score([None, OBJECT, square(5, 4)], [EMPTY, square(4, 5), OBJECT], "prompted", [1])
    again = VideoScores.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    assert again.convention == result.convention and again.object_ids == [1]
    for name in ("J", "F", "object_score", "prompted", "scored"):
        np.testing.assert_array_equal(getattr(again, name), getattr(result, name))
        assert getattr(again, name).dtype == getattr(result, name).dtype
    assert metrics([DataSetScores("a", [again])]) == metrics([DataSetScores("a", [result])])


def test_json_preserves_a_video_without_objects():
    scorer = VideoScorer("v", CONVENTIONS["davis2017"], [])
    for t in range(3):
        scorer.add(t, {}, {})
    result = scorer.result()
    again = VideoScores.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.J.shape == result.J.shape == (3, 0)
    assert metrics([DataSetScores("a", [again])])["trackers"]["a"]["J"] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["J"].pop(),
        lambda content: content.update(F=[0.5]),
        lambda content: content.update(annotated=3),
        lambda content: content.update(object_ids=[1, 1]),
        lambda content: content.update(object_ids=[[1]]),
        lambda content: content.update(object_ids=[1, 2]),
        lambda content: content.update(name={}),
    ],
)
def test_damaged_scores_are_a_value_error(change):
    result = score([None, OBJECT, square(5, 4)], [EMPTY, square(4, 5), OBJECT], "prompted", [1])
    content = result.to_dict()
    change(content)
    with pytest.raises(ValueError):
        VideoScores.from_dict(content)


def test_unknown_ids_and_other_sizes_are_rejected():
    scorer = VideoScorer("v", CONVENTIONS["davis2017"], [1])
    with pytest.raises(DataError, match=r"v, frame 0.*objects \[2\]") as error:
        scorer.add(0, {1: OBJECT}, {2: OBJECT})
    assert "evaluation.convention=sav" in error.value.hint
    with pytest.raises(DataError, match="24 rows and 32") as error:
        scorer.add(0, {1: np.zeros((8, 8), bool)}, {1: OBJECT})
    assert error.value.hint


def two_objects(truth, prediction, convention):
    scorer = VideoScorer("v", CONVENTIONS[convention], [1, 2])
    for t, (a, b) in enumerate(zip(truth, prediction, strict=True)):
        scorer.add(t, a, b)
    return scorer.result()


def test_late_objects_and_unseen_frames():
    truth = [
        {1: OBJECT},
        {1: OBJECT},
        {1: OBJECT, 2: ELSEWHERE},
        {1: OBJECT, 2: ELSEWHERE},
        {1: OBJECT},
    ]
    scored = {
        name: two_objects(truth, truth, name).scored.astype(int).T.tolist()
        for name in ("davis2017", "sav", "all_frames")
    }
    assert scored["davis2017"] == [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert scored["sav"] == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]]
    assert scored["all_frames"] == [[1] * 5, [1] * 5]
    early = [dict(t) for t in truth]
    early[1][2] = ELSEWHERE  # frames are scored from the first prediction on, too
    assert two_objects(truth, early, "sav").scored[:, 1].tolist() == [0, 1, 1, 1, 0]


def test_foreground_merges_all_objects():
    truth = [{1: OBJECT, 2: ELSEWHERE}] * 4
    prediction = [{7: OBJECT | ELSEWHERE}] * 4
    result = two_objects(truth, prediction, "davis2016")
    assert result.object_ids == [1] and result.objects()[1]["J"] == 1.0


def test_the_convention_can_ignore_extra_ids_of_the_prediction():
    scorer = VideoScorer("v", CONVENTIONS["sav"], [1])
    scorer.add(0, {1: OBJECT}, {1: OBJECT, 2: ELSEWHERE})
    assert scorer.result().J[0, 0] == 1.0
    with pytest.raises(DataError, match=r"truth has objects \[3\]"):
        scorer.add(1, {3: OBJECT}, {})
    with pytest.raises(ValueError, match="expected frame 1, got frame 5"):
        scorer.add(5, {1: OBJECT}, {})


def test_means_over_objects_videos_and_the_data_set():
    a = two_objects([{1: OBJECT, 2: OBJECT}] * 2, [{1: OBJECT, 2: ELSEWHERE}] * 2, "all_frames")
    b = score([OBJECT] * 2, [OBJECT] * 2, name="w")
    empty = VideoScorer("x", CONVENTIONS["all_frames"], []).result()
    results = metrics([DataSetScores("mine", [a, b, empty]), DataSetScores("copy", [a])])
    assert results["schema_version"] == 2 and results["convention"]["name"] == "all_frames"
    assert results["videos"]["v"]["J"] == 0.5 and results["videos"]["w"]["J&F"] == 1.0
    assert results["videos"]["x"]["J"] is None and results["videos"]["x"]["objects"] == {}
    assert results["trackers"]["mine"]["J"] == pytest.approx(2 / 3), "a mean over three objects"
    assert (
        results["trackers"]["copy"]["J"] == 0.5 == results["videos"]["v"]["trackers"]["copy"]["J"]
    )
    assert results["trackers"]["mine"]["scored_objects"] == 3
    assert "copy" not in results["videos"]["w"]["trackers"]
    json.dumps(results, allow_nan=False)


def test_absence_and_recovery_are_pooled_over_objects():
    truth = [OBJECT, EMPTY, EMPTY, OBJECT, OBJECT]
    a = score(truth, [OBJECT, EMPTY, EMPTY, ELSEWHERE, OBJECT])
    b = score(truth, [OBJECT, OBJECT, EMPTY, EMPTY, EMPTY], name="w")
    pooled = metrics([DataSetScores("mine", [a, b])])["trackers"]["mine"]
    assert pooled["absent_recall"] == 3 / 4 and pooled["absent_precision"] == 3 / 5
    assert pooled["false_absence"] == 2 / 6
    assert pooled["recovery"] == 1 / 2 and pooled["recovery_frames"] == 2
    assert a.objects()[1]["absent_recall"] == 1.0


def test_object_scores_are_stored():
    scorer = VideoScorer("v", CONVENTIONS["all_frames"], ["cat", "dog"])
    scorer.add(0, {"cat": OBJECT}, {"cat": OBJECT}, object_scores={"cat": 2.5})
    assert scorer.result().object_score[0, 0] == 2.5
    assert np.isnan(scorer.result().object_score[0, 1])
