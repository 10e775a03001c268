"""The model's outputs, losses and gradients equal those of upstream's ``SAM2Train``.

Further tests change one convention at a time and check that the comparison detects it.
"""

from __future__ import annotations

import functools

import pytest
import torch
from parity_helpers import (
    join,
    no_dropout,
    parity_batch,
    parity_config,
    parity_prompts,
    replayed,
    run_upstream,
    sharpen,
    upstream_model,
)
from training.loss_fns import MultiStepMultiMasksAndIous

from sam2kit.config.schema import LossConfig
from sam2kit.models import clip_tracking as tracking
from sam2kit.models.checkpoints import SHIPPED_CHECKPOINTS, create_sam2_model
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.training.losses import SAM2TrainingLoss

TOLERANCE = 1e-3  # relative to the standard deviation of the logits on unprompted frames


@functools.cache
def model_pair(size: str):
    config = parity_config(size)
    ours = build_sam2_model(config).eval()
    sharpen(ours)
    no_dropout(ours)
    theirs = upstream_model(ours, config)
    no_dropout(theirs)
    return config, ours, theirs


@pytest.fixture
def pair():
    """Both models of a size, in evaluation mode; the test's changes to weights are undone."""
    # Models are built once per size, because building them takes longer than a test.
    used = []

    def get_pair(size: str):
        config, ours, theirs = model_pair(size)
        state = {n: t.clone() for n, t in ours.state_dict().items()}
        used.append((ours, theirs, state))
        return config, ours.eval(), theirs.eval()

    yield get_pair
    for ours, theirs, state in used:
        ours.load_state_dict(state)
        theirs.load_state_dict(state)
        ours.zero_grad()
        theirs.zero_grad()


def stacked(outputs: list[dict], key: str) -> torch.Tensor:
    """Stack upstream's values after the last decoder step of each frame, as ``[T, N]``."""
    values = [frame[key][-1] for frame in outputs]
    return torch.stack([v.amax(-1) if key.endswith("ious") else v[:, 0] for v in values])


@torch.no_grad()
def upstream_frames(theirs, batch, prompts) -> list[dict]:
    """Return upstream's outputs per frame."""
    return run_upstream(theirs, batch, prompts, [])[0]


def difference(ours, expected: list[dict], batch, prompts) -> dict[str, float]:
    """Return the maximum difference per output; logits relative to their standard deviation."""
    with torch.no_grad():
        output = ours(batch, prompts)
    logits = torch.stack([frame["pred_masks"][:, 0] for frame in expected])
    tracked = [t for t in range(batch.num_frames) if t not in {p.frame for p in prompts}]
    # Upstream sets the logits of absent objects to -1024; they would dominate the deviation.
    deviation = logits[tracked][logits[tracked] > -1000].std()
    scores = stacked(expected, "multistep_object_score_logits")
    return {
        "logits": ((output.mask_logits - logits).abs().max() / deviation).item(),
        "iou": (output.iou - stacked(expected, "multistep_pred_ious")).abs().max().item(),
        "score": (output.object_score - scores).abs().max().item(),
    }


CASES = [
    ("nano", kind, frames, objects)
    for kind in ("mask", "box", "click", "clicks")
    for frames in ((0,), (0, 5))
    for objects in (1, 3)
] + [
    ("t", "mask", (0, 5), 3),
    ("t", "box", (0,), 1),
    ("t", "click", (0, 5), 1),
    ("t", "clicks", (0,), 1),
]


@pytest.mark.parametrize(("size", "kind", "frames", "objects"), CASES)
def test_evaluation_mode_matches_upstream(pair, size, kind, frames, objects):
    config, ours, theirs = pair(size)
    batch = parity_batch(config, objects)
    prompts = parity_prompts(batch, kind, frames)
    differences = difference(ours, upstream_frames(theirs, batch, prompts), batch, prompts)
    assert all(value < TOLERANCE for value in differences.values()), differences


@pytest.mark.skipif(not SHIPPED_CHECKPOINTS["nano"].exists(), reason="nano checkpoint is missing")
@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_pretrained_nano_matches_upstream(kind):
    """Trained weights, without :func:`sharpen`."""
    config = parity_config("nano")
    config.model.checkpoint = "nano"
    ours = create_sam2_model(config).eval()
    batch = parity_batch(config, 3)
    theirs = upstream_model(ours, config)
    prompts = parity_prompts(batch, kind, (0, 5))
    differences = difference(ours, upstream_frames(theirs, batch, prompts), batch, prompts)
    assert all(value < TOLERANCE for value in differences.values()), differences


def test_batch_of_two_clips_matches_upstream(pair):
    config, ours, theirs = pair("nano")
    clips = [parity_batch(config, objects) for objects in (1, 3)]
    batch = join(clips)
    prompts = parity_prompts(batch, "mask", (0,))
    differences = difference(ours, upstream_frames(theirs, batch, prompts), batch, prompts)
    assert all(value < TOLERANCE for value in differences.values()), differences


def test_objects_predicted_as_absent_match_upstream(pair):
    config, ours, theirs = pair("nano")
    batch = parity_batch(config, 3)
    prompts = parity_prompts(batch, "box", (0,))
    # Shift the object scores by their median, so that half of the objects are absent.
    last = "sam_mask_decoder.pred_obj_score_head.layers.2.bias"
    with torch.no_grad():
        scores = ours(batch, prompts).object_score
        for model in (ours, theirs):
            model.get_parameter(last).sub_(scores.median())
        scores = ours(batch, prompts).object_score
    assert (scores > 0).any() and (scores < 0).any()
    expected = upstream_frames(theirs, batch, prompts)
    assert difference(ours, expected, batch, prompts)["logits"] < TOLERANCE


def _negated(name):
    return lambda model, patch: patch.setattr(model, name, not getattr(model, name))


def _set(name, value):
    return lambda model, patch: patch.setattr(model, name, value)


def _reverse_temporal_encodings(model, patch):
    model.maskmem_tpos_enc.data = model.maskmem_tpos_enc.data.flip(0)


def _drop_no_memory_embedding(model, patch):
    model.no_mem_embed.data.zero_()


def _lowest_iou(model, patch):
    patch.setattr(torch, "argmax", torch.argmin)


def _pointer_of_the_single_mask(model, patch):
    patch.setattr(model.sam_mask_decoder, "use_multimask_token_for_obj_ptr", False)


# A change of one convention of our model, and the prompts with which it must be detected.
SWITCHES = {
    "one memory fewer": (_set("num_maskmem", 3), "mask", (0,)),
    "temporal encodings reversed": (_reverse_temporal_encodings, "mask", (0,)),
    "scale of masks in memory": (_set("sigmoid_scale_for_mem_enc", 10.0), "mask", (0,)),
    "bias of masks in memory": (_set("sigmoid_bias_for_mem_enc", 0.0), "mask", (0,)),
    "binarised clicks": (_negated("binarize_mask_from_pts_for_mem_enc"), "click", (0,)),
    "no-memory embedding": (_drop_no_memory_embedding, "box", (0,)),
    "pointers of the future": (_negated("only_obj_ptrs_in_the_past_for_eval"), "mask", (0, 5)),
    "time of pointers": (_negated("add_tpos_enc_to_obj_ptrs"), "mask", (0,)),
    "number of pointers": (_set("max_obj_ptrs_in_encoder", 2), "mask", (0,)),
    "all conditioning frames": (_set("max_cond_frames_in_attn", 2), "mask", (0, 3, 6)),
    "mask as output": (_negated("use_mask_input_as_output_without_sam"), "mask", (0,)),
    "three masks for a click": (_negated("multimask_output_in_sam"), "click", (0,)),
    "mask of the highest IoU": (_lowest_iou, "click", (0,)),
    "pointer of the chosen mask": (_pointer_of_the_single_mask, "click", (0,)),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_change_of_one_convention_is_detected(pair, monkeypatch, name):
    config, ours, theirs = pair("nano")
    switch, kind, frames = SWITCHES[name]
    batch = parity_batch(config, 3)
    prompts = parity_prompts(batch, kind, frames)
    expected = upstream_frames(theirs, batch, prompts)
    assert difference(ours, expected, batch, prompts)["logits"] < TOLERANCE
    with torch.no_grad():
        switch(ours, monkeypatch)
        output = ours(batch, prompts).mask_logits
    expected = torch.stack([frame["pred_masks"][:, 0] for frame in expected])
    tracked = [t for t in range(batch.num_frames) if t not in frames]
    change = (output - expected)[tracked].abs().max() / expected[tracked].std()
    assert change > 10 * TOLERANCE


OFFICIAL = LossConfig(
    type="steps", focal=20, bce=0, dice=1, iou=0, temporal=0, iou_head=1, object_score=1
)
UPSTREAM_NAMES = {
    "loss_focal": "loss_mask",
    "loss_dice": "loss_dice",
    "loss_iou_head": "loss_iou",
    "loss_object_score": "loss_class",
    "loss": "core_loss",
}


def upstream_loss() -> MultiStepMultiMasksAndIous:
    """Return upstream's loss with the constants of its fine-tuning on MOSE."""
    weights = {"loss_mask": 20, "loss_dice": 1, "loss_iou": 1, "loss_class": 1}
    return MultiStepMultiMasksAndIous(
        weights,
        supervise_all_iou=True,
        iou_use_l1_loss=True,
        pred_obj_scores=True,
        focal_gamma_obj_score=0.0,
        focal_alpha_obj_score=-1.0,
    )


def gradients(model) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter; zeros where the loss does not depend on it."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }


def train_both(ours, theirs, batch, prompts, corrected):
    """Return outputs, losses and gradients in training mode, of our model and of upstream's."""
    frames, clicks = run_upstream(theirs.train(), batch, prompts, corrected)
    expected = upstream_loss()(frames, batch.masks)
    expected["core_loss"].backward()
    output = ours.train()(batch, prompts, replayed(batch, corrected, clicks))
    terms = SAM2TrainingLoss(OFFICIAL)(output, batch)
    terms["loss"].backward()
    return (output, terms, gradients(ours)), (frames, expected, gradients(theirs))


TRAINED = [
    ("nano", 2, 6, "mask", (0,), []),
    ("nano", 2, 6, "mask", (0, 2), []),
    ("nano", 2, 6, "click", (0,), [0, 2]),
    ("nano", 2, 6, "click", (0, 3), [0, 3]),
    ("nano", 2, 6, "box", (0,), [0]),
    ("nano", 2, 6, "box", (0, 1), [0, 1]),
    ("t", 1, 3, "mask", (0,), []),
    ("t", 1, 3, "click", (0,), [0, 2]),
    ("t", 1, 3, "box", (0, 1), [0, 1]),
]


@pytest.mark.parametrize(("size", "objects", "frames", "kind", "prompted", "corrected"), TRAINED)
def test_training_mode_matches_upstream(pair, size, objects, frames, kind, prompted, corrected):
    config, ours, theirs = pair(size)
    batch = parity_batch(config, objects, frames)
    batch.masks[-1, 0] = False  # an object that disappears
    prompts = parity_prompts(batch, kind, prompted)
    our_results, their_results = train_both(ours, theirs, batch, prompts, corrected)
    output, terms, our_gradients = our_results
    expected, losses, their_gradients = their_results

    logits = torch.stack([frame["pred_masks"][:, 0] for frame in expected])
    assert (output.mask_logits - logits).abs().max() < TOLERANCE * logits.std()
    assert len(output.steps) == frames + 7 * len(corrected)
    by_frame = [[s for s in output.steps if s.frame == t] for t in range(frames)]
    for frame, steps in zip(expected, by_frame, strict=True):
        for key, name in (
            ("multistep_pred_ious", "iou"),
            ("multistep_object_score_logits", "object_score"),
        ):
            for theirs_value, step in zip(frame[key], steps, strict=True):
                value = getattr(step, name)
                assert torch.allclose(value, theirs_value.view_as(value), atol=1e-4)
    for name, theirs_name in UPSTREAM_NAMES.items():
        assert terms[name].item() == pytest.approx(losses[theirs_name].item(), rel=1e-5)

    # All gradients together, and each that is not negligible.
    norm = torch.cat([g.flatten() for g in their_gradients.values()]).norm()
    errors = {name: our_gradients[name] - g for name, g in their_gradients.items()}
    assert torch.cat([error.flatten() for error in errors.values()]).norm() < 1e-5 * norm
    for name, gradient in their_gradients.items():
        if gradient.norm() > 1e-6 * norm:
            assert errors[name].norm() < 1e-3 * gradient.norm(), name


def _unsigned_times(model, patch):
    patch.setattr(model, "use_signed_tpos_enc_to_obj_ptrs", False)


def _corrected_frames_do_not_condition(model, patch):
    patch.setattr(tracking, "is_conditioning_frame", lambda t, group: t in group.prompts)


def _previous_mask_is_not_fed(model, patch):
    original = model._forward_sam_heads

    def forward(*arguments, mask_inputs=None, **options):
        return original(*arguments, **options)

    patch.setattr(model, "_forward_sam_heads", forward)


TRAINING_SWITCHES = {
    "signed time of pointers": (_unsigned_times, "click", (0, 3), []),
    "corrected frames condition": (_corrected_frames_do_not_condition, "click", (0,), [0, 1]),
    "the previous mask is fed": (_previous_mask_is_not_fed, "box", (0,), [0]),
}


@pytest.mark.parametrize("name", TRAINING_SWITCHES)
def test_change_of_one_training_convention_is_detected(pair, monkeypatch, name):
    config, ours, theirs = pair("nano")
    switch, kind, prompted, corrected = TRAINING_SWITCHES[name]
    batch = parity_batch(config, 2, 6)
    prompts = parity_prompts(batch, kind, prompted)
    with torch.no_grad():
        expected, clicks = run_upstream(theirs.train(), batch, prompts, corrected)
        switch(ours.train(), monkeypatch)
        corrections = replayed(batch, corrected, clicks)
        if corrections is not None:
            corrections.strict = False
        output = ours(batch, prompts, corrections).mask_logits
    expected = torch.stack([frame["pred_masks"][:, 0] for frame in expected])
    assert (output - expected).abs().max() > 10 * TOLERANCE * expected.std()
