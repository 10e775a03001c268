"""Compare the loss with values computed by hand and with upstream's functions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sam2kit.config.schema import LossConfig
from sam2kit.data.clip import ClipBatch
from sam2kit.models.outputs import DecoderStep, TrackOutput
from sam2kit.training.losses import (
    SAM2TrainingLoss,
    bce_loss,
    dice_loss,
    focal_loss,
    iou_head_loss,
    iou_loss,
    temporal_loss,
)


def logit(*probabilities: float) -> torch.Tensor:
    """One object-frame of one row of pixels."""
    return torch.logit(torch.tensor(probabilities))[None, None]


def truth(*pixels: int) -> torch.Tensor:
    return torch.tensor(pixels, dtype=torch.bool)[None, None]


def test_bce_by_hand():
    expected = -(math.log(0.8) + math.log(0.6)) / 2
    assert bce_loss(logit(0.8, 0.4), truth(1, 0)).item() == pytest.approx(expected)


def test_bce_weighs_object_pixels_by_their_rarity_up_to_the_limit():
    logits, mask = logit(0.8, 0.4, 0.4, 0.4), truth(1, 0, 0, 0)
    inside, outside = -math.log(0.8), -3 * math.log(0.6)
    assert bce_loss(logits, mask, 5).item() == pytest.approx((3 * inside + outside) / 4)
    assert bce_loss(logits, mask, 2).item() == pytest.approx((2 * inside + outside) / 4)


def test_dice_and_iou_by_hand():
    logits, mask = logit(0.8, 0.4), truth(1, 0)
    # overlap 0.8, sum of probabilities 1.2, area 1; 1 is added above and below
    assert dice_loss(logits, mask).item() == pytest.approx(1 - 2.6 / 3.2)
    assert iou_loss(logits, mask).item() == pytest.approx(1 - 1.8 / 2.4)


def test_temporal_by_hand():
    # The first pixel rises by 0.5, and by 1 in the ground truth; the second falls by 0.2, and by 0.
    loss = temporal_loss(logit(0.7, 0.1), logit(0.2, 0.3), truth(1, 0), truth(0, 0))
    assert loss.item() == pytest.approx((0.5 + 0.2) / 2)
    still = temporal_loss(logit(0.7, 0.1), logit(0.7, 0.1), truth(1, 0), truth(1, 0))
    assert still.item() == 0


def test_iou_head_by_hand():
    loss = iou_head_loss(torch.tensor([0.9]), logit(0.8, 0.6, 0.4), truth(1, 0, 0))
    assert loss.item() == pytest.approx(0.4)


def test_dice_and_bce_equal_upstreams():
    upstream = pytest.importorskip("training.loss_fns")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, 8, generator=generator)
    mask = torch.rand(5, 8, 8, generator=generator) > 0.5
    theirs = upstream.dice_loss(logits, mask.float().flatten(1), num_objects=1)
    assert dice_loss(logits, mask).sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    focal = upstream.sigmoid_focal_loss(
        logits.flatten(1), mask.float().flatten(1), num_objects=1, alpha=-1, gamma=0
    )
    assert bce_loss(logits, mask).sum().item() == pytest.approx(focal.item(), rel=1e-5)


@pytest.fixture
def scene():
    """Three frames, two objects at full resolution; the second is prompted on the second frame."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(3, 2, 8, 8, generator=generator) > 0.5
    tracked = torch.tensor([[1, 0], [1, 1], [1, 1]], dtype=torch.bool)
    output = TrackOutput(
        mask_logits=torch.randn(3, 2, 8, 8, generator=generator),
        iou=torch.rand(3, 2, generator=generator),
        object_score=torch.randn(3, 2, generator=generator),
        tracked=tracked,
        prompted=torch.zeros_like(tracked),
    )
    batch = ClipBatch(
        frames=torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8),
        masks=masks,
        annotated=torch.ones(3, 2, dtype=torch.bool),
        clip_of_object=torch.zeros(2, dtype=torch.long),
        names=["a"],
        frame_indices=[[0, 1, 2]],
        object_ids=[1, 2],
        sizes=[(8, 8)],
    )
    return output, batch


ALL = LossConfig(bce=2.0, dice=1.0, iou=0.5, temporal=0.1, iou_head=0.3, object_score=0.7)


def test_terms_are_sums_over_object_frames_divided_by_their_number(scene):
    output, batch = scene
    terms = SAM2TrainingLoss(ALL)(output, batch)
    logits, masks = output.mask_logits, batch.masks
    pairs = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1)]
    for name, function in (("bce", bce_loss), ("dice", dice_loss), ("iou", iou_loss)):
        by_hand = sum(function(logits[t, o][None], masks[t, o][None]).item() for t, o in pairs) / 5
        assert terms[f"loss_{name}"].item() == pytest.approx(by_hand, rel=1e-5)
    temporal = sum(
        temporal_loss(
            *(x[None] for x in (logits[t, o], logits[t - 1, o], masks[t, o], masks[t - 1, o]))
        )
        for t, o in [(1, 0), (2, 0), (2, 1)]
    )
    assert terms["loss_temporal"].item() == pytest.approx(temporal.item() / 5, rel=1e-5)
    total = sum(vars(ALL)[k.removeprefix("loss_")] * v for k, v in terms.items() if k != "loss")
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_default_terms(scene):
    terms = SAM2TrainingLoss(LossConfig())(*scene)
    assert set(terms) == {"loss", "loss_bce", "loss_dice", "loss_iou", "loss_temporal"}


def test_unannotated_frames_contribute_to_no_term(scene):
    output, batch = scene
    annotated = batch.annotated.clone()
    annotated[1, 0] = False
    batch = replace(batch, annotated=annotated)
    terms = SAM2TrainingLoss(ALL)(output, batch)
    other = replace(batch, masks=batch.masks.clone())
    other.masks[1, 0] = ~other.masks[1, 0]
    for name, value in SAM2TrainingLoss(ALL)(output, other).items():
        assert torch.equal(value, terms[name]), name
    by_hand = sum(
        dice_loss(output.mask_logits[t, o][None], batch.masks[t, o][None])
        for t, o in [(0, 0), (2, 0), (1, 1), (2, 1)]
    )
    assert terms["loss_dice"].item() == pytest.approx(by_hand.item() / 4, rel=1e-5)


def test_absent_objects_contribute_to_bce_and_object_score_only(scene):
    output, batch = scene
    masks = batch.masks.clone()
    masks[2, 0] = False
    batch = replace(batch, masks=masks)
    logits = output.mask_logits.clone().requires_grad_()
    terms = SAM2TrainingLoss(ALL)(replace(output, mask_logits=logits), batch)
    for name in ("dice", "iou"):
        (gradient,) = torch.autograd.grad(terms[f"loss_{name}"], logits, retain_graph=True)
        assert not gradient[2, 0].any() and gradient[1, 0].any()
    (gradient,) = torch.autograd.grad(terms["loss_bce"], logits)
    assert (gradient[2, 0] > 0).all()
    scores = output.object_score
    present = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.stack([scores[0, 0], scores[1, 0], scores[2, 0], scores[1, 1], scores[2, 1]]), present
    )
    assert terms["loss_object_score"].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_loss_without_supervision_is_a_differentiable_zero(scene):
    output, batch = scene
    logits = output.mask_logits.clone().requires_grad_()
    output = replace(output, mask_logits=logits, tracked=torch.zeros_like(output.tracked))
    terms = SAM2TrainingLoss(ALL)(output, batch)
    assert all(v.item() == 0 for v in terms.values())
    terms["loss"].backward()


def test_loss_of_a_withheld_mask_is_bounded(scene):
    from sam2.modeling import sam2_base

    from sam2kit.training.losses import ABSENT_LOGIT, NO_OBJ_SCORE

    assert NO_OBJ_SCORE == sam2_base.NO_OBJ_SCORE
    output, batch = scene
    logits = output.mask_logits.clone()
    logits[1, 0] = NO_OBJ_SCORE
    terms = SAM2TrainingLoss(ALL)(replace(output, mask_logits=logits), batch)
    logits[1, 0] = ABSENT_LOGIT
    for name, value in SAM2TrainingLoss(ALL)(replace(output, mask_logits=logits), batch).items():
        assert torch.equal(value, terms[name]), name


def test_term_with_weight_zero_is_left_out(scene):
    terms = SAM2TrainingLoss(LossConfig(bce=0, temporal=0))(*scene)
    assert set(terms) == {"loss", "loss_dice", "loss_iou"}


def test_focal_by_hand():
    # -0.25 * 0.2^2 log 0.8 on the object, -0.75 * 0.4^2 log 0.6 beside it
    expected = -(0.25 * 0.04 * math.log(0.8) + 0.75 * 0.16 * math.log(0.6)) / 2
    assert focal_loss(logit(0.8, 0.4), truth(1, 0)).item() == pytest.approx(expected)


def test_focal_and_the_iou_head_equal_upstreams():
    from training.loss_fns import iou_loss as their_iou_loss
    from training.loss_fns import sigmoid_focal_loss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, 8, generator=generator)
    mask = torch.rand(5, 8, 8, generator=generator) > 0.5
    theirs = sigmoid_focal_loss(logits.flatten(1), mask.float().flatten(1), num_objects=1)
    assert focal_loss(logits, mask).sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    predicted = torch.rand(5, generator=generator)
    theirs = their_iou_loss(
        logits[:, None], mask[:, None].float(), predicted[:, None], 1, use_l1_loss=True
    )
    mine = iou_head_loss(predicted, logits, mask).sum()
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-5)


STEPS = LossConfig(
    type="steps", focal=20, bce=0, dice=1, iou=0, temporal=0, iou_head=1, object_score=1
)


def decoder_step(frame: int, objects: list[int], masks: int, seed: int) -> DecoderStep:
    generator = torch.Generator().manual_seed(seed)
    n = len(objects)
    return DecoderStep(
        frame,
        torch.tensor(objects),
        torch.randn(n, masks, 8, 8, generator=generator),
        torch.rand(n, masks, generator=generator),
        torch.randn(n, generator=generator),
    )


def test_steps_are_summed_and_divided_by_the_number_of_objects(scene):
    """One output with three candidate masks and one with a single mask."""
    output, batch = scene
    three, one = decoder_step(0, [0], 3, seed=1), decoder_step(1, [0, 1], 1, seed=2)
    terms = SAM2TrainingLoss(STEPS)(replace(output, steps=[three, one]), batch)
    mask = batch.masks[0, :1].expand(3, -1, -1)
    focal, dice = focal_loss(three.mask_logits[0], mask), dice_loss(three.mask_logits[0], mask)
    best = (20 * focal + dice).argmin()
    logits, truths = one.mask_logits[:, 0], batch.masks[1]
    expected_focal = (focal[best] + focal_loss(logits, truths).sum()) / 2
    assert terms["loss_focal"].item() == pytest.approx(expected_focal.item(), rel=1e-5)
    head = iou_head_loss(three.iou[0], three.mask_logits[0], mask).mean()  # of all three
    expected_head = (head + iou_head_loss(one.iou[:, 0], logits, truths).sum()) / 2
    assert terms["loss_iou_head"].item() == pytest.approx(expected_head.item(), rel=1e-5)
    total = 20 * terms["loss_focal"] + sum(
        terms[f"loss_{name}"] for name in ("dice", "iou_head", "object_score")
    )
    assert terms["loss"].item() == pytest.approx(total.item(), rel=1e-5)


def test_steps_with_absent_or_unannotated_objects(scene):
    output, batch = scene
    step = decoder_step(1, [0, 1], 1, seed=2)
    output = replace(output, steps=[step])
    batch.masks[1, 0] = False
    terms = SAM2TrainingLoss(STEPS)(output, batch)
    other = replace(step, mask_logits=step.mask_logits.clone(), iou=step.iou.clone())
    other.mask_logits[0] += 3
    other.iou[0] = 0
    again = SAM2TrainingLoss(STEPS)(replace(output, steps=[other]), batch)
    assert {k: v.item() for k, v in again.items()} == {k: v.item() for k, v in terms.items()}
    score = torch.nn.functional.softplus(step.object_score[0])  # -log(1 - p)
    present = torch.nn.functional.softplus(-step.object_score[1])
    assert terms["loss_object_score"].item() == pytest.approx((score + present).item() / 2)
    batch.annotated[1] = False
    assert all(v.item() == 0 for v in SAM2TrainingLoss(STEPS)(output, batch).values())


def test_batch_without_steps_has_a_differentiable_loss(scene):
    output, batch = scene
    logits = output.mask_logits.requires_grad_()
    nothing = replace(output, mask_logits=logits, tracked=torch.zeros_like(output.tracked))
    SAM2TrainingLoss(STEPS)(nothing, batch)["loss"].backward()
    assert not logits.grad.any()
