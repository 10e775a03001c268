"""`sam2kit run` is killed during training and called again."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import torch

from sam2kit.config.loading import load_config
from sam2kit.evaluation.evaluate import evaluate_checkpoint
from sam2kit.pipeline import runner as pipeline
from sam2kit.pipeline.status import read_status
from sam2kit.training.trainer import fit
from sam2kit.utils.locks import is_locked

ROOT = Path(__file__).parents[2]
CONFIG = """
model: {size: nano, memory_attention_bias: 3.0, object_score_bias: 3.0}
dataset:
  type: synthetic
  image_size: 32
  video_clip_length: 2
  synthetic_videos: 8
  batch_size: 2
  num_workers: 1
valdataset: {synthetic_videos: 1}
trainer:
  accelerator: cpu
  max_epochs: 3
  log_every_n_steps: 1
  checkpoint_minutes: 0
  audit: "off"
optimizer: {lr: 1.0e-3}
evaluation: {pictures: false}
"""
TRAIN = """
from pathlib import Path
from sam2kit import fit, load_config
result = fit(load_config(config_file, overrides), Path(run_dir), resume)
"""
EVALUATE = """
from pathlib import Path
from sam2kit import evaluate_checkpoint
evaluation = evaluate_checkpoint(Path(run_dir) / checkpoint, overrides, Path(run_dir))
"""
DRIVER = """
import signal, sys
from pathlib import Path
from sam2kit.pipeline import runner as pipeline
config, run, notebooks, stages = sys.argv[1:]
if notebooks:
    pipeline.notebooks_dir = lambda: Path(notebooks)
pipeline.run_stages(config, {}, [int(s) for s in stages.split(",")], Path(run))
"""


@pytest.fixture(autouse=True)
def one_thread_in_kernels(monkeypatch):
    """Use one thread, so that a resumed run equals an uninterrupted one bit for bit."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def notebooks(tmp_path):
    return write_notebooks(tmp_path)


def write_notebooks(folder):
    """Write minimal notebooks for training and evaluation."""
    (folder / "notebooks").mkdir()
    for name, parameters, cell in (
        ("03_train", "config_file = ''\nresume = False", TRAIN),
        ("04_evaluate", "checkpoint = 'best.ckpt'", EVALUATE),
    ):
        cells = [f"run_dir = ''\noverrides = []\n{parameters}", cell]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "language": "python"}
        notebook.metadata.kernelspec["display_name"] = "x"
        notebook.cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    return folder / "notebooks"


def start(config_file, run, notebooks, stages):
    """Run stages in a new process, with the notebooks of a directory or with sam2kit's (None)."""
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(config_file), str(run)]
    return subprocess.Popen([*command, str(notebooks or ""), stages], cwd=ROOT)


def wait_for(condition, seconds=240):
    for _ in range(50 * seconds):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"condition not met within {seconds} s")


def descendants(process):
    return psutil.Process(process.pid).children(recursive=True)


def gone(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill_all(driver, number):
    """Send a signal to a run, and return its children, which end with it."""
    children = descendants(driver)
    os.kill(driver.pid, number)
    assert driver.wait(60) != 0
    # The kernel and the loaders of a killed driver must end, too, or the run stays locked.
    wait_for(lambda: all(gone(process) for process in children), 60)
    return children


def kill_in_stage_3(driver, run, number):
    """Kill a run once its training has written a checkpoint; return that checkpoint's step."""
    wait_for(lambda: (run / "last.ckpt").exists())
    status = read_status(run)
    assert status["state"] == status["stages"]["03_train"]["state"] == "running"
    assert status["pid"] == driver.pid
    assert kill_all(driver, number)
    wait_for(lambda: not is_locked(run), 60)
    status = read_status(run)
    assert status["state"] == status["stages"]["03_train"]["state"] == "interrupted"
    assert status["stages"]["04_evaluate"]["state"] == "waiting"
    return torch.load(run / "last.ckpt", weights_only=True)["global_step"]


def scores(run):
    """Return the metrics of training and evaluation, without times and paths."""
    metrics = json.loads((run / "metrics.json").read_text())
    with open(run / "metrics.csv", newline="") as file:
        return metrics["trackers"], metrics["videos"], list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("number", "kills"),
    [
        (signal.SIGKILL, 1),
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 2, marks=pytest.mark.slow),
    ],
)
def test_run_killed_in_stage_3_resumes_to_the_same_metrics(
    config_file, notebooks, tmp_path, monkeypatch, number, kills
):
    """The second kill is in stage 4."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    driver = start(config_file, killed, notebooks, "3,4")
    steps = kill_in_stage_3(driver, killed, number)
    assert 0 < steps < 12
    if kills == 2:
        driver = start(config_file, killed, notebooks, "3,4")
        wait_for(lambda: read_status(killed)["stages"]["04_evaluate"]["state"] == "running")
        kill_all(driver, number)
    monkeypatch.setattr(pipeline, "notebooks_dir", lambda: notebooks)
    result = pipeline.run_stages(config_file, {}, [3, 4], killed)
    assert read_status(killed)["state"] == "done"
    assert (killed / "03_train.interrupted-1.ipynb").exists()
    assert (killed / "04_evaluate.interrupted-1.ipynb").exists() == (kills == 2)
    fit(load_config(config_file), whole)
    evaluate_checkpoint(whole / "best.ckpt", (), whole)
    assert scores(killed) == scores(whole)
    assert list(result.scores)[0] == "after training"


@pytest.mark.slow
def test_run_of_the_real_notebooks_resumes(tmp_path):
    """Notebooks 1 to 4, killed twice in the third stage."""
    config_file = tmp_path / "quick.yaml"
    config_file.write_text(
        "defaults: [quickstart, _self_]\n"
        "trainer: {max_epochs: 2, limit_train_batches: 6, checkpoint_minutes: 0}\n"
        "dataset: {clips_per_video: 1}\nscheduler: {warmup_steps: 2}\n"
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for _ in range(2):
        # The second kill must wait for a checkpoint of the resumed training.
        (killed / "last.ckpt").unlink(missing_ok=True)
        kill_in_stage_3(start(config_file, killed, None, "1,2,3,4"), killed, signal.SIGKILL)
    for run in (killed, whole):
        assert start(config_file, run, None, "1,2,3,4").wait(600) == 0
    assert scores(killed) == scores(whole)


def files(run):
    """Return the names of all files but TensorBoard's, whose names have a time and a process ID."""
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    return {name for name in names if ".interrupted-" not in name and "tfevents" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("n", range(25))
def test_run_killed_at_any_moment_finishes_as_undisturbed(undisturbed, tmp_path, n):
    config_file, notebooks, whole, seconds = undisturbed
    run = tmp_path / "run"
    driver = start(config_file, run, notebooks, "3,4")
    # Starting takes most of the first second.
    time.sleep(random.Random(n).uniform(1, seconds))
    if driver.poll() is None:
        kill_all(driver, signal.SIGKILL)
    assert start(config_file, run, notebooks, "3,4").wait(240) == 0
    assert scores(run) == scores(whole) and files(run) == files(whole)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An undisturbed run: its inputs, its directory and its duration in seconds."""
    root = tmp_path_factory.mktemp("undisturbed")
    config_file = root / "config.yaml"
    config_file.write_text(CONFIG)
    notebooks, whole = write_notebooks(root), root / "whole"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        begin = time.monotonic()
        assert start(config_file, whole, notebooks, "3,4").wait(240) == 0
    return config_file, notebooks, whole, time.monotonic() - begin
