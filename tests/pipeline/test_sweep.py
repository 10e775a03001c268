"""Sweeps: the grid, invalid grids, failed trials, resuming, the leaderboard and GPUs."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from data_helpers import make_davis

import sam2kit.evaluation
from sam2kit.cli.main import main
from sam2kit.evaluation import compare_runs
from sam2kit.evaluation.compare_runs import find_runs, leaderboard_rows
from sam2kit.pipeline import sweep
from sam2kit.pipeline.status import Status, read_status
from sam2kit.pipeline.sweep import plan_trials, run_sweep
from sam2kit.utils.errors import ConfigError, DataError, PipelineError
from sam2kit.utils.files import write_text
from sam2kit.utils.locks import is_locked, locked

CONFIG = "model:\n  size: nano\ndataset:\n  type: synthetic\n  image_size: 128\n"

# Replaces `sam2kit run`: the learning rate is the score, and some seeds fail on purpose.
TRIAL = """
    import json, os, sys, time
    from pathlib import Path
    import yaml
    from sam2kit.pipeline.status import Status
    from sam2kit.utils.locks import locked
    from sam2kit.utils.errors import KernelKilled
    flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    folder = Path(flags["--run-dir"])
    config = yaml.safe_load(Path(flags["--config"]).read_text())
    lr, seed = config["optimizer"]["lr"], config["seed"]
    print("argv", sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
    if seed == 13:
        sys.exit("error: no such swan")
    if seed == 14:
        os.kill(os.getpid(), 9)
    with locked(folder):
        status = Status(folder, ["03_train"], {})
        with status.of_run(), status.of_stage("03_train"):
            if seed == 16 and not (folder / "go").exists():
                (folder / "go").touch()
                raise KernelKilled("killed")
            if seed == 17 and not (folder / "go").exists():
                (folder / "go").touch()
                os.kill(os.getpid(), 9)
            while seed == 15 and not (folder / "go").exists():
                time.sleep(0.05)
            if lr > 0.5:
                raise ValueError("too fast")
            scores = {"J": lr, "F": lr, "J&F": lr, "J&F_interval": [lr / 2, lr * 2]}
            scores |= dict.fromkeys(("false_absence", "recovery", "scored_objects"))
            trackers = {"after training": scores}
            content = {"schema_version": 2, "trackers": trackers, "videos": {}}
            content |= {"convention": {"name": "davis2017"}, "protocol": {}}
            text = json.dumps(content)
            (folder / "metrics.json").write_text(text)
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Replace the pipeline by trials that take a second."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "standin.py").write_text(textwrap.dedent(TRIAL))
    path = os.pathsep.join([str(tmp_path / "code"), os.getcwd()])
    monkeypatch.setenv("PYTHONPATH", path)

    def start(module, *arguments, real=sweep.start, **options):
        options["env"] = options.get("env", dict(os.environ)) | {"PYTHONPATH": path}
        return real("standin", *arguments, **options)

    monkeypatch.setattr(sweep, "start", start)


def test_the_grid(config_file):
    grid = ["seed=7", "model.trainable_modules=[memory_attention],[memory_encoder,'*']"]
    trials = plan_trials(config_file, [*grid, "optimizer.lr=1e-5,1e-4", "loss.dice=range(1,3)"])
    assert len(trials) == 8
    assert trials[0].overrides == [
        "model.trainable_modules=[memory_attention]",
        "optimizer.lr=1e-05",
        "loss.dice=1",
    ]
    assert trials[0].name == "001_trainable_modules-_memory_attention_lr-1e-05_dice-1"
    assert [t.config.loss.dice for t in trials[:2]] == [1, 2]
    assert trials[7].config.model.trainable_modules == ["memory_encoder", "*"]
    assert trials[7].config.optimizer.lr == 1e-4 and trials[7].config.seed == 7
    assert len({t.name for t in trials}) == 8 and max(len(t.name) for t in trials) <= 64
    assert [t.config.model.size for t in plan_trials(config_file, ["model=nano,tiny"])] == [
        "nano",
        "t",
    ]


def test_seeds_on_generated_validation_videos_are_warned_of(config_file, tmp_path, messages):
    plan_trials(config_file, ["optimizer.lr=1e-5,1e-4"])
    plan_trials(None, ["seed=1,2", "model=nano", f"dataset.data_path='{make_davis(tmp_path)}'"])
    assert not any("generated for validation" in line for line in messages)
    plan_trials(config_file, ["seed=1,2"])
    assert any("WARNING" in line and "generated for validation" in line for line in messages)


@pytest.mark.parametrize(
    "overrides, text",
    [
        (["seed=7"], "no override has several values"),
        ([], "no override has several values"),
        (["seed=1,2", "optimizer.lr=1e-4,0"], "trial 002_seed-1_lr-0: .*optimizer.lr"),
        (["optimizer.rl=1,2"], "trial 001_rl-1: .*optimizer.rl"),
        (["model=glob(*)"], "cannot read 'model=glob.*key=a,b"),
        (["seed=interval(1,2)"], "cannot read 'seed=interval"),
        (["seed=1,2", "trainer.devices=2"], "trainer.devices='2' must be 1"),
        (["dataset.type=synthetic,video"], "trial 002_type-video: .*dataset.data_path"),
    ],
)
def test_invalid_grids_are_rejected(config_file, tmp_path, overrides, text):
    with pytest.raises(ConfigError, match=text):
        plan_trials(config_file, overrides)
    assert main(["sweep", "--config", str(config_file), "--sweep-dir", "s", *overrides]) == 2
    assert list(tmp_path.iterdir()) == [config_file]


def trial(folder, name):
    return json.loads((folder / "leaderboard.json").read_text())["trials"][name]


def test_failure_is_recorded_and_the_sweep_continues(config_file, tmp_path, stand_in, capsys):
    folder = tmp_path / "sweep"
    command = ["sweep", "--config", str(config_file), "--sweep-dir", str(folder)]
    grid = ["seed=1,13", "optimizer.lr=0.25,0.75"]
    assert main([*command, "-p", "max_videos=3", "--stages", "3-4", *grid]) == 1
    board = json.loads((folder / "leaderboard.json").read_text())
    assert board["higher_is_better"] and "after training" in board["metric"]
    states = {row["name"]: (row["state"], row["error"]) for row in board["trials"]}
    assert [(g["overrides"], g["done"]) for g in board["groups"]] == [
        (["optimizer.lr=0.25"], 1),
        (["optimizer.lr=0.75"], 0),
    ]
    assert board["groups"][0]["seeds"] == ["1", "13"] and board["groups"][0]["gain"] is None
    assert states == {
        "001_seed-1_lr-0.25": ("done", None),
        "002_seed-1_lr-0.75": ("failed", "too fast"),
        "003_seed-13_lr-0.25": ("failed", "error: no such swan"),
        "004_seed-13_lr-0.75": ("failed", "error: no such swan"),
    }
    best = board["trials"][0]
    assert best["rank"] == 1 and best["J&F"] == 0.25 and best["J&F_interval"] == [0.125, 0.5]
    assert best["overrides"] == ["seed=1", "optimizer.lr=0.25"]
    log = (folder / best["run_dir"] / "output.log").read_text()
    assert "'--stages', '3,4'" in log and "'-p', 'max_videos=3'" in log
    printed = capsys.readouterr().out
    assert "best of 2 settings" in printed
    assert "higher is better" in printed and "0.125 to 0.500" in printed and "too fast" in printed
    assert printed.strip() == (folder / "leaderboard.md").read_text().strip()

    # Failed trials run again only with --retry-failed.
    assert main(["sweep", "--sweep-dir", str(folder)]) == 1
    assert "Running 0 of 4 trials" in capsys.readouterr().err
    assert main(["sweep", "--sweep-dir", str(folder), "--retry-failed", "--jobs", "2"]) == 1
    assert "Running 3 of 4 trials" in capsys.readouterr().err
    assert [run.name for run in find_runs([folder])] == ["001_seed-1_lr-0.25"]


def test_killed_trial_has_failed(config_file, tmp_path, stand_in):
    rows = run_sweep(tmp_path / "sweep", plan_trials(config_file, ["seed=14,1"]))
    assert {r["name"]: r["error"] for r in rows} == {
        "002_seed-1": None,
        "001_seed-14": "killed by signal 9",
    }


def test_killed_trial_is_resumed_by_the_next_call(config_file, tmp_path, stand_in):
    """Its kernel was killed (16), or the trial itself (17)."""
    rows = run_sweep(tmp_path / "sweep", plan_trials(config_file, ["seed=16,17"]))
    assert {row["state"] for row in rows} == {"interrupted"}
    assert {row["state"] for row in run_sweep(tmp_path / "sweep")} == {"done"}


def test_interrupt_at_the_start_leaves_a_leaderboard(config_file, tmp_path, monkeypatch):
    """Importing torch again after an interrupt during its import fails."""
    name = "sam2kit.evaluation.compare_runs"
    monkeypatch.setattr(sam2kit.evaluation, "compare_runs", compare_runs)  # restores both
    monkeypatch.delitem(sys.modules, name)
    is_imported = []

    def run(self, jobs, retry_failed):
        is_imported.append(name in sys.modules)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep._Sweep, "run", run)
    with pytest.raises(KeyboardInterrupt, match="--sweep-dir"):
        run_sweep(tmp_path / "sweep", plan_trials(config_file, ["seed=1,2"]))
    assert is_imported == [True] and (tmp_path / "sweep/leaderboard.md").exists()


def test_another_sweep_in_the_directory_is_rejected(config_file, tmp_path, stand_in):
    folder = tmp_path / "sweep"
    with pytest.raises(PipelineError, match="contains no sweep") as error:
        run_sweep(folder)
    assert error.value.key == "--sweep-dir" and "--config" in error.value.hint
    assert not folder.exists()
    trials = plan_trials(config_file, ["seed=1,2"])
    run_sweep(folder, trials)
    for other in (
        (plan_trials(config_file, ["seed=1,3"]),),
        (plan_trials(config_file, ["seed=1,2", "optimizer.lr=1"]),),
        (trials, {"max_videos": 3}),
        (trials, {}, (3,)),
    ):
        with pytest.raises(PipelineError, match="contains another sweep"):
            run_sweep(folder, *other)
    assert len(run_sweep(folder, trials)) == 2
    with locked(folder), pytest.raises(PipelineError, match="in use by process"):
        run_sweep(folder, trials)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_stopped_sweep_is_resumed(config_file, tmp_path, stand_in, number):
    folder = tmp_path / "sweep"
    code = """
        import sys
        from pathlib import Path
        from sam2kit.pipeline import sweep
        start = sweep.start
        sweep.start = lambda module, *arguments, **options: start("standin", *arguments, **options)
        trials = sweep.plan_trials(sys.argv[2], ["seed=1,15", "loss.dice=1,2"])
        sweep.run_sweep(Path(sys.argv[1]), trials)
    """
    third = folder / "trials" / "003_seed-15_dice-1"
    for _ in range(2):
        (third / "status.json").unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(folder), str(config_file)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(600):
            if (third / "status.json").exists():
                break
            time.sleep(0.1)
        rows = {row["trial"][:3]: row["state"] for row in leaderboard_rows([tmp_path])}
        assert rows == {"001": "done", "002": "done", "003": "running", "004": "waiting"}
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert ("--sweep-dir" in errors) == (number == signal.SIGTERM)
        for _ in range(100):
            if not is_locked(third):
                break
            time.sleep(0.1)
        assert read_status(third)["state"] == "interrupted"
    for name in ("003_seed-15_dice-1", "004_seed-15_dice-2"):
        (folder / "trials" / name / "go").touch()
    before = (folder / "trials" / "001_seed-1_dice-1" / "output.log").read_text()
    assert {row["state"] for row in run_sweep(folder)} == {"done"}
    assert (folder / "trials" / "001_seed-1_dice-1" / "output.log").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("n", range(25))
def test_sweep_killed_at_any_moment_is_finished(config_file, tmp_path, stand_in, n):
    folder = tmp_path / "sweep"
    code = """
        import sys
        from pathlib import Path
        from sam2kit.pipeline import sweep
        start = sweep.start
        sweep.start = lambda module, *arguments, **options: start("standin", *arguments, **options)
        sweep.run_sweep(Path(sys.argv[1]), sweep.plan_trials(sys.argv[2], ["seed=1,2,3"]))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(folder), str(config_file)]
    process = subprocess.Popen(arguments)
    time.sleep(random.Random(n).uniform(0.5, 6))
    process.kill()
    process.wait()
    assert subprocess.run(arguments).returncode == 0
    rows = leaderboard_rows([folder])
    assert [row["state"] for row in rows] == ["done"] * 3
    assert not list(folder.rglob("*.part*"))


def test_one_trial_per_gpu(config_file, tmp_path, stand_in, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-x")
    run_sweep(tmp_path / "sweep", plan_trials(config_file, ["seed=1,2,3"]))
    logs = [f.read_text() for f in sorted((tmp_path / "sweep").glob("trials/*/output.log"))]
    assert {log.split()[-1] for log in logs} == {"3", "GPU-x"}
    run_sweep(
        tmp_path / "cpu", plan_trials(config_file, ["seed=1,2", "trainer.accelerator=cpu"]), jobs=2
    )
    logs = [f.read_text() for f in (tmp_path / "cpu").glob("trials/*/output.log")]
    assert {log.split()[-1] for log in logs} == {"3,GPU-x"}  # unchanged


def test_one_trial_per_mig_slice(config_file, tmp_path, stand_in, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a process sees one slice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a, MIG-b")
    run_sweep(tmp_path / "sweep", plan_trials(config_file, ["seed=1,2"]))
    logs = [f.read_text() for f in sorted((tmp_path / "sweep").glob("trials/*/output.log"))]
    assert {log.split()[-1] for log in logs} == {"MIG-a", "MIG-b"}


def test_invalid_leaderboard_is_rejected(tmp_path):
    assert leaderboard_rows([tmp_path]) == []
    (tmp_path / "leaderboard.json").write_text("{}")
    with pytest.raises(DataError, match="leaderboard.json.*schema_version"):
        leaderboard_rows([tmp_path])


def test_state_of_a_trial_without_score(tmp_path):
    folder = tmp_path / "t"
    folder.mkdir()
    with locked(folder):
        with Status(folder, [], {}).of_run():
            assert read_status(folder)["state"] == "running"
    write_text(folder / "x", "y")
    assert not list(folder.glob(".part*"))


@pytest.mark.slow
def test_four_trials_of_the_pipeline_itself(tmp_path, monkeypatch):
    """Three trials succeed and one fails on purpose; only the failed one runs again."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config_file = tmp_path / "config.yaml"
    config_file.write_text(
        "model: {size: nano, checkpoint: nano}\n"
        "dataset: {type: synthetic, image_size: 64, video_clip_length: 2, synthetic_videos: 4,\n"
        "  num_workers: 0}\nvaldataset: {synthetic_videos: 2}\n"
        "trainer: {accelerator: cpu, max_epochs: 1, log_every_n_steps: 1}\n"
    )
    grid = ["optimizer.lr=1e-4,1e-3", "model.trainable_modules=[memory_attention],[memory_encoder]"]
    trials = plan_trials(config_file, grid)
    invalid = trials[2].config.model
    invalid.trainable_modules = ["no_such_module"]
    rows = run_sweep(tmp_path / "sweep", trials, {}, [3, 4])
    assert [row["rank"] for row in rows] == [1, 2, 3, None]
    assert rows[3]["name"].startswith("003_") and "no_such_module" in rows[3]["error"]
    assert all(0 < row["J&F"] < 1 for row in rows[:3])
    assert len(find_runs([tmp_path / "sweep"])) == 3
    again = run_sweep(tmp_path / "sweep", retry_failed=True)
    assert [row["name"] for row in again] == [row["name"] for row in rows]
    assert list((tmp_path / "sweep").glob("trials/*/03_train.failed-1.ipynb"))


@pytest.mark.parametrize("names", [[], ["../../outside"], ["/tmp/x"], ["001_a", "001_a"], [""]])
def test_a_definition_of_others_starts_nothing_elsewhere(config_file, tmp_path, names, monkeypatch):
    trials = [{"name": name, "overrides": []} for name in names]
    content = {"schema_version": 1, "parameters": {}, "stages": [3], "trials": trials}
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(content))
    monkeypatch.setattr(sweep, "start", None)
    with pytest.raises(PipelineError) as error:
        run_sweep(tmp_path / "sweep")
    assert error.value.key == "trials" and error.value.hint
