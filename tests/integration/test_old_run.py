"""A run of an older version still loads, resumes and evaluates."""

from __future__ import annotations

import json

import make_old_run
import pytest

from sam2kit.config.loading import load_config
from sam2kit.training.trainer import fit

EXPECTED = json.loads(make_old_run.EXPECTED.read_text())


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_weights_of_an_old_checkpoint_load_unchanged(old_run, name):
    assert make_old_run.checksums(old_run / name) == EXPECTED["weights"]


def test_old_run_resumes_within_an_epoch_as_if_never_stopped(old_run, same_arithmetic):
    old_rows = make_old_run.rows(old_run, 0)
    config = load_config(old_run / "config.yaml", [f"trainer.max_steps={make_old_run.END}"])
    result = fit(config, old_run, resume=True)
    rows = make_old_run.rows(old_run, 0)
    assert rows[: len(old_rows)] == old_rows
    check_rows(rows[len(old_rows) :], EXPECTED["whole_run"])
    assert make_old_run.checksums(result.last_checkpoint) != EXPECTED["weights"]


def test_old_checkpoint_resumes_in_another_run_directory(old_run, tmp_path, same_arithmetic):
    overrides = [f"trainer.max_steps={make_old_run.END}", "trainer.resume_from=run/last.ckpt"]
    result = fit(load_config(old_run / "config.yaml", overrides), tmp_path / "resumed")
    check_rows(make_old_run.rows(result.run_dir, 0), EXPECTED["whole_run"])
    assert result.best_checkpoint.exists() and result.last_checkpoint.exists()


def check_rows(rows, expected):
    """Compare rows of ``metrics.csv`` up to rounding."""
    assert len(rows) == len(expected)
    for row, values in zip(rows, expected, strict=True):
        assert row == pytest.approx(values, abs=1e-6)


def test_scores_of_an_old_run_are_unchanged(old_evaluation):
    trackers = json.loads((old_evaluation / "metrics.json").read_text())["trackers"]
    scores = {name: tracker["J&F"] for name, tracker in trackers.items()}
    assert scores == pytest.approx(EXPECTED["scores"], abs=1e-6)
