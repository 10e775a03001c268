"""Texts that users see and files that programs read change only on purpose."""

from __future__ import annotations

import json
import os
import sys

import nbformat
import pytest
import torch
from data_helpers import make_coco, save_json
from snapshots import check_snapshot, key_tree

from sam2kit.cli.main import COMMANDS, main
from sam2kit.data.conversion import convert
from sam2kit.data.sources.corrected import append_correction
from sam2kit.pipeline.runner import run_stages
from sam2kit.pipeline.sweep import plan_trials, run_sweep
from sam2kit.prompts.io import save_prompts
from sam2kit.prompts.prompt import Prompt

CONFIG = "model:\n  size: nano\ndataset:\n  type: synthetic\n  image_size: 64\n"


def test_help_of_all_commands(capsys):
    assert main(["--help"]) == 0
    check_snapshot("help.txt", capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)  # the default of --workers
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert not exit_.value.code
    # The line breaks of the usage depend on the version of argparse.
    usage, blank, rest = capsys.readouterr().out.partition("\n\n")
    check_snapshot(f"help_{command}.txt", " ".join(usage.split()) + blank + rest)


def test_create_config(capsys):
    assert main(["train", "--create-config"]) == 0
    check_snapshot("create_config.yaml", capsys.readouterr().out)


def test_metrics_json(old_evaluation):
    metrics = json.loads((old_evaluation / "metrics.json").read_text())
    objects = {
        name
        for video in metrics["videos"].values()
        for tracker in video["trackers"].values()
        for name in tracker["objects"]
    }
    names = {*metrics["trackers"], *metrics["videos"], *objects}
    check_snapshot("metrics_json.txt", key_tree(metrics, names))


def test_prompts_json(tmp_path, batch):
    path, first = tmp_path / "prompts.json", torch.tensor([0])
    points = torch.tensor([[[3.0, 4.0], [20.0, 30.0]]])
    box = torch.tensor([[2, 3]], dtype=torch.int32)
    prompts = [
        Prompt(0, first, masks=batch.masks[0, :1]),
        Prompt(0, first + 1, points=points, labels=box),
        Prompt(0, first + 2, points=points, labels=torch.ones_like(box)),
    ]
    save_prompts(path, prompts, batch)
    check_snapshot("prompts_json.txt", key_tree(json.loads(path.read_text())))


def test_corrections_jsonl(tmp_path, batch):
    path = tmp_path / "corrections.jsonl"
    append_correction(path, "a", 0, {1: batch.masks[0, 0].numpy()}, tuple(batch.masks.shape[-2:]))
    (line,) = path.read_text().splitlines()
    check_snapshot("corrections_jsonl.txt", key_tree(json.loads(line)))


def test_objects_json(tmp_path):
    """objects.json has the objects' names, which palette PNG files cannot store."""
    labels = save_json(tmp_path / "labels.json", make_coco(tmp_path, videos=("a",)))
    convert(labels, tmp_path / "davis", "davis")
    text = (tmp_path / "davis" / "Annotations" / "a" / "objects.json").read_text()
    check_snapshot("objects.json", text + "\n")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


def test_status_json(tmp_path, monkeypatch, config_file):
    cells = ['run_dir = "."\nconfig_file = ""\nfails = False', "assert not fails"]
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
    )
    notebook.cells[0].metadata["tags"] = ["parameters"]
    for name in ("01_first", "02_second"):
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    runner = sys.modules[run_stages.__module__]
    monkeypatch.setattr(runner, "notebooks_dir", lambda: tmp_path)
    run_dir = tmp_path / "run"
    run_stages(config_file, {}, [1], run_dir)
    done = json.loads((run_dir / "status.json").read_text())
    with pytest.raises(Exception, match="AssertionError"):
        run_stages(config_file, {"fails": True}, [1, 2], run_dir)
    failed = json.loads((run_dir / "status.json").read_text())
    stages = {*done["stages"], *failed["stages"]}
    text = f"# done\n{key_tree(done, stages)}\n# failed\n{key_tree(failed, stages)}"
    check_snapshot("status_json.txt", text)


def test_leaderboard_json(tmp_path, config_file):
    """The trials of this sweep have finished, so nothing runs."""
    trials = plan_trials(config_file, ["seed=1,2"])
    score = {"J&F": 0.5, "J&F_interval": [0.4, 0.6], "scored_objects": 8}
    score |= dict.fromkeys(("J", "F", "false_absence", "recovery"))
    start = {"objects": {"1": {"J&F": 0.4, "frames": 9}}}
    video = {"objects": {"1": {"J&F": 0.5, "frames": 9}}, "trackers": {"before training": start}}
    metrics = {"schema_version": 2, "convention": {}, "protocol": {}}
    metrics["trackers"] = dict.fromkeys(("after training", "before training"), score)
    metrics["videos"] = {f"v{n}": video for n in range(8)}
    for trial, state in zip(trials, ("done", "failed"), strict=True):
        folder = tmp_path / "sweep" / "trials" / trial.name
        status = {"schema_version": 1, "state": state, "stages": {}, "error": "too fast"}
        save_json(folder / "status.json", status)
        save_json(folder / "metrics.json", metrics)
    run_sweep(tmp_path / "sweep", trials)
    board = json.loads((tmp_path / "sweep" / "leaderboard.json").read_text())
    check_snapshot("leaderboard_json.txt", key_tree(board))
