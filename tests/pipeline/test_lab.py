"""``sam2kit annotate``: the notebook that it writes, and the command that opens it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from data_helpers import save_video

from sam2kit.cli.main import main
from sam2kit.pipeline.lab import SOURCE, lab_command, prepare_annotator
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError, PipelineError


@pytest.fixture
def video(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return save_video(tmp_path / "films" / "my clip.mp4", [10 * t for t in range(4)])


def parameters(notebook: Path) -> dict[str, str]:
    cells = nbformat.read(notebook, 4).cells
    values: dict[str, str] = {}
    for cell in cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", ())):
            exec(cell.source, values)
    return {name: values[name] for name in ("data", "run_dir", "checkpoint")}


def test_the_notebook_is_the_same_for_each_call(video, tmp_path):
    notebook = prepare_annotator("films/my clip.mp4", "nano")
    expected = {"data": str(video), "run_dir": str(notebook.parent), "checkpoint": "nano"}
    assert parameters(notebook) == expected
    assert notebook.is_relative_to(tmp_path / "outputs" / "annotate") and notebook.name == SOURCE
    # A user's change survives, and the parameters are set again.
    content = nbformat.read(notebook, 4)
    content.cells.append(nbformat.v4.new_code_cell("1 + 1"))
    nbformat.write(content, notebook)
    (tmp_path / "weights.pt").write_bytes(b"")
    assert prepare_annotator(video, "weights.pt") == notebook
    assert nbformat.read(notebook, 4).cells[-1].source == "1 + 1"
    assert parameters(notebook) == expected | {"checkpoint": str(tmp_path / "weights.pt")}
    other = save_video(tmp_path / "other" / "my clip.mp4", [0, 1])
    assert prepare_annotator(other, "nano").parent != notebook.parent


@pytest.mark.parametrize("content", ["{", "3", '{"cells": 3}', "[" * 10_000, '{"nbformat": 4}'])
def test_a_damaged_notebook_is_an_error(video, content):
    notebook = prepare_annotator(video, "nano")
    notebook.write_text(content)
    with pytest.raises(PipelineError) as error:
        prepare_annotator(video, "nano")
    assert error.value.hint


def test_all_cells_run_on_a_video_without_masks(video, tmp_path):
    cells = nbformat.read(prepare_annotator(video, "nano", tmp_path / "run"), 4).cells
    assert "my clip.mp4" in cells[0].source
    names: dict = {}
    for cell in cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert len(names["annotator"].source.names) == 1
    assert names["working_dir"] == str(tmp_path)  # relative paths typed in the widget start here


def test_mistakes_are_reported_before_jupyterlab_starts(video, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    wrong = [("no.mp4", "nano", None, DataError), (video, "nao", None, CheckpointError)]
    wrong += [(video, "nano", tmp_path / "file" / "run", ConfigError)]
    for data, checkpoint, run_dir, error in wrong:
        with pytest.raises(error) as caught:
            prepare_annotator(data, checkpoint, run_dir)
        assert caught.value.hint
    assert main(["annotate", "no.mp4"]) == 2
    assert not (tmp_path / "outputs").exists()


def test_the_command(video, tmp_path, monkeypatch, capsys):
    commands = []
    monkeypatch.setattr(os, "execv", lambda path, command: commands.append(command))
    nano = ["--model-checkpoint", "nano"]
    assert main(["annotate", str(video), *nano, "--no-lab"]) == 0 and not commands
    notebook = Path(capsys.readouterr().out.strip())
    main(["annotate", str(video), *nano, "--no-browser", "--port", "8899"])
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "jupyterlab"] and "--no-browser" in command
    assert f"--ServerApp.root_dir={tmp_path}" in command and "--ServerApp.port=8899" in command
    assert "--ServerApp.ip=127.0.0.1" in command
    (url,) = [word for word in command if word.startswith("--LabApp.default_url=")]
    assert url.endswith(f"{notebook.parent.name.replace(' ', '%20')}/{SOURCE}")
    assert not any("token" in word.lower() for word in command)
    for user, is_root in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        assert ("--allow-root" in lab_command(notebook)) == is_root
    # A run directory elsewhere is the root itself.
    monkeypatch.chdir(tmp_path / "films")
    assert f"--ServerApp.root_dir={notebook.parent}" in lab_command(notebook, "0.0.0.0")
