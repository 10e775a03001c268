"""The benchmarks run; the sizes are too small for meaningful figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("training", reason="upstream's training package is not installed")

from benchmarks import growth, learning, measure
from benchmarks.__main__ import main
from benchmarks.measure import Finding, Options
from benchmarks.rows import ROWS

ROOT = Path(__file__).parents[2]


def rows_of(out: Path) -> dict:
    return json.loads((out / "suite.json").read_text())["rows"]


def test_row_is_written_as_table_json_and_picture_and_measured_once(tmp_path, capfd):
    command = ["step1", "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    table, first = capfd.readouterr().out, (tmp_path / "suite.json").read_text()
    assert table.strip() == (tmp_path / "suite.md").read_text().strip()
    assert (tmp_path / "suite.png").stat().st_size > 5000
    row = rows_of(tmp_path)["step1"]
    findings = {finding["what"]: finding for finding in row["findings"]}
    assert findings["exact training step, 1 object: gradients"]["value"] < 1e-5
    assert findings["training step, 1 object"]["bound"] == 3.5
    assert row["machine"]["torch"] and row["machine"]["date"]
    assert main(command) == 0
    assert "step1" in capfd.readouterr().err
    # A second measurement would differ in its times and its date.
    assert (tmp_path / "suite.json").read_text() == first


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("step1", "full3")])
def test_every_row_runs(tmp_path, name):
    if name == "data":
        pytest.importorskip("pandas", reason="upstream's dataset needs pandas")
    assert main([name, "--quick", "--out", str(tmp_path)]) == 0
    assert rows_of(tmp_path)[name]["findings"]


def test_table_shows_which_bounds_hold():
    fast = measure.ratio("a", "b", 3.0, 1.0, 2.0, "why")
    slow = measure.ratio("c", "b", 3.0, 2.0, 2.0)
    memory = measure.share("d", "b", 2 * 2**30, 2**30, 0.4)
    absent = Finding("e", "b", "not installed", "", None, "")
    assert [f.holds for f in (fast, slow, memory, absent)] == [True, False, False, None]
    text = measure.table([fast, slow, memory, absent])
    assert "| a | b | 3 s | 1 s | 3.00x | at least 2.00x | yes |" in text
    assert "| d | b | 2,048 MiB | 1,024 MiB | 50% | at most 40% | **no** |" in text
    assert "- a: why" in text
    assert measure.ratio_chart([memory]) is None


def test_peak_bytes_ignores_freed_memory():
    import torch

    def run():
        for _ in range(3):
            torch.zeros(2**20)  # 4 MiB, freed in each iteration

    assert 4 * 2**20 <= measure.peak_bytes(run) < 5 * 2**20


def test_unknown_rows_and_quick_results_without_a_directory_are_rejected(capsys):
    with pytest.raises(SystemExit):
        main(["setp1"])
    assert "setp1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--quick"])


@pytest.mark.slow
def test_failed_row_is_reported_and_other_rows_are_saved(tmp_path, capfd):
    command = ["jf", "step1", "--quick", "--out", str(tmp_path), "--device", "cdua"]
    assert main(command) == 1
    assert "failed: step1" in capfd.readouterr().err
    assert list(rows_of(tmp_path)) == ["jf"]


@pytest.mark.slow
def test_growth_and_learning_run(tmp_path):
    growth.main(["--quick", "--out", str(tmp_path), "--repeats", "1"])
    panels = json.loads((tmp_path / "growth.json").read_text())["panels"]
    assert [len(points) for points in panels.values()] == [2, 2, 2, 2]
    assert (tmp_path / "growth.png").stat().st_size > 5000
    arguments = [
        "--davis",
        str(tmp_path / "missing"),
        "--seeds",
        "1",
        "--quick",
        "--out",
        str(tmp_path),
    ]
    learning.main(arguments)
    runs = json.loads((tmp_path / "learning.json").read_text())["runs"]
    assert [run["setting"] for run in runs] == ["official", "fast"]
    assert "quick start" in (tmp_path / "learning.md").read_text()


@pytest.mark.slow
def test_command_line(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "start", "--quick", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "`sam2kit --help`" in result.stdout


def test_quick_options_are_small():
    assert Options.tiny(threads=2) == Options("nano", 64, 3, 4, 2, 1, "cpu", True)


@pytest.mark.slow
def test_gpu_check_passes_on_this_machine():
    """All its checks run, at toy sizes without a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu_check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
