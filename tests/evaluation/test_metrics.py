"""Test scores of masks against values computed by hand."""

import numpy as np
import pytest

from sam2kit.evaluation.boundary import BOUNDARY_TOLERANCE, region_and_boundary
from sam2kit.evaluation.metrics import (
    after_first_visible,
    copy_first_mask,
    decay,
    iou,
    mean_tracked_iou,
    outside_void,
    presence_and_recovery,
    presence_counts,
    recovery_counts,
)
from sam2kit.evaluation.scores import CONVENTIONS, VideoScorer


def rectangle(x0, y0, x1, y1, size=8):
    mask = np.zeros((size, size), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def boundary_f(prediction, truth, tolerance=BOUNDARY_TOLERANCE):
    return region_and_boundary(prediction, truth, tolerance)[1]


EMPTY = rectangle(0, 0, 0, 0)
SQUARE = rectangle(0, 0, 4, 4)  # 16 pixels
SHIFTED = rectangle(2, 0, 6, 4)  # 16 pixels, 8 of them in SQUARE


@pytest.mark.parametrize(
    ("a", "b", "expected_iou", "expected_dice"),
    [
        (SQUARE, SQUARE, 1.0, 1.0),
        (SQUARE, SHIFTED, 8 / 24, 16 / 32),
        (SQUARE, rectangle(0, 0, 2, 2), 4 / 16, 8 / 20),
        (SQUARE, rectangle(5, 5, 7, 7), 0.0, 0.0),
        (SQUARE, EMPTY, 0.0, 0.0),
        (EMPTY, SQUARE, 0.0, 0.0),
        (EMPTY, EMPTY, 1.0, 1.0),
    ],
)
def test_iou_and_dice_by_hand(a, b, expected_iou, expected_dice):
    assert iou(a, b) == pytest.approx(expected_iou)
    scorer = VideoScorer("video", CONVENTIONS["all_frames"], [1])
    scorer.add(0, {1: b}, {1: a})
    assert scorer.result().dice == pytest.approx(expected_dice)


def test_leading_axes_are_preserved():
    a = np.stack([SQUARE, SQUARE, EMPTY])[None]
    b = np.stack([SQUARE, SHIFTED, EMPTY])[None]
    assert iou(a, b) == pytest.approx(np.array([[1, 1 / 3, 1]]))
    assert iou(a, b).shape == (1, 3)


def test_large_masks_do_not_overflow():
    full = np.ones((2048, 2048), dtype=bool)
    assert iou(full, full) == 1.0


def test_bad_masks_are_rejected():
    with pytest.raises(ValueError, match="shapes"):
        iou(SQUARE, SQUARE[:4])
    with pytest.raises(ValueError, match="bool"):
        iou(SQUARE.astype(np.uint8), SQUARE)


def test_tracked_iou_ignores_frames_that_are_not_scored():
    # Object 0: perfect, then 1/3, then 0. Object 1: only frame 2 is scored. Object 2: no frame is.
    truth = np.stack([[SQUARE, SQUARE, SQUARE]] * 3)
    prediction = np.stack(
        [[SQUARE, EMPTY, EMPTY], [SHIFTED, EMPTY, EMPTY], [EMPTY, SHIFTED, EMPTY]]
    )
    scored = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
    per_object, mean = mean_tracked_iou(prediction, truth, scored)
    assert per_object[:2] == pytest.approx([1 / 6, 1 / 3]) and np.isnan(per_object[2])
    assert mean == pytest.approx((1 / 6 + 1 / 3) / 2)


def test_tracked_iou_without_scored_frames_is_nan():
    masks = SQUARE[None, None]
    per_object, mean = mean_tracked_iou(masks, masks, np.zeros((1, 1), dtype=bool))
    assert np.isnan(per_object).all() and np.isnan(mean)
    with pytest.raises(ValueError, match="scored"):
        mean_tracked_iou(masks, masks, np.zeros((2, 1), dtype=bool))


def test_after_first_visible():
    visible = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)
    expected = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]], dtype=bool)
    assert (after_first_visible(visible) == expected).all()


def test_the_copied_mask_starts_on_the_first_visible_frame():
    # Object 0 is visible from frame 0, object 1 from frame 1, object 2 on no frame.
    truth = np.stack([[SQUARE, EMPTY, EMPTY], [SHIFTED, SHIFTED, EMPTY], [EMPTY, SQUARE, EMPTY]])
    copied = copy_first_mask(truth, truth.any((2, 3)))
    expected = [[SQUARE, EMPTY, EMPTY], [SQUARE, SHIFTED, EMPTY], [SQUARE, SHIFTED, EMPTY]]
    assert (copied == np.stack(expected)).all()


def boundary(mask):
    """Return the pixels that differ from their right, lower or lower right neighbour."""
    near = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    neighbours = (near[:-1, 1:], near[1:, :-1], near[1:, 1:])
    return np.logical_or.reduce([mask != other for other in neighbours])


def f_by_definition(prediction, truth, radius):
    """Compute F from all distances between boundary pixels."""
    a, b = np.argwhere(boundary(prediction)), np.argwhere(boundary(truth))
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    near = ((a[:, None] - b[None]) ** 2).sum(-1) <= radius**2
    precision, recall = near.any(1).sum() / len(a), near.any(0).sum() / len(b)
    both = precision + recall
    return 2 * precision * recall / both if both > 0 else 0.0


def any_mask(generator, shape):
    """Draw a mask that is empty, full, noise, one pixel, a line or a rectangle."""
    mask = np.zeros(shape, bool)
    kind = generator.integers(6)
    y, x = generator.integers(shape[0]), generator.integers(shape[1])
    tall, wide = (1, 1) if kind == 3 else generator.integers(1, 40, 2)
    if kind == 4:
        tall = 1
    if kind == 1:
        mask[:] = True
    elif kind == 2:
        mask[:] = generator.random(shape) < generator.choice([0.02, 0.5, 0.98])
    elif kind > 2:
        mask[y : y + tall, x : x + wide] = True
    return mask


@pytest.mark.parametrize("seed", range(10))
def test_boundary_f_equals_its_definition(seed):
    generator = np.random.default_rng(seed)
    for _ in range(30):
        shape = tuple(generator.integers(1, 80, 2))
        a, b = any_mask(generator, shape), any_mask(generator, shape)
        tolerance = generator.choice([0.008, 0.05, 0.4, 3.0, 70.0])
        radius = int(np.ceil(tolerance if tolerance >= 1 else tolerance * np.hypot(*shape)))
        j, f = region_and_boundary(a, b, tolerance)
        assert f == f_by_definition(a, b, radius) == boundary_f(a, b, tolerance)
        assert j == iou(a, b)


def test_boundary_f_by_hand():
    # The boundaries are 3 columns apart: more than a radius of 2, but not of 3.
    a, b = rectangle(0, 0, 4, 250, 250), rectangle(0, 0, 7, 250, 250)
    assert boundary_f(a, b, 2) == 0.0 and boundary_f(a, b, 3) == 1.0
    assert boundary_f(a, b) == 1.0  # ceil(0.008 * 353.6) = 3
    assert boundary_f(a, b, 0.005) == 0.0  # ceil(1.8) = 2
    full = np.ones((8, 8), bool)
    assert boundary_f(full, EMPTY) == 1.0, "neither has a boundary, as in the official package"
    assert boundary_f(SQUARE, EMPTY) == boundary_f(EMPTY, SQUARE) == 0.0


def test_boundary_f_requires_one_bool_mask():
    with pytest.raises(ValueError, match="shapes"):
        boundary_f(SQUARE, SQUARE[:4])
    with pytest.raises(ValueError, match="bool"):
        boundary_f(SQUARE.astype(np.uint8), SQUARE.astype(np.uint8))
    with pytest.raises(ValueError, match="one mask"):
        boundary_f(SQUARE[None], SQUARE[None])


def test_masks_need_not_be_contiguous():
    a = rectangle(3, 5, 40, 30, 64)
    assert region_and_boundary(a.T, a.T.copy()) == (1.0, 1.0)
    assert region_and_boundary(a[::2, ::3], a[::2, ::3].copy()) == (1.0, 1.0)


def test_decay_is_the_first_quarter_minus_the_last():
    # With eight frames, the borders of quarters are 0, 2, 4, 5 and 7; each belongs to both sides.
    values = np.array([1.0, 1, 0.7, 0.9, 0.9, 0.8, 0.5, 0.5])
    assert decay(values) == pytest.approx(2.7 / 3 - 1.8 / 3)
    assert decay(np.array([0.7])) == 0 and decay(np.zeros(0)) is None


def test_presence_by_hand():
    present = np.array([1, 1, 1, 1, 0, 0, 0, 0], bool)
    predicted = np.array([1, 1, 1, 0, 0, 0, 1, 0], bool)
    counts = presence_counts(present, predicted)
    counts |= recovery_counts(present, predicted * 1.0, present)
    rates = presence_and_recovery(counts)
    assert rates["absent_precision"] == 3 / 4 and rates["absent_recall"] == 3 / 4
    assert rates["false_absence"] == 1 / 4 and rates["recovery"] is None


def recovery(present, j, scored=None):
    present = np.array(present, bool)
    scored = np.ones_like(present) if scored is None else np.array(scored, bool)
    counts = recovery_counts(present, np.array(j, float), scored)
    return tuple(counts.values())


def test_recovery_by_hand():
    assert recovery([0, 1, 1], [1, 0.9, 0.9]) == (0, 0, 0), "a first entry is no re-entry"
    assert recovery([1, 0, 1, 1], [1, 1, 0.9, 0.9]) == (1, 1, 1), "on the first frame"
    assert recovery([1, 0, 1, 1], [1, 1, 0.5, 0.6]) == (1, 1, 2), "above 0.5 on the second frame"
    assert recovery([1, 0, 1, 0, 1], [1, 1, 0.1, 1, 0.9]) == (2, 1, 1), "left before recovery"
    late = [1, 0] + [1] * 12
    assert recovery(late, [1, 1] + [0] * 9 + [1] * 3) == (1, 1, 10)
    assert recovery(late, [1, 1] + [0] * 10 + [1] * 2) == (1, 0, 0)
    prompted = [1, 0, 1, 1, 1], [1, 1, 0, 1, 1]
    assert recovery(*prompted, scored=[0, 1, 1, 0, 1]) == (1, 0, 0), "a prompt is no recovery"
    assert recovery(*prompted, scored=[0, 1, 0, 1, 1]) == (0, 0, 0), "prompted on the re-entry"


def test_void_pixels_are_cleared_and_a_missing_mask_is_empty():
    prediction, truth = outside_void(SHIFTED, SQUARE, rectangle(2, 0, 6, 4))
    assert not prediction.any() and (truth == rectangle(0, 0, 2, 4)).all()
    prediction, truth = outside_void(None, SQUARE, None)
    assert not prediction.any() and prediction.shape == SQUARE.shape and truth is SQUARE
    assert not outside_void(SQUARE, None, None)[1].any()
    with pytest.raises(ValueError, match="must not both be None"):
        outside_void(None, None, None)
