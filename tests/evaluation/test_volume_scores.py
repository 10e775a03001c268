"""Test Dice and HD95 against the values of MedPy 0.5.2 on the same volumes."""

from __future__ import annotations

import numpy as np
import pytest
from volume_cases import SPACING, pair

from sam2kit.evaluation.volume_scores import dice, hd95

VALUES = [
    (0.2108843537414966, 4.2731721238443),
    (0.5605947955390335, 2.9154759474226504),
    (0.12130637636080871, 4.768647607026546),
    (0.587378640776699, 2.808914381037628),
    (0.4375, 3.862931666612225),
    (0.3195808775376555, 3.8483762809787714),
]


@pytest.mark.parametrize("seed", range(len(VALUES)))
def test_equal_to_the_reference(seed):
    one, other = pair(seed)
    assert (dice(one, other), hd95(one, other, SPACING)) == pytest.approx(VALUES[seed], abs=1e-12)


def test_distances_are_in_mm():
    one, other = np.zeros((3, 8, 8), bool), np.zeros((3, 8, 8), bool)
    one[0, 2, 2] = other[1, 2, 2] = True
    assert hd95(one, other, SPACING) == 2.5
    assert hd95(one, one, SPACING) == 0


def test_empty_objects():
    empty, full = np.zeros((2, 3, 4), bool), np.ones((2, 3, 4), bool)
    assert hd95(empty, full, SPACING) is None and hd95(full, empty, SPACING) is None
    assert dice(empty, full) == 0 and dice(empty, empty) == 1
