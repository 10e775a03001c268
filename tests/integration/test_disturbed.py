"""Disturbed trainings end as undisturbed ones; what the runs hold is taken stock of."""

import json
import sys

import pytest

from benchmarks import disturbed, endurance


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on files is set by Linux's prlimit")
def test_every_kind_of_disturbance_once(tmp_path):
    pytest.importorskip("wandb")
    assert disturbed.main(["--moments", "6", "--seed", "1", "--out", str(tmp_path)]) == 0
    outcomes = json.loads((tmp_path / "disturbed.json").read_text())["outcomes"]
    assert [outcome["kind"] for outcome in outcomes] == list(disturbed.KINDS)


@pytest.mark.slow
def test_stock_is_taken(tmp_path):
    endurance.main(["--steps", "200", "--samples", "5", "--out", str(tmp_path)])
    samples = json.loads((tmp_path / "endurance.json").read_text())["samples"]
    assert len(samples) == 5 and all(sample["processes"] >= 2 for sample in samples)
    assert (tmp_path / "endurance.png").stat().st_size > 5000
