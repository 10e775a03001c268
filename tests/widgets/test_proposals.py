"""Test the masks that a model proposes for a frame."""

from __future__ import annotations

import pytest
from session_helpers import Clips

from sam2kit.evaluation.metrics import iou
from sam2kit.utils.errors import DataError
from sam2kit.widgets.prompt_session import PromptSession


def test_automatic_masks(model):
    session = PromptSession(Clips(), 0, model, model_name="nano")
    session.paint(1, 0, session.truth(0)[1])
    shares = list(session.propose_masks(0))
    assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)
    proposals = session.proposals.items
    # The second object is found, and the first one is not proposed again.
    assert max(iou(p.mask, session.truth(0)[2]) for p in proposals) > 0.7
    assert all((p.mask & session.mask(1, 0)).sum() <= 0.5 * p.mask.sum() for p in proposals)
    assert not any(
        (p.mask & q.mask).sum() > 0.5 * min(p.mask.sum(), q.mask.sum())
        for p in proposals
        for q in proposals
        if p is not q
    )
    assert [p.score for p in proposals] == sorted((p.score for p in proposals), reverse=True)
    with pytest.raises(DataError) as error:
        session.accept_proposals([len(proposals)])
    assert error.value.key == "indices"
    objects = session.accept_proposals([0])
    assert objects == [3] and (session.mask(3, 0) == proposals[0].mask).all()
    assert session.provenance(3, 0) == "automatic" and session.proposals.items == proposals[1:]
    session.proposals.take()
    assert session.proposals.items == [] and session.accept_proposals() == []
    session.undo()
    assert session.objects == [1, 2]
    assert [*session.propose_masks(0, points_per_side=2, min_iou=1.0)][-1] == 1
    assert session.proposals.items == []
