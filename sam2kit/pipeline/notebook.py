"""Prepare a staged notebook: its working directory, its run directory and its log lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from loguru import logger

from sam2kit.utils.paths import open_run_dir

LOG_FORMAT = "{time:HH:mm:ss} {message}"


def start_notebook(run_dir: str | Path, log_level: str = "INFO") -> Path:
    """Prepare a notebook, and return its run directory.

    Relative paths are relative to the repository, wherever in it the kernel was started (JupyterLab
    starts it in the directory of the notebook). A kernel that was started outside the repository,
    such as papermill's in a directory of data, keeps its working directory; only a relative
    ``run_dir`` is then still in the repository, so that later stages find it. An installed package
    without the repository changes no path. Log lines of ``log_level`` are printed below the cell.

    Args:
        run_dir: directory for results; it is created if necessary.
        log_level: a loguru level, such as ``INFO`` or ``DEBUG``.

    Returns:
        The absolute path of the run directory.

    Raises:
        ConfigError: the run directory cannot be created or is not writable.
    """
    root = repository_root()
    if root is not None and Path.cwd().is_relative_to(root):
        os.chdir(root)
    run_dir = Path(root or Path.cwd(), run_dir)
    logger.configure(handlers=[{"sink": sys.stdout, "level": log_level, "format": LOG_FORMAT}])
    return open_run_dir(run_dir, run_dir)


def repository_root() -> Path | None:
    """Return the root of the repository, or None if the package is installed without it."""
    root = Path(__file__).parents[2]
    return root if (root / "notebooks" / "00_quickstart.ipynb").is_file() else None
