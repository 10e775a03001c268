"""Scores of videos against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from data_helpers import square

from sam2kit.errors import DataError
from sam2kit.scores import CONVENTIONS, DataSetScores, VideoScorer, VideoScores, metrics

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


def test_ids_and_sizes_that_do_not_match():
    scorer = VideoScorer("v", CONVENTIONS["davis2017"], [1])
    with pytest.raises(DataError, match=r"v, frame 0.*objects \[2\]"):
        scorer.add(0, {1: HERE}, {2: HERE})
    with pytest.raises(DataError, match="24 rows and 32"):
        scorer.add(0, {1: np.zeros((8, 8), bool)}, {1: HERE})
