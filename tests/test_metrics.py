"""Scores against values computed by hand."""

import numpy as np
import pytest

from sam2kit.metrics import after_first_visible, copy_first_mask, dice, iou, mean_tracked_iou


def rectangle(x0, y0, x1, y1, size=8):
    mask = np.zeros((size, size), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


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
def test_by_hand(a, b, expected_iou, expected_dice):
    assert iou(a, b) == pytest.approx(expected_iou)
    assert dice(a, b) == pytest.approx(expected_dice)


def test_leading_axes_stay():
    a = np.stack([SQUARE, SQUARE, EMPTY])[None]
    b = np.stack([SQUARE, SHIFTED, EMPTY])[None]
    assert iou(a, b) == pytest.approx(np.array([[1, 1 / 3, 1]]))
    assert iou(a, b).shape == (1, 3)


def test_large_masks_do_not_overflow():
    full = np.ones((2048, 2048), dtype=bool)
    assert iou(full, full) == 1.0 and dice(full, full) == 1.0


@pytest.mark.parametrize("score", [iou, dice])
def test_bad_masks_are_refused(score):
    with pytest.raises(ValueError, match="shapes"):
        score(SQUARE, SQUARE[:4])
    with pytest.raises(ValueError, match="bool"):
        score(SQUARE.astype(np.uint8), SQUARE)


def test_tracked_iou_leaves_out_what_is_not_scored():
    # Object 0: perfect, then 1/3, then lost. Object 1: only frame 2 is scored. Object 2: never.
    truth = np.stack([[SQUARE, SQUARE, SQUARE]] * 3)
    prediction = np.stack(
        [[SQUARE, EMPTY, EMPTY], [SHIFTED, EMPTY, EMPTY], [EMPTY, SHIFTED, EMPTY]]
    )
    scored = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
    per_object, mean = mean_tracked_iou(prediction, truth, scored)
    assert per_object[:2] == pytest.approx([1 / 6, 1 / 3]) and np.isnan(per_object[2])
    assert mean == pytest.approx((1 / 6 + 1 / 3) / 2)


def test_nothing_scored_is_not_a_number():
    masks = SQUARE[None, None]
    per_object, mean = mean_tracked_iou(masks, masks, np.zeros((1, 1), dtype=bool))
    assert np.isnan(per_object).all() and np.isnan(mean)
    with pytest.raises(ValueError, match="scored"):
        mean_tracked_iou(masks, masks, np.zeros((2, 1), dtype=bool))


def test_frames_after_the_first_visible_one():
    visible = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 1]], dtype=bool)
    expected = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0], [1, 0, 1, 0]], dtype=bool)
    assert (after_first_visible(visible) == expected).all()


def test_the_copied_mask_starts_where_the_object_does():
    # Object 0 is there from the start, object 1 from frame 1 on, object 2 never.
    truth = np.stack([[SQUARE, EMPTY, EMPTY], [SHIFTED, SHIFTED, EMPTY], [EMPTY, SQUARE, EMPTY]])
    copied = copy_first_mask(truth, truth.any((2, 3)))
    expected = [[SQUARE, EMPTY, EMPTY], [SQUARE, SHIFTED, EMPTY], [SQUARE, SHIFTED, EMPTY]]
    assert (copied == np.stack(expected)).all()
