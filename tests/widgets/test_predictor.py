"""Test the masks that a model predicts for prompts."""

from __future__ import annotations

import numpy as np
import torch
from session_helpers import truth_center

from sam2kit.evaluation.metrics import iou
from sam2kit.prompts.geometry import mask_center
from sam2kit.widgets.prompt_session import PromptSession


def test_click_segments_the_object(session):
    assert session.objects == [1, 2] and session.size == (128, 160)
    assert session.mask(1, 0) is None and session.prediction(1, 0) is None
    session.click(1, 0, *truth_center(session))
    prediction = session.prediction(1, 0)
    assert session.j_of(1, 0, prediction.mask) > 0.7
    assert prediction.candidates.shape == (3, *session.size) and len(prediction.ious) == 3
    best = prediction.candidates[int(np.argmax(prediction.ious))]
    assert (prediction.mask == best).all() and (session.mask(1, 0) == best).all()
    session.click(1, 0, *truth_center(session, 2), positive=False)
    prompt = session.prompts[1, 0]
    assert prompt.labels == (1, 0) and not session.mask(1, 0)[truth_center(session, 2)[::-1]]
    assert len(session.prediction(1, 0).candidates) == 3  # although the model returns one mask


def test_masks_depend_only_on_the_prompts(session, model):
    session.click(1, 0, *truth_center(session))
    session.box(2, 1, (10, 10, 60, 60))
    session.click(1, 0, 5, 5, positive=False)
    second = PromptSession(session.source, 0, model)
    second.click(1, 0, *truth_center(session))
    second.click(1, 0, 5, 5, positive=False)
    assert (second.mask(1, 0) == session.mask(1, 0)).all()


def test_click_refines_a_tracked_mask(session):
    session.click(1, 0, *truth_center(session))
    list(session.propagate())
    before = session.mask(1, 2)
    wrong = before & ~session.truth(2)[1]
    x, y = mask_center(wrong)
    session.click(1, 2, x, y, positive=False)
    prompt, after = session.prompts[1, 2], session.mask(1, 2)
    assert (prompt.base == before).all() and (prompt.mask == after).all()
    assert iou(after, before) > 0.3  # refined; a negative click alone would give another mask
    session.click(1, 2, x, y, positive=False)
    assert (session.prompts[1, 2].base == before).all()  # the tracked mask, not the refined one


def test_settings_of_the_model_are_restored(session, model):
    max_points = model.multimask_max_pt_num
    session.box(1, 0, (3, 3, 40, 40))
    assert model.multimask_max_pt_num == max_points and not torch.is_inference_mode_enabled()
