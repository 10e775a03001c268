"""Test comparisons of runs: finding them, table and figure, and warnings."""

import json

import pytest

from sam2kit.evaluation.compare_runs import (
    comparison_figure,
    comparison_rows,
    comparison_warnings,
    find_runs,
    leaderboard_rows,
)
from sam2kit.utils.errors import DataError


def write_run(folder, score, videos=("a", "b"), version=2, convention="prompted"):
    folder.mkdir(parents=True)
    means = {k: score for k in ("J", "F", "J&F")} | {"false_absence": 0.0, "recovery": None}
    means |= {"scored_objects": 3, "J&F_interval": [score - 0.1, score + 0.1]}
    copied = means | {"J&F_interval": [None, None]}
    document = {
        "schema_version": version,
        "convention": {"name": convention},
        "protocol": {"protocol": "mask"},
        "trackers": {"after training": means, "first mask copied": copied},
        "videos": {video: {} for video in videos},
    }
    (folder / "metrics.json").write_text(json.dumps(document))
    return folder


def test_runs_in_subfolders_get_unique_names(tmp_path):
    write_run(tmp_path / "one" / "eval", 0.5)
    write_run(tmp_path / "two" / "eval", 0.25)
    runs = find_runs([tmp_path, tmp_path / "one"])
    assert [run.name for run in runs] == ["one/eval", "two/eval"]
    assert [run.name for run in find_runs([tmp_path / "two"])] == ["eval"]


def test_table_and_figure(tmp_path):
    runs = find_runs([write_run(tmp_path / "x", 0.5), write_run(tmp_path / "y", 0.25)])
    rows = comparison_rows(runs)
    assert [(r["run"], r["tracker"]) for r in rows][1:3] == [
        ("x", "first mask copied"),
        ("y", "after training"),
    ]
    assert rows[2]["J&F"] == 0.25 and rows[2]["95% interval"] == "0.150 to 0.350"
    assert rows[1]["95% interval"] is None and rows[0]["scored_objects"] == 3
    (axes,) = comparison_figure(runs).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "x: after training" and len(labels) == 4


def test_runs_that_are_not_comparable_give_a_warning(tmp_path):
    folders = [write_run(tmp_path / "x", 0.5), write_run(tmp_path / "y", 0.5)]
    assert comparison_warnings(find_runs(folders)) == []
    folders.append(write_run(tmp_path / "z", 0.5, videos=("a",), convention="davis2017"))
    assert comparison_warnings(find_runs(folders)) == ["z and x differ in convention, videos"]


def test_folders_without_an_evaluation_are_rejected(tmp_path):
    with pytest.raises(DataError, match="metrics.json") as error:
        find_runs([tmp_path])
    assert "sam2kit evaluate" in error.value.hint
    with pytest.raises(DataError) as error:
        find_runs([])
    assert "at least one" in error.value.hint
    write_run(tmp_path / "old", 0.5, version=1)
    with pytest.raises(DataError, match=r"old.metrics\.json") as error:
        find_runs([tmp_path])
    assert (error.value.key, error.value.value, error.value.expected) == ("schema_version", 1, "2")
    assert error.value.hint == "evaluate the run again"
    (tmp_path / "old" / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"old.metrics\.json") as error:
        find_runs([tmp_path])
    assert error.value.hint


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["trackers"]["after training"].pop("J&F"),
        lambda content: content["trackers"].update({"after training": 3}),
        lambda content: content.update({"videos": ["a"]}),
        lambda content: content.update({"trackers": {}}),
        lambda content: content.pop("convention"),
    ],
)
def test_a_damaged_evaluation_is_one_error(tmp_path, change):
    file = write_run(tmp_path / "x", 0.5) / "metrics.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"x.metrics\.json") as error:
        find_runs([tmp_path])
    assert error.value.hint == "evaluate the run again"


@pytest.mark.parametrize("trials", [3, [{"rank": 1}], [{"rank": "x", "name": 1}]])
def test_a_damaged_leaderboard_is_one_error(tmp_path, trials):
    (tmp_path / "leaderboard.json").write_text(json.dumps({"schema_version": 1, "trials": trials}))
    with pytest.raises(DataError, match=r"leaderboard\.json"):
        leaderboard_rows([tmp_path])
