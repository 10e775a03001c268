"""Test the list of frames to check."""

from __future__ import annotations

from data_helpers import square
from session_helpers import truth_center

from sam2kit.data.rle import encode_mask
from sam2kit.prompts.annotations import TrackedMask
from sam2kit.widgets import check_list, prompt_session
from sam2kit.widgets.check_list import FrameToCheck, find_suspects


def frames_to_check(tracks, skipped, size, limit, names=None):
    return check_list.frames_to_check(find_suspects(tracks, size, names), skipped, limit)


def test_frames_to_check(session):
    size = (40, 40)

    def track(side, score=9.0, disagreement=None, row=0):
        counts = encode_mask(square(row, 0, side, size))["counts"]
        return TrackedMask(counts, score, disagreement=disagreement)

    tracks = {(1, t): track(10) for t in range(300)}  # pycocotools fails for lists above 255
    tracks[1, 8] = track(10, score=0.2)
    tracks[1, 9] = track(10, score=0.5)  # next to a worse one
    tracks[1, 20] = track(20)
    tracks[1, 30] = track(10, disagreement=0.6)
    tracks |= {
        (2, 0): track(10, row=25),
        (2, 1): track(0, score=-8.0),
        (2, 2): track(0, score=-9.0),
    }
    listed = frames_to_check(tracks, {}, size, 20)
    assert [(f.object, f.frame) for f in listed] == [(1, 8), (2, 1), (1, 20), (1, 30)]
    assert isinstance(listed[0], FrameToCheck)
    assert [round(f.severity, 2) for f in listed] == [0.9, 0.9, 0.68, 0.6]
    for suspect, word in zip(listed, ["score", "disappears", "+300%", "backward"], strict=True):
        assert word in suspect.reason
    assert [f.frame for f in frames_to_check(tracks, {(1, 8): 0, (1, 20): 0}, size, 2)] == [1, 9]
    assert frames_to_check({}, {}, size, 20) == [] == session.frames_to_check()


def test_objects_with_almost_the_same_mask_are_to_be_checked():
    """A tracker that moves to a neighbour is as sure of it as before."""
    size = (40, 40)

    def track(row, side):
        counts = encode_mask(square(row, 0, side, size))["counts"]
        return TrackedMask(counts, 9.0, disagreement=None)

    tracks = {(o, t): track(20 * (o - 1), 10) for o in (1, 2) for t in range(4)}
    assert frames_to_check(tracks, {}, size, 20) == []
    tracks |= {(2, t): track(0, 10) for t in (2, 3)}
    (listed,) = frames_to_check(tracks, {}, size, 20, {1: "left <cell>"})
    assert (listed.object, listed.frame) == (2, 2) and listed.severity == 1
    assert "left <cell>" in listed.reason
    assert [f.frame for f in frames_to_check(tracks, {(2, 2): None}, size, 20)] == [3]
    many = {(o, 0): track(0, 10 if o % 300 else 11) for o in range(300)}
    assert len(frames_to_check(many, {}, size, 1000)) == 299


def test_accepted_and_prompted_frames_need_no_check(session, monkeypatch):
    monkeypatch.setattr("sam2kit.widgets.check_list.MIN_SEVERITY", 0.0)
    monkeypatch.setattr("sam2kit.widgets.check_list.NEIGHBORHOOD", 0)
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.accept([2, 3])
    assert {f.frame for f in session.frames_to_check()} == {1, 4, 5}
    assert len(session.frames_to_check(limit=2)) == 2


def test_clicks_do_not_search_all_tracked_masks_again(session, monkeypatch):
    searches = []
    monkeypatch.setattr(
        prompt_session, "find_suspects", lambda *args: searches.append(1) or find_suspects(*args)
    )
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    session.frames_to_check()
    session.click(1, 3, *truth_center(session))
    session.frames_to_check()
    assert len(searches) == 1
    session.delete_object(1)
    assert session.frames_to_check() == [] and len(searches) == 2
