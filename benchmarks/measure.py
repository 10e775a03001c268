"""Utilities for benchmarks: timing, hardware information, result tables and test data.

Benchmarks run both sides alternately in one process, so that other processes affect both equally,
and compare medians.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from sam2kit.data import SyntheticDataset
from sam2kit.data.sources.base import VideoSource
from sam2kit.training.memory_profile import (
    peak_bytes as peak_bytes,  # re-exported for benchmarks
)
from sam2kit.viz.plots import LINE_COLORS
from sam2kit.viz.tables import TrustedMarkdown, markdown_table

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "sam2", "transformers", "lightning", "numpy")
MIB = 2**20


@dataclass(frozen=True)
class Options:
    """Sizes and device of the benchmarks in the suite.

    Attributes:
        model: size of the model.
        image_size: side length of the model's input in pixels.
        frames: frames per clip of a training step.
        video_frames: frames per tracked video.
        threads: number of CPU threads.
        repeats: number of runs per side, whose median is reported.
        device: ``cpu`` or ``cuda``.
        quick: whether sizes are too small for meaningful results.
    """

    model: str = "t"
    image_size: int = 512
    frames: int = 5
    video_frames: int = 20
    threads: int = 1
    repeats: int = 5
    device: str = "cpu"
    quick: bool = False

    @classmethod
    def tiny(cls, **changes: Any) -> Options:
        """Return toy sizes to check that everything runs."""
        small = {"model": "nano", "image_size": 64, "frames": 3, "video_frames": 4, "repeats": 1}
        return cls(**(small | {"quick": True} | changes))


@dataclass
class Finding:
    """One row of the suite's table.

    Attributes:
        what: what was measured.
        against: the baseline.
        theirs, ours: the results of both sides as text, with units.
        value: the value to compare with ``bound``, or None if it could not be measured.
        form: format of the value, such as ``{:.2f}x``.
        bound: the target, or None (default) for no target.
        at_most: whether ``bound`` is a maximum instead of a minimum.
        note: conditions of the measurement.
    """

    what: str
    against: str
    theirs: str
    ours: str
    value: float | None
    form: str
    bound: float | None = None
    at_most: bool = False
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached; None without a target or a value."""
        if self.bound is None or self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def row(self) -> dict[str, str]:
        target = None if self.bound is None else self.form.format(self.bound)
        side = "at most " if self.at_most else "at least "
        return {
            "measurement": TrustedMarkdown(self.what),
            "compared with": TrustedMarkdown(self.against),
            "theirs": self.theirs,
            "sam2kit": self.ours,
            "result": "–" if self.value is None else self.form.format(self.value),
            "target": "–" if target is None else side + target,
            "target met": {None: "", True: "yes", False: TrustedMarkdown("**no**")}[self.holds],
        }


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.3g} s"


def ratio(
    what: str,
    against: str,
    theirs: float,
    ours: float,
    bound: float | None = None,
    note: str = "",
) -> Finding:
    """Create a finding from the seconds of both sides: the speedup of ours."""
    both = seconds(theirs), seconds(ours)
    return Finding(what, against, *both, theirs / ours, "{:.2f}x", bound, note=note)


def share(what: str, against: str, theirs: int, ours: int, bound: float | None = None) -> Finding:
    """Create a finding from the bytes of both sides: ours as a fraction of theirs."""
    both = f"{theirs / MIB:,.0f} MiB", f"{ours / MIB:,.0f} MiB"
    return Finding(what, against, *both, ours / theirs, "{:.0%}", bound, at_most=True)


def use_threads(count: int) -> None:
    torch.set_num_threads(count)
    cv2.setNumThreads(count if count > 1 else 0)


def in_turns(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """Return the median seconds of each side, run alternately; call after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            gc.collect()  # so that no side collects the garbage of another
            _wait(device)
            begin = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def _wait(device: str) -> None:
    """Wait until the GPU has finished: its work is asynchronous."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def machine() -> dict[str, object]:
    """Return hardware, load and package versions, on which results depend."""
    properties: dict[str, object] = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        properties["gpu"] = torch.cuda.get_device_name()
    for package in PACKAGES:
        try:
            properties[package] = version(package)
        except PackageNotFoundError:
            properties[package] = "not installed"
    return properties


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def machine_line(properties: Mapping[str, object]) -> str:
    """Return the result of :func:`machine` as one line of text."""
    return ", ".join(f"{key} {value}" for key, value in properties.items())


def write(stem: Path, document: Mapping[str, Any], text: str) -> None:
    """Write ``STEM.json`` and ``STEM.md``, each atomically."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(document, indent=1) + "\n"), (".md", text)):
        part = stem.with_suffix(suffix + ".part")
        part.write_text(content, encoding="utf-8")
        os.replace(part, stem.with_suffix(suffix))


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table followed by notes."""
    notes = list(dict.fromkeys(f"- {f.what}: {f.note}" for f in findings if f.note))
    text = markdown_table([finding.row() for finding in findings]) + "\n"
    return text + ("\n" + "\n".join(notes) + "\n" if notes else "")


def ratio_chart(findings: Sequence[Finding]) -> Figure | None:
    """Plot one bar per speedup, with a mark at its target.

    Returns:
        The figure, or None if no finding is a speedup.
    """
    shown = [f for f in findings if f.form.endswith("x") and f.value is not None]
    if not shown:
        return None
    figure = Figure((7, 0.9 + 0.34 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    good, bad = LINE_COLORS[0] / 255, LINE_COLORS[1] / 255
    colors = [bad if f.holds is False else good for f in shown]
    values = [float(f.value or 0) for f in shown]
    axes.barh(range(len(shown)), [v - 1 for v in values], left=1, color=colors, height=0.65)
    for y, finding in enumerate(shown):
        if finding.bound is not None:
            axes.plot([finding.bound] * 2, [y - 0.42, y + 0.42], color="black", linewidth=2)
    axes.plot([], [], color="black", linewidth=2, label="target")
    axes.plot([], [], color=bad, linewidth=6, label="target missed")
    axes.axvline(1, color="grey", linewidth=1, label="equal speed")
    labels = [f"{f.what}: {f.form.format(f.value)}\nagainst {f.against}" for f in shown]
    axes.set_yticks(range(len(shown)), [text.replace("`", "") for text in labels], size=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    low, high = min([*values, 0.9]) * 0.95, 1.1 * max([*values, 4.0])
    axes.set_xlim(low, high)
    ticks = [t for t in (0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("speedup")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", fontsize=8, frameon=False, ncols=3)
    return figure


def as_documents(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def crowded_videos(
    count: int, frames: int, objects: int, size: tuple[int, int] = (480, 854)
) -> SyntheticDataset:
    """Generate videos with exactly ``objects`` visible objects in the first frame.

    Args:
        count: number of videos.
        frames: frames per video.
        objects: objects per video.
        size: rows and columns.

    Raises:
        RuntimeError: no seed generates such videos.
    """
    # The generator places objects randomly, so try seeds until all objects are visible.
    for seed in range(1000):
        videos = SyntheticDataset(count, frames, size, objects, seed=seed)
        first = [videos.read_masks(i, 0) or {} for i in range(count)]
        if all(len(masks) == objects for masks in first) and all(
            mask.sum() > 0.002 * mask.size for masks in first for mask in masks.values()
        ):
            return videos
    raise RuntimeError(f"no generated videos show {objects} objects on their first frame")


def write_davis(videos: VideoSource, root: Path, exist_ok: bool = False) -> Path:
    """Write videos as JPEGs and palette PNGs in DAVIS layout, and return ``root``."""
    for i, name in enumerate(videos.names):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "480p" / name).mkdir(parents=True, exist_ok=exist_ok)
        for t in range(videos.num_frames(i)):
            stem, frame = f"480p/{name}/{t:05d}", videos.read_frame(i, t)
            Image.fromarray(frame).save(root / f"JPEGImages/{stem}.jpg")
            ids = np.zeros(frame.shape[:2], np.uint8)
            for number, mask in (videos.read_masks(i, t) or {}).items():
                ids[mask] = int(number)
            image = Image.fromarray(ids, "P")
            image.putpalette(list(range(256)) * 3)
            image.save(root / f"Annotations/{stem}.png")
    return root


@contextmanager
def autocast(device: str, enabled: bool) -> Iterator[None]:
    """Run the block under bf16 autocast, if enabled."""
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled):
        yield
