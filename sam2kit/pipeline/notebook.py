"""Set the working directory, run directory and log format of a staged notebook."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from loguru import logger

from sam2kit.utils.paths import open_run_dir

LOG_FORMAT = "{time:HH:mm:ss} {message}"


def start_notebook(run_dir: str | Path, log_level: str = "INFO") -> Path:
    """Prepare a staged notebook and return its run directory.

    If the kernel was started in the repository (JupyterLab starts it in the notebook's directory),
    the working directory becomes the repository's root. Otherwise it does not change, and only a
    relative ``run_dir`` is relative to the repository, so that later stages find it. If the package
    is installed without the repository, no path changes. Log lines are printed below the cell.

    Args:
        run_dir: directory for results; it is created if necessary.
        log_level: minimum level of log lines, such as ``INFO`` or ``DEBUG``.

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
