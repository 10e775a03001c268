"""What a command does around the library: log lines on the screen, and what an interrupt tells."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def log_to_console(level: str) -> None:
    """Time and message alone; whose code speaks is of no use to somebody who watches a run."""
    from loguru import logger

    form = "<green>{time:HH:mm:ss}</green> <level>{message}</level>"
    logger.configure(handlers=[{"sink": sys.stderr, "level": level, "format": form}])


@contextmanager
def kept_under(folder: str | Path) -> Iterator[None]:
    """Tell an interruption what stays. Lightning turns Ctrl-C into ``SystemExit``: turn it back."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"what was written so far is kept under {folder}") from stop
