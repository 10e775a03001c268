"""How the cost of a step grows: ``python -m benchmarks.growth [--quick --out DIR]``.

Time and memory of the kit's fast step (frozen encoder, features from a warm cache) against the
number of frames, of objects and of pixels, and the time to start against the number of videos, each
as multiples of the smallest. Writes ``growth.{json,md,png}``. Ten minutes on a CPU core.
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

Panel = list[dict[str, Any]]  # a row for each point: its number, seconds, MiB if any


def step(options: Options, objects: int) -> dict[str, float]:
    with clip_config(options, objects, FAST) as config:
        run = KitStep(config, options.device)
        run()  # fills the cache
        memory = peak_bytes(run, options.device)
        took = in_turns({"step": run}, options.repeats, options.device)["step"]
    return {"seconds": took, "MiB": memory / MIB}


def start(videos: int) -> dict[str, float]:
    """From a configuration to clips that are known to be whole; the files are tiny."""
    with TemporaryDirectory() as folder:
        root = Path(folder) / "davis"
        picture, mask = Image.new("RGB", (32, 32)), np.zeros((32, 32), np.uint8)
        mask[8:20, 8:20] = 1
        for v in range(videos):
            for kind, image in (("JPEGImages", picture), ("Annotations", Image.fromarray(mask))):
                place = root / kind / "480p" / f"v{v:06d}"
                place.mkdir(parents=True)
                for t in range(3):
                    image.save(place / f"{t:05d}.{'jpg' if kind == 'JPEGImages' else 'png'}")
        config = step_config(root, Options.tiny())
        begin = time.perf_counter()
        SAM2LightningDataModule(config).check_videos()
        return {"seconds": time.perf_counter() - begin}


def measured(values: Sequence[int], point: Callable[[int], dict[str, float]]) -> Panel:
    points = []
    for value in values:
        points.append({"number": value, **point(value)})
        print(points[-1], file=sys.stderr, flush=True)
    return points


def panels(options: Options) -> dict[str, Panel]:
    """The four panels' points. The first two have clips of ``options``' size."""
    quick = options.quick
    sizes = (32, 64) if quick else (128, 192, 256, 384, 512)
    by_size = {
        side * side: replace(options, image_size=side) for side in sizes
    }  # cost follows the pixels, not the side
    return {
        "frames": measured(
            (2, 3) if quick else (2, 3, 4, 6, 8, 12, 16),
            lambda n: step(replace(options, frames=n), 1),
        ),
        "objects": measured((1, 2) if quick else (1, 2, 3, 4, 6, 8), lambda n: step(options, n)),
        "pixels": measured(list(by_size), lambda n: step(by_size[n], 1)),
        "videos": measured((2, 8) if quick else (10, 100, 1000, 3000), start),
    }


def picture(found: dict[str, Panel]) -> Figure:
    """Multiples of the smallest, on logarithmic axes; the dashed line is proportional growth."""
    titles = {
        "frames": "a step, against frames",
        "objects": "a step, against objects",
        "pixels": "a step, against pixels",
        "videos": "start, against videos",
    }
    figure = Figure((11, 3.4), dpi=120, layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 4), found.items(), strict=True):
        x = np.array([point["number"] for point in points], float)
        axes.plot(x, x / x[0], "--", color="grey", linewidth=1, label="in proportion")
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


def text(found: dict[str, Panel], options: Options, where: str) -> str:
    parts = [
        f"# How the cost grows\n\nThe fast step (bf16, features from a warm cache) of Hiera-"
        f"{options.model}; where it is not what varies: {options.image_size} px, "
        f"{options.frames} frames, 1 object. `python -m benchmarks.growth`\n"
    ]
    for name, points in found.items():
        rows = []
        for point in points:
            times = point["seconds"] / points[0]["seconds"]
            row = {name: point["number"], "seconds": point["seconds"]}
            if "MiB" in point:
                row["MiB"] = round(point["MiB"])
            row["number, times the first"] = round(point["number"] / points[0]["number"], 1)
            row["seconds, times the first"] = round(times, 1)
            if "MiB" in point:
                row["MiB, times the first"] = round(point["MiB"] / points[0]["MiB"], 1)
            rows.append(row)
        parts.append(markdown_table(rows) + "\n")
    return "\n".join([*parts, where + "\n"])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    given = parser.parse_args(argv)
    use_threads(given.threads)
    logger.disable("sam2kit")  # progress is told here
    changes = {"threads": given.threads, "device": given.device, "repeats": given.repeats}
    options = Options.tiny(**changes) if given.quick else Options(image_size=256, **changes)
    found, where = panels(options), machine()
    report = text(found, options, machine_line(where))
    write(given.out / "growth", {"machine": where, "panels": found}, report)
    picture(found).savefig(given.out / "growth.png")
    print(report)


if __name__ == "__main__":
    main()
