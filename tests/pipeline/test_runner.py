"""The pipeline on small notebooks made here: order, parameters, failures, and processes left."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest

from sam2kit.pipeline import runner as pipeline
from sam2kit.pipeline.status import is_locked, locked, read_status
from sam2kit.utils.errors import CheckpointError, ConfigError, PipelineError

PARAMETERS = 'run_dir = "."\nconfig_file = ""\noverrides = []\n'
CONFIG = "model:\n  size: nano\ndataset:\n  type: synthetic\n  image_size: 128\n"


def write_notebook(folder, name, *cells, parameters=PARAMETERS):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in (parameters, *cells)],
        metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}},
    )
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A folder of notebooks in place of the repository's; config file and run folder beside it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(pipeline, "notebooks_dir", lambda: folder)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return folder


def run(stage, parameters=None, stages=(1,)):
    root = stage.parent
    return pipeline.run_stages(root / "config.yaml", parameters or {}, stages, root / "run")


def status(stage):
    return json.loads((stage.parent / "run" / "status.json").read_text())["stages"]


def test_stages_hand_over_and_run_on_this_interpreter(stage, capsys, monkeypatch, tmp_path):
    # Another interpreter's kernel under the same name must not be taken.
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/nowhere/python"], "display_name": "other", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    write_notebook(
        stage,
        "01_first",
        """
        import json, sys
        from pathlib import Path
        print("hello from the first")
        found = {"python": sys.executable, "overrides": overrides, "config": config_file}
        Path(run_dir, "first.json").write_text(json.dumps(found))
        """,
    )
    write_notebook(
        stage,
        "02_second",
        """
        from pathlib import Path
        assert Path(run_dir, "first.json").exists() and extra == 3
        score = {"trackers": {"copy": {"J&F": 0.25}, "tuned": {"J&F": 0.75}}}
        Path(run_dir, "metrics.json").write_text(__import__("json").dumps(score))
        """,
        parameters=PARAMETERS + "extra = 1",
    )
    result = run(stage, {"overrides": ["seed=7"], "extra": 3}, (1, 2))
    root = stage.parent
    found = json.loads((root / "run" / "first.json").read_text())
    assert os.path.samefile(found["python"], sys.executable)
    assert found["overrides"] == ["seed=7"] and found["config"] == str(root / "config.yaml")
    assert [path.name for path in result.notebooks] == ["01_first.ipynb", "02_second.ipynb"]
    assert all(path.exists() for path in result.notebooks)
    assert result.scores == {"copy": 0.25, "tuned": 0.75}
    assert result.results == {"metrics": root / "run" / "metrics.json"}
    assert [entry["state"] for entry in status(stage).values()] == ["done", "done"]
    printed = capsys.readouterr().out
    assert "hello from the first" in printed and "02_second.ipynb" in printed
    assert "0.750" in printed and str(root / "run" / "metrics.json") in printed


def test_a_failure_stops_the_pipeline_and_names_the_notebook(stage):
    write_notebook(stage, "01_first", "a = 1", "raise ValueError('no such swan')")
    write_notebook(stage, "02_second", "b = 1")
    with pytest.raises(PipelineError, match="01_first failed in cell .*ValueError: no such swan"):
        run(stage, stages=(1, 2))
    entries = status(stage)
    assert entries["01_first"]["state"] == "failed"
    assert "no such swan" in entries["01_first"]["error"]
    assert entries["02_second"] == {"state": "waiting"}
    kept = (stage.parent / "run" / "01_first.ipynb").read_text()
    assert "no such swan" in kept and not (stage.parent / "run" / "02_second.ipynb").exists()


def test_notebooks_that_failed_before_are_not_overwritten(tmp_path):
    for name in ("a.ipynb", "a.failed-2.ipynb"):  # the first of them was deleted by hand
        (tmp_path / name).write_text(name)
    for _ in range(2):
        (tmp_path / "a.ipynb").write_text("again")
        pipeline._keep_failed(tmp_path / "a.ipynb", {"state": "failed"})
    assert (tmp_path / "a.failed-2.ipynb").read_text() == "a.failed-2.ipynb"
    assert (tmp_path / "a.failed-3.ipynb").read_text() == "again"


def counted(name):
    """A cell that writes down that its notebook ran."""
    return f"open(run_dir + '/ran', 'a').write('{name} ')"


def test_a_second_call_goes_on_at_the_stage_that_failed(stage, tmp_path):
    write_notebook(stage, "01_first", counted("1"))
    write_notebook(stage, "02_second", counted("2"), "open(config_file + '.ready')")
    write_notebook(stage, "03_third", counted("3"))
    with pytest.raises(PipelineError, match="02_second failed"):
        run(stage, stages=(1, 2, 3))
    (tmp_path / "config.yaml.ready").touch()
    run(stage, stages=(1, 2, 3))
    assert (tmp_path / "run" / "ran").read_text() == "1 2 2 3 "
    assert "FileNotFoundError" in (tmp_path / "run" / "02_second.failed-1.ipynb").read_text()
    assert {entry["state"] for entry in status(stage).values()} == {"done"}


@pytest.fixture
def ran(monkeypatch):
    """The stages that ran, of which nothing is really executed."""
    names = []

    def execute(source, target, values, lock):
        names.append(source.stem)
        target.touch()

    monkeypatch.setattr(pipeline, "execute", execute)
    return names


def test_what_is_done_is_skipped_until_something_changes(stage, tmp_path, ran):
    def again(*given, stages=(1, 2, 3)):
        ran.clear()
        run(stage, *given, stages=stages)
        return [int(name[:2]) for name in ran]

    write_notebook(stage, "01_first", "a = 1")
    write_notebook(stage, "02_second", "a = 1", parameters=PARAMETERS + "extra = 1")
    write_notebook(stage, "03_third", "a = 1")
    assert again() == [1, 2, 3]
    assert again() == []
    assert again({"extra": 2}) == [2, 3]  # what comes after it may have read its files
    assert again({"extra": 2, "overrides": ["seed=7"]}) == [1, 2, 3]
    (tmp_path / "config.yaml").write_text(CONFIG + "seed: 3\n")
    assert again(stages=(2,)) == [2]
    assert status(stage)["03_third"] == {"state": "outdated"}
    assert again(stages=(3,)) == [3]
    write_notebook(stage, "03_third", "a = 2")
    assert again(stages=(3,)) == [3]
    (tmp_path / "run" / "03_third.ipynb").unlink()
    assert again(stages=(3,)) == [3]


@pytest.mark.parametrize(
    "value, default, fits",
    [
        (3, "1", True),
        ("abc", "1", False),
        (True, "1", False),
        (2, "0.5", True),
        (0.5, "2", False),
        (1, '"text"', False),
        (["a"], "[]", True),
        ("a", "[]", False),
        ("a", "None", True),
    ],
)
def test_a_parameter_is_of_its_defaults_kind(stage, value, default, fits):
    write_notebook(stage, "01_first", parameters=PARAMETERS + f"extra = {default}  # told")
    if fits:
        pipeline._accepted_parameters([stage / "01_first.ipynb"], {"extra": value})
        return
    with pytest.raises(PipelineError, match="'extra' is .*01_first has"):
        run(stage, {"extra": value})


def test_checkpoints_are_looked_for_first(stage, tmp_path, ran):
    write_notebook(stage, "01_first", parameters=PARAMETERS + "resume = False")
    write_notebook(stage, "02_second", parameters=PARAMETERS + "checkpoint = ''")
    missing = {"overrides": ["model.checkpoint=sam3_tiny"]}
    with pytest.raises(CheckpointError, match="model.checkpoint: sam3_tiny is neither"):
        run(stage, missing, (1, 2))
    with pytest.raises(CheckpointError, match="evaluation.compare.other: .*no.pt"):
        run(stage, {"overrides": ["evaluation.compare={other: no.pt}"]}, (2,))
    assert not (tmp_path / "run").exists()
    write_notebook(stage, "03_third", "a = 1")
    run(stage, missing, (3,))  # loads none


def test_a_folder_in_use_is_refused(stage, tmp_path, ran):
    write_notebook(stage, "01_first", "a = 1")
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
        with pytest.raises(PipelineError, match=f"in use by process {os.getpid()} on "):
            run(stage)
    assert not is_locked(tmp_path / "run")
    run(stage)  # the file that is left locks nothing
    assert (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize(
    "text, told", [("{", "cannot be read"), ('{"stages": {}}', "schema_version must be 1")]
)
def test_another_status_is_refused(stage, tmp_path, text, told):
    write_notebook(stage, "01_first", "a = 1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(text)
    with pytest.raises(PipelineError, match=told):
        run(stage)


def test_the_status_is_written_at_each_change(stage, tmp_path):
    write_notebook(
        stage,
        "01_first",
        """
        import shutil
        shutil.copy(run_dir + "/status.json", run_dir + "/during.json")
        """,
    )
    run(stage)
    during = json.loads((tmp_path / "run" / "during.json").read_text())
    assert during["state"] == during["stages"]["01_first"]["state"] == "running"
    status = read_status(tmp_path / "run")
    assert status["state"] == "done" and status["pid"] == os.getpid()
    assert during["heartbeat"] <= status["heartbeat"] == status["ended"] >= status["started"]
    assert status["stages"]["01_first"]["seconds"] >= 0


def test_a_kernel_that_dies_is_a_failure_and_takes_its_children_along(stage):
    child = stage.parent / "child"
    write_notebook(
        stage,
        "01_first",
        f"""
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        open({str(child)!r}, "w").write(str(child.pid))
        os._exit(1)
        """,
    )
    with pytest.raises(PipelineError, match="01_first failed: DeadKernelError"):
        run(stage)
    assert status(stage)["01_first"]["state"] == "failed"
    assert ended(int(child.read_text()))


@pytest.mark.parametrize(
    ("parameters", "stages", "message"),
    [
        ({"oops": 1}, (1,), "unknown parameter 'oops'.*overrides"),
        ({"run_dir": "x"}, (1,), "'run_dir' is the pipeline's own"),
        ({}, (1, 7), r"\[1, 7\].*01_first"),
        ({}, (), "01_first"),
    ],
)
def test_refused_before_anything_runs(stage, parameters, stages, message):
    write_notebook(stage, "01_first", "a = 1")
    with pytest.raises(PipelineError, match=message):
        run(stage, parameters, stages)
    assert not (stage.parent / "run").exists()


def test_a_bad_configuration_is_refused_before_anything_runs(stage):
    write_notebook(stage, "01_first", "a = 1")
    with pytest.raises(ConfigError, match="image_size"):
        run(stage, {"overrides": ["dataset.image_size=100"]})
    assert not (stage.parent / "run").exists()


def test_a_notebook_must_take_the_run_folder(stage):
    write_notebook(stage, "01_first", "a = 1", parameters="overrides = []")
    with pytest.raises(PipelineError, match="01_first.*run_dir"):
        run(stage)


def test_without_the_repository_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "sam2kit" / "pipeline.py"))
    with pytest.raises(PipelineError, match="clone the repository"):
        pipeline.notebooks_dir()


def ended(pid):
    """Whether the process is gone, or becomes so within ten seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_stopping_leaves_no_process_behind(stage, number):
    root = stage.parent
    write_notebook(
        stage,
        "01_first",
        f"""
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
        open({str(root / "half")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        os.rename({str(root / "half")!r}, {str(root / "pids")!r})
        time.sleep(300)
        """,
    )
    code = f"""
        import signal
        from pathlib import Path
        from sam2kit.pipeline import runner as pipeline
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        root = Path({str(root)!r})
        pipeline.notebooks_dir = lambda: root / "notebooks"
        pipeline.run_stages(root / "config.yaml", {{}}, [1], root / "run")
        """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.PIPE, text=True
    )
    for _ in range(300):
        if (root / "pids").exists():
            break
        time.sleep(0.1)
    pids = [int(pid) for pid in (root / "pids").read_text().split()]
    assert read_status(root / "run")["state"] == "running"
    driver.send_signal(number)
    _, told = driver.communicate(timeout=60)
    assert driver.returncode != 0 and ("KeyboardInterrupt" in told) == (number != signal.SIGKILL)
    assert all(ended(pid) for pid in pids)
    assert not is_locked(root / "run")
    found = read_status(root / "run")
    assert found["state"] == found["stages"]["01_first"]["state"] == "interrupted"
