"""The curves of a training, redrawn in a notebook while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from IPython.display import display

from sam2kit.viz.plots import training_curves

SECONDS = 5.0
LEAST_REST = 20  # times what the last drawing took, so that training loses a twentieth at most


@contextmanager
def show_live_curves(run_dir: str | Path, seconds: float = SECONDS) -> Iterator[None]:
    """Show :func:`~sam2kit.viz.plots.training_curves` of a run folder below the cell, and renew it.

    One picture is replaced again and again, also in an executed notebook that papermill keeps, and
    drawn a last time when the block ends, however it ends. What is drawn is ``metrics.csv``, so it
    does not matter which process trains. Without a kernel it prints a line for each picture.

    Args:
        run_dir: where the training writes ``metrics.csv``; a file of an earlier run is drawn, too.
        seconds: between two drawings at least.
    """
    file, stop = Path(run_dir) / "metrics.csv", threading.Event()
    handle, drawn = None, 0

    def draw() -> None:
        nonlocal handle, drawn
        changed = file.stat().st_mtime_ns if file.exists() else 0
        if changed == drawn or (figure := training_curves(file)) is None:
            return
        drawn = changed
        if handle is None:
            handle = display(figure, display_id=True)
        else:
            handle.update(figure)

    def repeat() -> None:
        rest = seconds
        while not stop.wait(rest):
            start = time.monotonic()
            draw()
            rest = max(seconds, LEAST_REST * (time.monotonic() - start))

    thread = threading.Thread(target=repeat, daemon=True, name="live curves")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        draw()
