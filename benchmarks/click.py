"""Measure the annotator's response time to a click in the kernel.

    OMP_NUM_THREADS=2 python benchmarks/click.py [FOLDER] [--clicks 30]

FOLDER is any source of videos (default: 480p frames of noise). The first click on a frame runs the
image encoder; further clicks reuse the cached features. ``zoomed`` also sends the visible part of
the frame in full resolution. The time includes writing the annotations to disk and preparing the
message (three candidate masks, images, scores), but not the transfer to the browser and drawing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from sam2kit.widgets.annotator import Annotator


def write_noise(folder: Path, frames: int = 5) -> Path:
    for t in range(frames):
        pixels = np.random.default_rng(t).integers(0, 256, (480, 854, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{t:05d}.jpg")
    return folder


def measure(videos: Path, clicks: int) -> None:
    with tempfile.TemporaryDirectory() as run_dir:
        widget = Annotator(videos, "nano", accelerator="cpu", run_dir=run_dir)
        height, width = widget.session.size
        kinds = "first on a frame", "further", "zoomed", "box"
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        generator = np.random.default_rng(0)
        for n in range(clicks):
            widget.go(n % widget.session.num_frames)
            widget.clear()
            for name in times:
                x, y = (int(v) for v in generator.uniform(0.3, 0.6, 2) * (width, height))
                part = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
                widget.on_viewport(part if name == "zoomed" else None)
                start = time.perf_counter()
                widget.box(x, y, x + 99, y + 99) if name == "box" else widget.click(x, y)
                times[name].append(1000 * (time.perf_counter() - start))
    print(f"{width}x{height}, nano, CPU; milliseconds, {clicks} clicks")
    for name, values in times.items():
        print(f"{name:17} median {np.median(values):6.1f}   worst {max(values):6.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--clicks", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.folder or write_noise(Path(folder)), options.clicks)
