"""Check where a notebook works and writes, wherever its kernel was started."""

from __future__ import annotations

from pathlib import Path

import pytest
from loguru import logger

from sam2kit import start_notebook
from sam2kit.pipeline import notebook

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _restore_log():
    yield
    logger.remove()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a notebook, in place of the real one."""
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(notebook, "repository_root", lambda: root)
    return root


def test_the_repository_is_found():
    assert notebook.repository_root() == ROOT


@pytest.mark.parametrize("start", ["notebooks", "."])
def test_paths_are_relative_to_the_repository(repository, start, monkeypatch):
    monkeypatch.chdir(repository / start)
    assert start_notebook("outputs/a") == repository / "outputs" / "a"
    assert Path.cwd() == repository and (repository / "outputs" / "a").is_dir()


def test_outside_the_repository_data_stay_relative_to_the_working_directory(
    repository, tmp_path, monkeypatch
):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "data")
    assert start_notebook("outputs/a") == repository / "outputs" / "a"
    assert Path.cwd() == tmp_path / "data"


def test_an_absolute_run_directory_is_used_as_it_is(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(repository)
    assert start_notebook(tmp_path / "mine") == tmp_path / "mine"


def test_log_lines_are_printed(repository, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    start_notebook("a", "WARNING")
    logger.info("an information")
    logger.warning("a warning")
    assert "a warning" in (printed := capsys.readouterr().out) and "information" not in printed
