"""Test comparisons of runs: finding them, tables, paired differences, seeds and warnings."""

import json
from types import MappingProxyType

import numpy as np
import pytest

from sam2kit.cli.main import main
from sam2kit.config.loading import save_config
from sam2kit.config.schema import Config, put
from sam2kit.evaluation.compare_runs import (
    check_comparable,
    compare_on_videos,
    comparison_figure,
    comparison_rows,
    comparison_warnings,
    find_runs,
    group_trials,
    leaderboard_rows,
    write_comparison,
)
from sam2kit.evaluation.statistics import NO_INTERVAL
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


def test_an_evaluation_in_the_directory_of_its_run_is_named_after_the_run(tmp_path):
    write_run(tmp_path / "tuned" / "evaluation", 0.5)
    write_run(tmp_path / "tuned" / "others", 0.25)
    assert [run.name for run in find_runs([tmp_path / "tuned"])] == ["tuned", "others"]
    # A directory that contains evaluations and is one keeps the names apart.
    metrics = (tmp_path / "tuned" / "others" / "metrics.json").read_text()
    (tmp_path / "tuned" / "metrics.json").write_text(metrics)
    names = {run.name for run in find_runs([tmp_path / "tuned"])}
    assert names == {"tuned", "evaluation", "others"}


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
        lambda content: content.update({"videos": {"a": 3}}),
        lambda content: content.update({"videos": {"a": {"content": [3]}, "b": {"content": 3}}}),
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


# --- paired differences --------------------------------------------------------------------------

VIDEOS = [f"v{n}" for n in range(8)]
START = {video: 0.3 + 0.02 * n for n, video in enumerate(VIDEOS)}


def objects(score, frames=10):
    return {"objects": {"1": {"J&F": score, "frames": frames}}}


def evaluate_run(
    folder,
    scores,
    start=START,
    seed=None,
    changes=MappingProxyType({}),
    protocol="mask",
    frames=10,
    **entries,
):
    """Write an evaluation with one object per video, and the configuration of its training.

    ``entries`` are further entries of ``metrics.json``.
    """
    write_run(folder, 0.5, scores)
    document = json.loads((folder / "metrics.json").read_text())
    means = document["trackers"].pop("first mask copied")
    document["trackers"]["before training"] = means
    document["protocol"]["protocol"] = protocol
    document["videos"] = {
        video: objects(score, frames)
        | {"trackers": {"before training": objects(start[video], frames)} if start else {}}
        for video, score in scores.items()
    }
    (folder / "metrics.json").write_text(json.dumps(document | entries))
    if seed is not None:
        config = Config(seed=seed)
        for key, value in changes.items():
            put(config, key, value)
        save_config(config, folder / "config.yaml")
    return folder


def shifted(gain, spread=0.0, seed=0):
    noise = np.random.default_rng(seed).normal(size=len(VIDEOS)) * spread
    return {v: START[v] + gain + x for v, x in zip(VIDEOS, noise, strict=True)}


def test_runs_are_paired_on_their_common_videos(tmp_path):
    one, other = shifted(0.1, 0.02), shifted(0.05, 0.02, 1)
    del one["v7"], other["v0"]
    folders = [evaluate_run(tmp_path / "x", one), evaluate_run(tmp_path / "y", other)]
    (comparison,) = compare_on_videos(find_runs(folders))
    check_comparable([comparison])
    differences = [one[v] - other[v] for v in VIDEOS[1:7]]
    (row,) = comparison.pairs
    assert (row["run"], row["other"]) == ("x", "y")
    assert row["mean"] == pytest.approx(np.mean(differences))
    assert (row["objects"], row["videos"], row["unpaired"]) == (6, 6, 2)
    assert row["low"] < row["mean"] < row["high"] and row["p"] == row["p_corrected"]
    gains = [row["gain"]["mean"] for row in comparison.gains]
    assert gains == pytest.approx([np.mean([s[v] - START[v] for v in s]) for s in (one, other)])
    (axes,) = comparison.figure().axes
    assert len(axes.get_yticklabels()) == 6


def test_seeds_are_grouped_and_p_values_corrected(tmp_path):
    for seed in (1, 2, 3):
        evaluate_run(tmp_path / f"a{seed}", shifted(0.1, 0.02, seed), seed=seed)
    evaluate_run(tmp_path / "b", shifted(0.0, 0.02, 9), seed=1, changes={"optimizer.lr": 1e-3})
    evaluate_run(tmp_path / "c", shifted(0.01, 0.02, 8), seed=1, changes={"optimizer.lr": 1e-2})
    # Where results are written and what is evaluated are no settings of a training run.
    evaluate_run(tmp_path / "d", shifted(0.1), seed=4, changes={"output_dir": "else"})
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    assert [(row["run"], row["seeds"]) for row in comparison.gains] == [
        ("*", 4),
        ("b", 1),
        ("c", 1),
    ]
    gain = comparison.gains[0]["gain"]
    assert set(gain["seeds"]) == {1, 2, 3, 4} and gain["seed_spread"] > 0
    assert gain["mean"] == pytest.approx(np.mean(list(gain["seeds"].values())))
    assert gain["videos"] == 8 and comparison.gains[1]["gain"]["seed_spread"] is None
    first = comparison.pairs[0]
    assert first["p_corrected"] == pytest.approx(3 * first["p"])
    assert any("Holm" in note for note in comparison.notes())


def test_the_same_seed_twice_is_no_group(tmp_path):
    folders = [evaluate_run(tmp_path / n, shifted(0.1), seed=1) for n in ("best", "last")]
    (comparison,) = compare_on_videos(find_runs(folders))
    assert [row["run"] for row in comparison.gains] == ["best", "last"]
    assert comparison.pairs[0]["mean"] == 0.0


def test_the_same_checkpoint_with_two_evaluation_seeds_is_no_group(tmp_path):
    training = {"seed": 1, "videos": "x"}
    for seed in (1, 7):
        evaluate_run(tmp_path / f"e{seed}", shifted(0.1), seed=seed, training=training)
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    assert [row["seeds"] for row in comparison.gains] == [1, 1]


def test_seeds_are_those_of_training(tmp_path):
    for seed in (1, 2):
        training = {"seed": seed, "videos": "x"}
        evaluate_run(tmp_path / f"e{seed}", shifted(0.1), seed=7, training=training)
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    assert set(comparison.gains[0]["gain"]["seeds"]) == {1, 2}


@pytest.mark.parametrize("training", [None, {"seed": 2, "videos": "others"}])
def test_runs_with_other_training_videos_or_without_any_are_no_seeds(tmp_path, training):
    evaluate_run(tmp_path / "x", shifted(0.1), seed=1, training={"seed": 1, "videos": "some"})
    evaluate_run(tmp_path / "y", shifted(0.1), seed=2, training=training)
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    assert [row["run"] for row in comparison.gains] == ["x", "y"]


def with_content(folder, prefix):
    """Add to an evaluation which frames its videos have."""
    content = json.loads((folder / "metrics.json").read_text())
    for video, scores in content["videos"].items():
        scores["content"] = ["0:title", *(f"{t}:{prefix} {video} {t}" for t in (16, 4))]
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_other_videos_of_the_same_name_are_another_data_set(tmp_path):
    for name in ("x", "y"):
        with_content(evaluate_run(tmp_path / name, shifted(0.1)), "davis")
    others = [with_content(evaluate_run(tmp_path / n, shifted(0.2)), "mine") for n in ("z", "w")]
    comparisons = compare_on_videos(find_runs([tmp_path / "x", tmp_path / "y", *others]))
    assert [[g.name for g in c.groups] for c in comparisons] == [["x", "y"], ["z", "w"]]
    assert comparisons[1].videos == [f"{video} (2)" for video in VIDEOS]
    with pytest.raises(DataError) as error:
        check_comparable(compare_on_videos(find_runs([tmp_path / "x", others[0]])))
    assert error.value.key == "valdataset"


def test_videos_of_an_earlier_version_are_compared_by_name(tmp_path):
    folders = [evaluate_run(tmp_path / "old", shifted(0.1))]
    folders += [
        with_content(evaluate_run(tmp_path / name, shifted(0.1)), name) for name in ("x", "y")
    ]
    comparison, other = compare_on_videos(find_runs(folders))
    assert [group.name for group in comparison.groups] == ["old", "x"]
    assert comparison.videos == VIDEOS and other.videos == [f"{video} (2)" for video in VIDEOS]


@pytest.mark.parametrize("key", ["trained_on", "selected_on"])
def test_runs_that_have_seen_the_videos_are_warned_of(tmp_path, key):
    evaluate_run(tmp_path / "clean", shifted(0.1), split={"trained_on": [], "selected_on": []})
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    assert not any("Warning" in note for note in comparison.notes())
    evaluate_run(tmp_path / "seen", shifted(0.1), split={key: ["v1"]})
    (comparison,) = compare_on_videos(find_runs([tmp_path]))
    (warning,) = [note for note in comparison.notes() if "Warning" in note]
    assert "(seen)" in warning


def test_a_score_that_is_no_number_is_an_error(tmp_path):
    evaluate_run(tmp_path / "x", shifted(0.1) | {"v1": float("nan")})
    with pytest.raises(DataError, match=r"metrics\.json of x"):
        compare_on_videos(find_runs([tmp_path]))


def test_a_second_data_set_shows_forgetting(tmp_path):
    known = {f"g{n}": 0.6 for n in range(7)}
    forgotten = {video: 0.5 + 0.001 * n for n, video in enumerate(known)}
    evaluate_run(tmp_path / "run" / "others", shifted(0.1), seed=1)
    evaluate_run(tmp_path / "run" / "forgotten", forgotten, known, seed=1)
    first, second = compare_on_videos(find_runs([tmp_path]))
    assert first.videos == sorted(known) and second.videos == VIDEOS
    gain = first.gains[0]["gain"]
    assert gain["mean"] == pytest.approx(-0.097) and gain["high"] < 0
    check_comparable([first, second])  # one run, twice
    path = write_comparison([first, second], tmp_path / "out")
    assert "-0.097" in path.read_text() and (tmp_path / "out" / "comparison_2.png").exists()
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["data_sets"][0]["gains"][0]["gain"]["mean"] == gain["mean"]


def test_few_videos_have_a_note_and_no_interval(tmp_path):
    scores = {video: START[video] + 0.1 for video in VIDEOS[:3]}
    (comparison,) = compare_on_videos(find_runs([evaluate_run(tmp_path / "x", scores)]))
    assert comparison.gains[0]["gain"]["low"] is None and comparison.pairs == []
    assert comparison.pair_table() is None and NO_INTERVAL in comparison.notes()


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"scores": {"other": 0.5}, "start": {"other": 0.4}}, "valdataset"),
        ({"protocol": "box"}, "evaluation.protocol"),
        ({"frames": 20}, "frames"),
    ],
)
def test_runs_that_cannot_be_compared_are_an_error(tmp_path, changes, key, capsys):
    folders = [evaluate_run(tmp_path / "x", shifted(0.1), seed=1)]
    changes = {"scores": shifted(0.1), "changes": {"optimizer.lr": 1.0}} | changes
    folders.append(evaluate_run(tmp_path / "y", seed=1, **changes))
    with pytest.raises(DataError) as error:
        check_comparable(compare_on_videos(find_runs(folders)))
    assert error.value.key == key and error.value.hint
    assert main(["compare", *map(str, folders)]) == 2 and "x and y" in capsys.readouterr().err


def test_the_command_prints_and_writes_the_comparison(tmp_path, capsys):
    evaluate_run(tmp_path / "x<b>", shifted(0.1, 0.02))
    evaluate_run(tmp_path / "y", shifted(0.05, 0.02, 1), start=None)
    command = ["compare", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "8 videos: v0, v1, v2" in printed and "videos are needed" in printed
    assert "x<b>" not in (tmp_path / "out" / "comparison.md").read_text()
    assert main(["compare", str(tmp_path / "nothing")]) == 2


def test_trials_are_grouped_by_their_settings(tmp_path):
    trials = {
        "1": ["++seed=1", "optimizer.lr=1"],
        "2": ["seed=2", "optimizer.lr=1"],
        "3": ["seed=1", "optimizer.lr=2"],
        "4": ["seed=2", "optimizer.lr=2"],
    }
    for name, gain in (("1", 0.1), ("2", 0.14), ("3", 0.2)):
        evaluate_run(tmp_path / name, shifted(gain, 0.01, int(name)))
    first, second = group_trials(tmp_path, trials, "123")
    assert (first["done"], second["done"]) == (2, 1)
    assert [g["overrides"] for g in (first, second)] == [["optimizer.lr=1"], ["optimizer.lr=2"]]
    assert first["seeds"] == ["1", "2"] and first["trials"] == ["1", "2"]
    assert first["gain"] == pytest.approx(0.12, abs=0.01) and first["seed_spread"] > 0
    low, high = first["gain_interval"]
    assert low < first["gain"] < high and first["p_corrected"] == pytest.approx(4 / 256)
