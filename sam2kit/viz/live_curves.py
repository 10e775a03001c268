"""Show training curves in a notebook and update them during training."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from IPython.display import display

from sam2kit.viz.plots import training_curves

SECONDS = 5.0
# Minimum pause as a multiple of the last drawing time, so that drawing takes less than 5% of the
# time from training in the same process.
MIN_PAUSE_FACTOR = 20


@contextmanager
def show_live_curves(run_dir: str | Path, seconds: float = SECONDS) -> Iterator[None]:
    """Show a run's training curves below the cell and update them while the block runs.

    Each update replaces the figure, also under papermill; the last one is drawn when the block ends
    or raises. Curves are read from ``metrics.csv``, so training may run in another process. Without
    a notebook kernel, IPython prints one line per update. See
    :func:`~sam2kit.viz.plots.training_curves`.

    Args:
        run_dir: directory in which training writes ``metrics.csv``; an existing file is shown, too.
        seconds: minimum number of seconds between two updates.
    """
    file, stop = Path(run_dir) / "metrics.csv", threading.Event()
    handle, last_drawn = None, (0, 0)

    def draw() -> None:
        nonlocal handle, last_drawn
        stat = file.stat() if file.exists() else None
        # Two writes within a tick of the clock have the same time; the file only grows.
        state = (stat.st_mtime_ns, stat.st_size) if stat else (0, 0)
        if state == last_drawn or (figure := training_curves(file)) is None:
            return
        last_drawn = state
        if handle is None:
            handle = display(figure, display_id=True)
        else:
            handle.update(figure)

    def redraw_until_stopped() -> None:
        pause = seconds
        while not stop.wait(pause):
            start_time = time.monotonic()
            draw()
            pause = max(seconds, MIN_PAUSE_FACTOR * (time.monotonic() - start_time))

    thread = threading.Thread(target=redraw_until_stopped, daemon=True, name="live curves")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        draw()
