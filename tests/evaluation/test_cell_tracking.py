"""Test SEG, DET and TRA against the values of py-ctcmetrics 1.3.3 on the same files."""

from __future__ import annotations

import numpy as np
import pytest
from cell_tracking_cases import NUM_FRAMES, REFERENCE_TRACKS, reference, result

from sam2kit.data.lineage import Track
from sam2kit.evaluation.cell_tracking import CellTrackingScorer, match_labels

# SEG on every second frame, DET and TRA on all, of result(0), result(1), ...
VALUES = [
    (0.4000870045429305, 0.74, 0.6643109540636043),
    (0.46321368240920796, 0.8280000000000001, 0.7667844522968198),
    (0.318064615970349, 0.636, 0.6042402826855124),
    (0.46795637929354866, 0.796, 0.7544169611307421),
    (0.37251757544437025, 0.632, 0.5724381625441697),
    (0.40716980442724804, 0.756, 0.7102473498233215),
    (0.4709272109378147, 0.74, 0.7137809187279152),
    (0.3838475740792497, 0.688, 0.6501766784452296),
    (0.4090159146140442, 0.732, 0.7031802120141343),
    (0.4655030108594436, 0.708, 0.6325088339222615),
    (0.5138494798136566, 0.744, 0.6978798586572439),
    (0.272977247226735, 0.45199999999999996, 0.4081272084805654),
]


@pytest.mark.parametrize("seed", range(len(VALUES)))
def test_equal_to_the_reference(seed):
    labels, tracks = result(seed)
    scorer = CellTrackingScorer(REFERENCE_TRACKS, tracks)
    for t, (truth, image) in enumerate(zip(reference(), labels, strict=True)):
        scorer.add(truth, truth if t % 2 == 0 else None, image)
    scores = scorer.result()
    assert [scores[k] for k in ("SEG", "DET", "TRA")] == pytest.approx(VALUES[seed], abs=1e-12)


def test_perfect_and_empty_results():
    for image, value in ((reference(), 1.0), (np.zeros_like(reference()), 0.0)):
        scorer = CellTrackingScorer(REFERENCE_TRACKS, REFERENCE_TRACKS)
        for t in range(NUM_FRAMES):
            scorer.add(reference()[t], reference()[t], image[t])
        scores = scorer.result()
        assert [scores[k] for k in ("SEG", "DET", "TRA")] == [value] * 3


def test_nothing_to_score():
    scorer = CellTrackingScorer({})
    scorer.add(None, None, np.ones((4, 4), int))
    assert [scorer.result()[k] for k in ("SEG", "DET", "TRA")] == [None] * 3


def test_parents_of_a_result_without_tracks():
    """Without tracks divisions are missing, and a gap is a link to the object itself."""
    scorer = CellTrackingScorer(REFERENCE_TRACKS)
    for image in reference():
        scorer.add(image, None, image)
    assert scorer.result()["EA"] == 2 and scorer.result()["FN"] == 0
    scorer = CellTrackingScorer({1: Track(0, 0, 0), 2: Track(2, 2, 1)})
    one, none = np.ones((4, 4), int), np.zeros((4, 4), int)
    for truth, image in ((one, one), (none, none), (2 * one, one)):
        scorer.add(truth, None, image)
    assert scorer.result()["TRA"] == 1


def test_a_match_covers_more_than_half():
    truth, image = np.zeros((1, 8), int), np.zeros((1, 8), int)
    truth[0, :4], image[0, 2:6] = 1, 1
    assert match_labels(truth, image) == {}
    image[0, 1] = 1
    assert match_labels(truth, image) == {1: (1, 3 / 6)}
