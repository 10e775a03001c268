"""Measure how the cost of a step scales: ``python -m benchmarks.growth [--quick --out DIR]``.

Measures time and memory of sam2kit's fast step (frozen encoder, features from a warm cache) for
different numbers of frames, objects and pixels, and the time to start for different numbers of
videos, also as multiples of the smallest case. Writes ``growth.{json,md,png}``.
Takes ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from loguru import logger
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.measure import (
    MIB,
    RESULTS,
    Options,
    in_turns,
    machine,
    machine_line,
    peak_bytes,
    use_threads,
    write,
)
from benchmarks.steps import FAST, KitStep, clip_config, step_config
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.viz.plots import LINE_COLORS
from sam2kit.viz.tables import markdown_table

Panel = list[dict[str, Any]]  # one row per point: number, seconds and, for steps, MiB


def step(options: Options, objects: int) -> dict[str, float]:
    with clip_config(options, objects, FAST) as config:
        run = KitStep(config, options.device)
        run()  # fills the cache
        memory = peak_bytes(run, options.device)
        took = in_turns({"step": run}, options.repeats, options.device)["step"]
    return {"seconds": took, "MiB": memory / MIB}


def start(videos: int) -> dict[str, float]:
    """Measure the time to check all videos of a configuration, with tiny files."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "davis"
        frame, mask = Image.new("RGB", (32, 32)), np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 1
        for v in range(videos):
            for kind, image in (("JPEGImages", frame), ("Annotations", Image.fromarray(mask))):
                video_folder = root / kind / "480p" / f"v{v:06d}"
                video_folder.mkdir(parents=True)
                for t in range(3):
                    suffix = "jpg" if kind == "JPEGImages" else "png"
                    image.save(video_folder / f"{t:05d}.{suffix}")
        config = step_config(root, Options.tiny())
        begin = time.perf_counter()
        SAM2LightningDataModule(config).check_videos()
        return {"seconds": time.perf_counter() - begin}


def measure(values: Sequence[int], measure_point: Callable[[int], dict[str, float]]) -> Panel:
    """Measure and print a panel's points."""
    points = []
    for value in values:
        points.append({"number": value, **measure_point(value)})
        print(points[-1], file=sys.stderr, flush=True)
    return points


def panels(options: Options) -> dict[str, Panel]:
    """Measure the points of all four panels."""
    quick = options.quick
    # Use the number of pixels for the axis, because it determines the cost, not the side length.
    sizes = (32, 64) if quick else (128, 192, 256, 384, 512)
    by_size = {side * side: replace(options, image_size=side) for side in sizes}
    return {
        "frames": measure(
            (2, 3) if quick else (2, 3, 4, 6, 8, 12, 16),
            lambda n: step(replace(options, frames=n), 1),
        ),
        "objects": measure((1, 2) if quick else (1, 2, 3, 4, 6, 8), lambda n: step(options, n)),
        "pixels": measure(list(by_size), lambda n: step(by_size[n], 1)),
        "videos": measure((2, 8) if quick else (10, 100, 1000, 3000), start),
    }


def growth_figure(results: dict[str, Panel]) -> Figure:
    """Plot multiples of the smallest case on log axes; dashed lines show linear growth."""
    titles = {
        "frames": "training step by frames",
        "objects": "training step by objects",
        "pixels": "training step by pixels",
        "videos": "start by videos",
    }
    figure = Figure((11, 3.4), dpi=120, layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 4), results.items(), strict=True):
        x = np.array([point["number"] for point in points], float)
        axes.plot(x, x / x[0], "--", color="grey", linewidth=1, label="proportional")
        for key, color in (("seconds", LINE_COLORS[0]), ("MiB", LINE_COLORS[1])):
            if key in points[0]:
                y = np.array([point[key] for point in points])
                label = {"seconds": "time", "MiB": "memory"}[key]
                axes.plot(x, y / y[0], "o-", color=color / 255, markersize=3, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(title=titles[name], xlabel=name)
        axes.set_xticks(x, [f"{int(np.sqrt(v))}²" if name == "pixels" else f"{v:g}" for v in x])
        top = max(axes.get_ylim()[1], 2)
        ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100, 300) if t <= top]
        axes.set_yticks(ticks, [f"{t}x" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def markdown(results: dict[str, Panel], options: Options, machine_text: str) -> str:
    """Return the results as Markdown, one table per panel."""
    parts = [
        f"# How the cost grows\n\nThe fast step (bf16, features from a warm cache) of Hiera-"
        f"{options.model}. Unless varied: {options.image_size} px, {options.frames} frames, "
        "1 object. `python -m benchmarks.growth`\n"
    ]
    for name, points in results.items():
        rows = []
        for point in points:
            time_ratio = point["seconds"] / points[0]["seconds"]
            row = {name: point["number"], "seconds": point["seconds"]}
            if "MiB" in point:
                row["MiB"] = round(point["MiB"])
            row["number, times the first"] = round(point["number"] / points[0]["number"], 1)
            row["seconds, times the first"] = round(time_ratio, 1)
            if "MiB" in point:
                row["MiB, times the first"] = round(point["MiB"] / points[0]["MiB"], 1)
            rows.append(row)
        parts.append(markdown_table(rows) + "\n")
    return "\n".join([*parts, machine_text + "\n"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    logger.disable("sam2kit")  # this script prints its own progress
    changes = {
        "threads": arguments.threads,
        "device": arguments.device,
        "repeats": arguments.repeats,
    }
    options = Options.tiny(**changes) if arguments.quick else Options(image_size=256, **changes)
    results, machine_info = panels(options), machine()
    report = markdown(results, options, machine_line(machine_info))
    write(arguments.out / "growth", {"machine": machine_info, "panels": results}, report)
    growth_figure(results).savefig(arguments.out / "growth.png")
    print(report)


if __name__ == "__main__":
    main()
