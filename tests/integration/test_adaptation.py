"""The proof and the comparison of recipes: folds, tables, resuming, missing data, one tiny run."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from benchmarks import adaptation, coverage, monitors, proof, recipes
from benchmarks.adaptation import (
    AFTER,
    BEFORE,
    BEFORE_ZEROED,
    COPY,
    ZEROED,
    Job,
    Sizes,
    blocks,
    job_config,
    training_key,
    tuned_model,
    weights_folder,
)
from benchmarks.measure import write_davis
from sam2kit.data import SyntheticDataset
from sam2kit.models.checkpoints import load_run
from sam2kit.training.trainer import FitResult, fit

NAMES = [f"seq{n}" for n in range(9)]
TINY = ["--steps", "1", "--frames", "3", "--generated", "2"]


@pytest.fixture(scope="module")
def davis(tmp_path_factory):
    return write_davis(SyntheticDataset(6, 4, 64, 1, 0), tmp_path_factory.mktemp("DAVIS"))


def scores(gain, names=NAMES):
    return {(name, "1"): 0.3 + 0.02 * n + gain for n, name in enumerate(names)}


def result(names, gain):
    """Make the result of a training run, tested on ``names``."""
    tested = {key: x for key, x in scores(gain).items() if key[0] in names}
    return {
        "videos": {AFTER: tested, ZEROED: {key: x / 2 for key, x in tested.items()}},
        "generated": {AFTER: scores(-0.01)},
        "seconds": {"training": 60.0, "scoring": 10.0},
    }


STARTING = {BEFORE: scores(0), COPY: scores(-0.1), BEFORE_ZEROED: scores(-0.05)}


def test_every_sequence_is_tested_once_per_seed_and_never_trained_on(davis):
    jobs = proof.plan(davis, NAMES, (1, 2))
    assert len(jobs) == 6 and len({job.name for job in jobs}) == 6
    for seed in (1, 2):
        tested = [name for job in jobs if job.seed == seed for name in job.test]
        assert sorted(tested) == NAMES
    assert all(sorted([*job.train, *job.test]) == NAMES for job in jobs)


def test_each_fold_of_the_proof_can_have_its_own_recipe(davis, tmp_path):
    chosen = ("adapt.yaml", "memory only", "not averaged with the start")
    one, two, three = proof.plan(davis, NAMES, (1,), chosen)
    assert one == proof.plan(davis, NAMES, (1,))[0] and two.name == "fold2-seed1-memory-only"
    configs = [job_config(job, tmp_path, Sizes()) for job in (one, two, three)]
    assert [c.trainer.average_with_start for c in configs] == [0.5, 0.5, None]
    modules = [c.model.trainable_modules for c in configs]
    assert modules == [["*"], ["memory_attention", "memory_encoder"], ["*"]]


def test_an_interrupted_training_is_repeated(davis, tmp_path, monkeypatch):
    (job, *_) = proof.plan(davis, NAMES, (1,))
    result = FitResult(tmp_path, None, None, {}, interrupted=True)
    monkeypatch.setattr(adaptation, "fit", lambda *arguments, **options: result)
    with pytest.raises(KeyboardInterrupt):
        adaptation.train(job, tmp_path, Sizes())
    assert not list(tmp_path.rglob("training.json"))


def test_recipes_are_trained_on_one_block_and_scored_on_the_others(davis):
    chosen = recipes.points((1,), ("adapt.yaml", "memory only"), (0, 1, 2))
    jobs = recipes.plan(davis, "davis", NAMES, chosen)
    assert len(jobs) == 6 and len({job.name for job in jobs}) == 6
    assert all(len(job.train) == 3 and sorted([*job.train, *job.test]) == NAMES for job in jobs)
    assert recipes.MEMORY in jobs[3].overrides and recipes.MEMORY not in jobs[0].overrides


def test_in_a_round_each_block_has_another_seed():
    chosen = recipes.points((1, 2, 3), ("memory only",), (0, 1, 2), 1)
    assert [(seed, k) for seed, _, k in chosen] == [(1, 0), (2, 1), (3, 2)]
    assert recipes.points((1, 2, 3), ("memory only",), (0, 1, 2), 2)[:3] == chosen
    everything = recipes.points((1, 2, 3), ("memory only",), (0, 1, 2))
    assert len(set(everything)) == len(everything) == 9


SOME = ("not averaged with the start", "memory only")


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(r, marks=() if r in SOME else pytest.mark.slow) for r in recipes.RECIPES],
)
def test_recipes_are_valid(recipe, tmp_path):
    """The configuration is checked, and a recipe does not follow changes of adapt.yaml."""
    jobs = recipes.plan(tmp_path, "davis", NAMES, [(1, recipe, 0)])
    config = job_config(jobs[0], tmp_path, Sizes())
    assert config.seed == 1 and config.trainer.average_with_start is None
    assert config.dataset.split.endswith("seq0+seq3+seq6.txt")


def test_results_depend_on_the_weights_and_on_the_whole_recipe(tmp_path, monkeypatch):
    job = Job("a", tmp_path, ("x",), ("y",), 1)
    config = job_config(job, tmp_path, Sizes())
    folder = weights_folder(config, tmp_path)
    assert folder == weights_folder(config, tmp_path)
    config.model.lora_modules = ["memory_attention"]  # random, but without effect at the start
    assert folder == weights_folder(config, tmp_path)
    config.model.checkpoint = "nano-1"
    assert weights_folder(config, tmp_path) != folder
    key = training_key(job, tmp_path, Sizes())
    # The share of the start changes the scores, not the training.
    same = [replace(job, name="b", test=("z",)), replace(job, start_share=0.5)]
    assert {training_key(other, tmp_path, Sizes()) for other in same} == {key}
    others = [replace(job, seed=2), replace(job, train=("z",)), replace(job, davis=tmp_path / "d")]
    others.append(replace(job, overrides=("optimizer.lr=1e-5",)))
    assert len({training_key(other, tmp_path, Sizes()) for other in others} | {key}) == 5
    assert training_key(job, tmp_path, Sizes(steps=3)) != key


@pytest.mark.parametrize("lora_modules", [[], ["image_encoder"]])
def test_average_of_a_checkpoint_equals_the_option(toy_config, tmp_path, lora_modules):
    toy_config.model.lora_modules = lora_modules
    toy_config.model.checkpoint, toy_config.trainer.max_epochs = "nano", 1
    toy_config.dataset.synthetic_videos, toy_config.optimizer.lr = 2, 1e-3
    trained = fit(toy_config, tmp_path / "trained")
    toy_config.trainer.average_with_start = 0.25
    averaged = fit(toy_config, tmp_path / "averaged")
    expected = load_run(averaged.last_checkpoint)[1].state_dict()
    actual = tuned_model(trained.last_checkpoint, 0.25, toy_config).state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight)


def test_monitors_are_judged_by_the_order_of_the_test():
    def values(*jf):
        return [{"val_loss": 1 - x, "val_iou": x, "val_jf": 1 - x} for x in jf]

    test = [{"val_loss": 0.0, "val_iou": 0.0, "val_jf": x} for x in (0.1, 0.3, 0.2)]
    judged = monitors.judge(values(0.4, 0.6, 0.5), test)
    assert judged["val_loss"]["correlation"] == judged["val_iou"]["correlation"] == 1
    assert judged["val_jf"]["correlation"] == -1
    assert (judged["val_iou"]["selected"], judged["val_jf"]["selected"]) == (0.3, 0.1)
    first, _, last = monitors.rows([judged, judged])
    assert first["against the last"] == "+0.100" and last["against the best"] == "-0.200"
    constant = monitors.judge(values(0.5, 0.5, 0.5), test)
    assert math.isnan(constant["val_loss"]["correlation"])


def test_summary_and_page_of_the_proof():
    parts = blocks(NAMES)
    by_seed = {s: [result(part, gain) for part in parts] for s, gain in ((1, 0.1), (2, 0.06))}
    summary = proof.summarise(by_seed, STARTING, STARTING)
    gain = summary["gain"]
    assert gain["mean"] == pytest.approx(0.08) and gain["videos"] == 9
    assert gain["seeds"] == pytest.approx({1: 0.1, 2: 0.06})
    assert gain["p"] == pytest.approx(2 / 2**9)
    assert summary["generated"]["mean"] == pytest.approx(-0.01)
    assert [half["objects"] for half in summary["motion"]] == [5, 4]
    assert summary["spread of one seed"] == pytest.approx(gain["spread"])
    page = proof.page(summary, Sizes(), 12.0)
    for text in ("**Gain in J&F: +0.080", "9 generated clips", "seed 7", "| seq0 |", "proof.png"):
        assert text in page
    assert json.loads(json.dumps(summary))["gain"]["mean"] == gain["mean"]


def test_recipes_are_compared_with_the_first_one_and_chosen_within_the_folds():
    parts = blocks(NAMES)

    def trained(gains):
        others = [[n for part in parts if part != block for n in part] for block in parts]
        return {1: {k: result(others[k], gains[k]) for k in range(3)}}

    results = {"first": trained([0.0, 0.1, 0.1]), "second": trained([0.09, 0.0, 0.0])}
    summaries = {
        name: recipes.summarise({1: list(r[1].values())}, STARTING, STARTING)
        for name, r in results.items()
    }
    first, second = recipes.rows(summaries)
    assert first["against the first"] == "" and first["p (Holm)"] is None
    assert second["against the first"].startswith("-0.037") and 0 < second["p (Holm)"] <= 1
    assert first["gain"].startswith("+0.067") and first["generated clips"].startswith("-0.010")
    # Fold k uses the trainings on the other two blocks, scored on the rest of its training videos.
    assert recipes.chosen_by_fold(results, STARTING, parts) == ["first", "first", "first"]
    results["second"] = trained([0.3, 0.0, 0.0])
    assert recipes.chosen_by_fold(results, STARTING, parts) == ["first", "second", "second"]


@pytest.mark.parametrize("main", [proof.main, recipes.main])
def test_missing_videos_are_one_clear_message(tmp_path, capsys, main):
    assert main(["--davis", str(tmp_path), "--work", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--davis FOLDER" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tiny_proof_runs_and_resumes(davis, tmp_path, capsys):
    command = ["--davis", str(davis), "--work", str(tmp_path / "work"), "--seeds", "1", *TINY]
    command += ["--out", str(tmp_path / "out")]
    assert proof.main(command) == 0
    content = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert len(content["videos"]) == 6 and content["generated"]["videos"] == 2
    assert (tmp_path / "out" / "proof.png").exists()
    assert "seed1" in capsys.readouterr().err
    # A finished training is not repeated; an unfinished one is.
    (work,) = (tmp_path / "work").glob("weights-*")
    (work / "fold2-seed1.json").unlink()
    (next((work / "trainings").iterdir()) / "training.json").unlink()
    times = {f: f.stat().st_mtime_ns for f in work.glob("*.json")}
    assert proof.main(command) == 0
    again = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert again["gain"] == content["gain"]
    assert all(f.stat().st_mtime_ns == time for f, time in times.items())


@pytest.mark.slow
def test_a_tiny_comparison_runs_in_each_domain(davis, tmp_path):
    command = ["--davis", str(davis), "--work", str(tmp_path / "work"), "--seeds", "1", *TINY]
    command += ["--out", str(tmp_path), "--data", "davis", "thermal", "--recipes"]
    assert recipes.main([*command, *list(recipes.RECIPES)[:2], "replay 0.25"]) == 0
    content = json.loads((tmp_path / "recipes.json").read_text())
    assert len(content["davis"]["rows"]) == len(content["thermal"]["rows"]) == 3


@pytest.mark.slow
def test_a_tiny_comparison_of_monitors_runs_and_resumes(davis, tmp_path):
    command = ["--davis", str(davis), "--work", str(tmp_path / "work"), "--blocks", "1"]
    command += ["--out", str(tmp_path), "--steps", "2", "--frames", "3", "--rounds", "1"]
    command += ["--data", "davis", "thermal"]
    assert monitors.main(command) == 0
    content = json.loads((tmp_path / "monitors.json").read_text())
    assert [row["monitor"] for row in content["rows"]] == ["val_loss", "val_iou", "val_jf"]
    assert [row["data"] for row in content["comparisons"]] == ["davis"] * 2 + ["thermal"] * 2
    files = {f: f.stat().st_mtime_ns for f in (tmp_path / "work").rglob("epoch=*")}
    assert files and monitors.main(command) == 0
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "work").rglob("epoch=*")} == files


def test_the_page_of_the_coverage():
    rows = coverage.simulate("J&F about 0.3", "1", 20) + coverage.simulate(
        "tracked or lost", "1", 20
    )
    page = coverage.page(rows, 20)
    assert "| J&F about 0.3 | 1 | none (" in page.replace("&amp;", "&") and "## Limits" in page
