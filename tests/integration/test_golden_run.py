"""Three optimizer steps of the quick start have the recorded losses.

``UPDATE_SNAPSHOTS=1 pytest tests/integration`` records new ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_old_run import ROOT, rows
from snapshots import UPDATE

from sam2kit.config.loading import load_config
from sam2kit.training.trainer import fit

GOLDEN = Path(__file__).parent / "golden_run.json"
SETTINGS = [
    *("trainer.max_steps=3", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"),
    "dataset.num_workers=0",
]


def test_three_steps_have_the_recorded_losses(tmp_path, monkeypatch, same_arithmetic):
    monkeypatch.chdir(ROOT)
    fit(load_config("configs/quickstart.yaml", SETTINGS), tmp_path / "run")
    metrics = rows(tmp_path / "run", 0)
    if UPDATE:
        GOLDEN.write_text(json.dumps(metrics, indent=1) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert [row["step"] for row in metrics] == [0, 1, 2, 2]  # three steps and a validation
    for row, values in zip(metrics, expected, strict=True):
        assert row == pytest.approx(values, abs=1e-6)
