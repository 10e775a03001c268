"""Test passes over ranges and directions, and how they merge with existing masks."""

from __future__ import annotations

import pytest
from data_helpers import square
from session_helpers import LENGTH, Clips, content, truth_center

from sam2kit.data.rle import decode_mask
from sam2kit.evaluation.metrics import iou
from sam2kit.utils.errors import DataError
from sam2kit.widgets.prompt_session import PromptSession


def test_ranges_keep_the_masks_of_other_frames(session):
    session.click(1, 1, *truth_center(session, 1, 1))
    session.click(2, 3, *truth_center(session, 2, 3))
    assert session.propagation_frames() == [1, 2, 3, 4, 5]
    assert list(session.propagate()) == [1, 2, 3, 4, 5]
    before = dict(session.tracked)
    assert set(before) == {(1, t) for t in range(1, 6)} | {(2, t) for t in range(3, 6)}
    session.clear(1)
    session.box(1, 1, (2, 2, 30, 30))
    assert list(session.propagate(2, 3)) == session.propagation_frames(2, 3) == [2, 3]
    changed = {k for k in before if session.tracked[k] != before[k]}
    assert changed == {(1, 2), (1, 3)} and set(session.tracked) == set(before)
    assert session.stale  # only a part was tracked with the new prompt
    list(session.propagate(0))
    assert not session.stale
    assert all(session.score(*key) is not None for key in session.tracked)
    for arguments, key in (((3, 2), "end"), ((9,), "frames"), ((0, 1, "up"), "direction")):
        with pytest.raises(DataError) as error:
            session.propagate(*arguments)
        assert error.value.key == key and error.value.hint


def test_backward_tracking(session):
    session.click(1, 3, *truth_center(session, 1, 3))
    session.click(2, 5, *truth_center(session, 2, 5))
    assert list(session.propagate(direction="backward")) == [5, 4, 3, 2, 1, 0]
    # An object is tracked backward from its last prompt on.
    assert set(session.tracked) == {(1, t) for t in range(4)} | {(2, t) for t in range(6)}
    assert session.j[1, 0] > 0.5 and session.j[2, 0] > 0.5
    assert list(session.propagate(2, 4, "backward")) == [4, 3, 2]
    backward = dict(session.tracked)
    assert list(session.propagate()) == [3, 4, 5]  # forward keeps what was tracked backward
    assert {k: v for k, v in session.tracked.items() if k[1] < 3} == {
        k: v for k, v in backward.items() if k[1] < 3
    }
    assert (1, 5) in session.tracked
    session.clear(1)
    list(session.propagate())
    assert {o for o, _ in session.tracked} == {2}  # no prompt, so no mask
    session.clear()
    session.click(2, 0, *truth_center(session, 2))
    assert list(session.propagate(direction="backward")) == []


def test_both_directions_measure_their_disagreement(model):
    session = PromptSession(Clips(), 0, model)
    session.click(1, 0, *truth_center(session))
    session.click(1, 5, *truth_center(session, 1, 5))
    list(session.propagate())
    forward = dict(session.tracked)
    list(session.propagate(direction="backward"))
    backward = dict(session.tracked)
    expected = session.propagation_frames(direction="both")
    assert list(session.propagate(direction="both")) == expected == [*range(6), *range(5, -1, -1)]
    # The nearer prompt decides: frame 0 for frames 1 and 2, frame 5 for frames 3 and 4.
    assert [session.tracked[1, t] for t in (1, 2)] == [forward[1, t] for t in (1, 2)]
    assert [session.tracked[1, t] for t in (3, 4)] == [backward[1, t] for t in (3, 4)]
    for t in range(1, 5):
        masks = [decode_mask(runs[1, t]) for runs in (forward, backward)]
        assert session.disagreement(1, t) == pytest.approx(1 - iou(*masks), abs=1e-3)
    list(session.propagate())
    assert session.disagreement(1, 2) is None


def test_accepted_masks_do_not_change(session):
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.accept([2])
    before = dict(session.tracked)
    session.clear()
    session.box(1, 0, (1, 1, 40, 40))
    list(session.propagate(direction="both"))
    list(session.propagate())
    changed = {key for key in before if session.tracked[key] != before[key]}
    assert (1, 2) not in changed and {(1, 1), (1, 3)} <= changed
    session.unaccept([2])
    list(session.propagate())
    assert session.tracked[1, 2] != before[1, 2]


def test_a_stopped_propagation_keeps_old_and_new_masks(reopen):
    session = reopen()
    session.click(1, 1, *truth_center(session, 1, 1))
    list(session.propagate())
    before = dict(session.tracked)
    session.clear()
    session.box(1, 1, (1, 1, 60, 60))
    frames = session.propagate()
    assert [next(frames) for _ in range(2)] == [1, 2]
    frames.close()
    changed = {k for k in before if session.tracked[k] != before[k]}
    assert changed == {(1, 1), (1, 2)} and set(session.tracked) == set(before)
    assert dict(reopen().tracked) == dict(session.tracked)


def test_edits_during_a_propagation(reopen):
    session = reopen()
    session.click(1, 0, *truth_center(session))
    session.click(2, 0, *truth_center(session, 2))
    for t in session.propagate():
        if t == 1:
            session.delete_object(1)
        if t == 2:
            session.paint(2, 4, square(0, 0, 9, session.size))
        if t == 3:
            session.accept([0])
    assert {o for o, _ in session.tracked} == {2} and len(session.tracked) == LENGTH
    assert session.stale  # the painted mask was not tracked
    session.undo()
    session.undo()
    session.undo()
    assert session.objects == [1, 2]
    assert (1, 0) in session.tracked and (1, 5) not in session.tracked
    assert content(reopen()) == content(session)
