"""The pipeline on small notebooks: order, parameters, failures and remaining processes."""

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
from sam2kit.pipeline.status import read_status
from sam2kit.utils.errors import CheckpointError, ConfigError, KernelKilled, PipelineError
from sam2kit.utils.locks import is_locked, locked

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
    """A directory of notebooks that replaces the repository's, beside a configuration file."""
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


def test_stages_pass_results_on_and_run_on_this_interpreter(stage, capsys, monkeypatch, tmp_path):
    # A kernel specification of another interpreter with the same name must not be used.
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
        content = {"python": sys.executable, "overrides": overrides, "config": config_file}
        Path(run_dir, "first.json").write_text(json.dumps(content))
        """,
    )
    write_notebook(
        stage,
        "02_second",
        """
        from pathlib import Path
        assert Path(run_dir, "first.json").exists() and extra == 3
        keys = ("J", "F", "J&F", "J&F_interval", "false_absence", "recovery", "scored_objects")
        empty = dict.fromkeys(keys)
        content = {"schema_version": 2, "convention": "", "protocol": "", "videos": {}}
        content["trackers"] = {"copy": {**empty, "J&F": 0.25}, "tuned": {**empty, "J&F": 0.75}}
        Path(run_dir, "metrics.json").write_text(__import__("json").dumps(content))
        """,
        parameters=PARAMETERS + "extra = 1",
    )
    result = run(stage, {"overrides": ["seed=7"], "extra": 3}, (1, 2))
    root = stage.parent
    content = json.loads((root / "run" / "first.json").read_text())
    assert os.path.samefile(content["python"], sys.executable)
    assert content["overrides"] == ["seed=7"] and content["config"] == str(root / "config.yaml")
    assert [path.name for path in result.notebooks] == ["01_first.ipynb", "02_second.ipynb"]
    assert all(path.exists() for path in result.notebooks)
    assert result.scores == {"copy": 0.25, "tuned": 0.75}
    assert result.results == {"metrics": root / "run" / "metrics.json"}
    assert [entry["state"] for entry in status(stage).values()] == ["done", "done"]
    printed = capsys.readouterr().out
    assert "hello from the first" in printed and "02_second.ipynb" in printed
    assert "0.750" in printed and str(root / "run" / "metrics.json") in printed


def test_braces_are_no_template_and_a_link_in_the_run_directory_is_replaced(stage):
    write_notebook(stage, "01_first", "print(run_dir)")
    folder, mine = stage.parent / "run {lr} {0}", stage.parent / "mine.ipynb"
    folder.mkdir()
    mine.write_text("mine")
    (folder / "01_first.ipynb").symlink_to(mine)
    pipeline.run_stages(stage.parent / "config.yaml", {}, (1,), folder)
    assert read_status(folder)["stages"]["01_first"]["state"] == "done"
    assert mine.read_text() == "mine" and not (folder / "01_first.ipynb").is_symlink()


def test_failure_stops_the_pipeline_and_names_the_notebook(stage):
    write_notebook(stage, "01_first", "a = 1", "raise ValueError('no such swan')")
    write_notebook(stage, "02_second", "b = 1")
    with pytest.raises(
        PipelineError, match="01_first failed in cell .*ValueError: no such swan"
    ) as error:
        run(stage, stages=(1, 2))
    assert str(stage.parent / "run" / "01_first.ipynb") in error.value.hint
    entries = status(stage)
    assert entries["01_first"]["state"] == "failed"
    assert "no such swan" in entries["01_first"]["error"]
    assert entries["02_second"] == {"state": "waiting"}
    executed = (stage.parent / "run" / "01_first.ipynb").read_text()
    assert "no such swan" in executed and not (stage.parent / "run" / "02_second.ipynb").exists()


def test_failed_notebooks_are_not_overwritten(tmp_path):
    for name in ("a.ipynb", "a.failed-2.ipynb"):  # a.failed-1.ipynb was deleted
        (tmp_path / name).write_text(name)
    for _ in range(2):
        (tmp_path / "a.ipynb").write_text("again")
        pipeline._rename_unfinished(tmp_path / "a.ipynb", {"state": "failed"})
    assert (tmp_path / "a.failed-2.ipynb").read_text() == "a.failed-2.ipynb"
    assert (tmp_path / "a.failed-3.ipynb").read_text() == "again"


def counted(name):
    """Return a cell that records that its notebook ran."""
    return f"open(run_dir + '/ran', 'a').write('{name} ')"


def test_second_call_resumes_at_the_failed_stage(stage, tmp_path):
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
    """Record the stages that run, without executing them."""
    names = []

    def execute(source, target, values, lock):
        names.append(source.stem)
        target.touch()

    monkeypatch.setattr(pipeline, "execute", execute)
    return names


def test_finished_stages_are_skipped_until_an_input_changes(stage, tmp_path, ran):
    def again(*arguments, stages=(1, 2, 3)):
        ran.clear()
        run(stage, *arguments, stages=stages)
        return [int(name[:2]) for name in ran]

    write_notebook(stage, "01_first", "a = 1")
    write_notebook(stage, "02_second", "a = 1", parameters=PARAMETERS + "extra = 1")
    write_notebook(stage, "03_third", "a = 1")
    assert again() == [1, 2, 3]
    assert again() == []
    assert again({"extra": 2}) == [2, 3]  # later stages may have read its files
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
def test_parameter_has_the_type_of_its_default(stage, value, default, fits):
    write_notebook(stage, "01_first", parameters=PARAMETERS + f"extra = {default}  # a comment")
    if fits:
        pipeline._accepted_parameters([stage / "01_first.ipynb"], {"extra": value})
        return
    with pytest.raises(PipelineError, match="01_first") as error:
        run(stage, {"extra": value})
    assert (error.value.key, error.value.value) == ("extra", value)
    assert default in error.value.expected


def test_missing_checkpoints_are_reported_before_anything_runs(stage, tmp_path, ran):
    write_notebook(stage, "01_first", parameters=PARAMETERS + "resume = False")
    write_notebook(stage, "02_second", parameters=PARAMETERS + "checkpoint = ''")
    missing = {"overrides": ["model.checkpoint=sam3_tiny"]}
    with pytest.raises(CheckpointError, match="model.checkpoint.*sam3_tiny"):
        run(stage, missing, (1, 2))
    with pytest.raises(CheckpointError, match="evaluation.compare.other.*no.pt"):
        run(stage, {"overrides": ["evaluation.compare={other: no.pt}"]}, (2,))
    assert not (tmp_path / "run").exists()
    write_notebook(stage, "03_third", "a = 1")
    run(stage, missing, (3,))  # this stage loads no checkpoint


def test_directory_in_use_is_rejected(stage, tmp_path, ran):
    write_notebook(stage, "01_first", "a = 1")
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run")
        with pytest.raises(PipelineError, match=f"in use by process {os.getpid()} on "):
            run(stage)
    assert not is_locked(tmp_path / "run")
    run(stage)  # a remaining lock file without a holder is no lock
    assert (tmp_path / "run" / "run.lock").exists()


@pytest.mark.parametrize(
    "text, key", [("{", None), ('{"stages": {}}', "schema_version"), ("[]", "schema_version")]
)
def test_invalid_status_file_is_rejected(stage, tmp_path, text, key):
    write_notebook(stage, "01_first", "a = 1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text(text)
    with pytest.raises(PipelineError, match="status.json") as error:
        run(stage)
    assert error.value.key == key and "delete" in error.value.hint


def test_status_is_written_at_each_change(stage, tmp_path):
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


def test_dead_kernel_is_a_failure_and_its_children_are_ended(stage):
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
    ("parameters", "stages", "key", "value", "hint"),
    [
        ({"oops": 1}, (1,), "oops", 1, "overrides"),
        ({"run_dir": "x"}, (1,), "run_dir", "x", "argument"),
        ({}, (1, 7), "stages", [1, 7], "01_first"),
        ({}, (), "stages", [], "01_first"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_runs(
    stage, parameters, stages, key, value, hint
):
    write_notebook(stage, "01_first", "a = 1")
    with pytest.raises(PipelineError) as error:
        run(stage, parameters, stages)
    assert (error.value.key, error.value.value) == (key, value) and hint in error.value.hint
    assert not (stage.parent / "run").exists()


def test_invalid_configuration_is_rejected_before_anything_runs(stage):
    write_notebook(stage, "01_first", "a = 1")
    with pytest.raises(ConfigError, match="image_size"):
        run(stage, {"overrides": ["dataset.image_size=100"]})
    assert not (stage.parent / "run").exists()


def test_notebook_without_run_dir_is_rejected(stage):
    write_notebook(stage, "01_first", "a = 1", parameters="overrides = []")
    with pytest.raises(PipelineError, match="01_first.*run_dir"):
        run(stage)


def test_missing_repository_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "sam2kit" / "pipeline.py"))
    with pytest.raises(PipelineError) as error:
        pipeline.notebooks_dir()
    assert "clone the repository" in error.value.hint


def ended(pid):
    """Return whether the process has ended, or ends within ten seconds."""
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
@pytest.mark.parametrize(
    "number",
    [
        *(signal.SIGTERM, signal.SIGINT, signal.SIGKILL),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
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
    temporary = root / "temporary"
    temporary.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    for _ in range(300):
        if (root / "pids").exists():
            break
        time.sleep(0.1)
    assert list(temporary.glob("*.json"))  # the connection file of the kernel
    pids = [int(pid) for pid in (root / "pids").read_text().split()]
    assert read_status(root / "run")["state"] == "running"
    driver.send_signal(number)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode != 0 and ("KeyboardInterrupt" in errors) == (number != signal.SIGKILL)
    assert all(ended(pid) for pid in pids)
    for _ in range(100):
        if not list(temporary.glob("*.json")):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the connection file of the kernel remains")
    assert not is_locked(root / "run")
    content = read_status(root / "run")
    assert content["state"] == content["stages"]["01_first"]["state"] == "interrupted"


def test_killed_kernel_is_an_interruption(stage):
    """A signal from outside, such as from the system when memory is full: a sweep resumes it."""
    write_notebook(stage, "01_first", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(KernelKilled, match="01_first failed: DeadKernelError"):
        run(stage)
    assert status(stage)["01_first"]["state"] == "interrupted"
