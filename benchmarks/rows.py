"""The rows of the suite: functions from :class:`~benchmarks.measure.Options` to findings."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import data, jf, tracker_memory
from benchmarks.measure import MIB, Finding, Options, ratio, seconds
from benchmarks.steps import filling_the_cache, frozen_encoder, full_fine_tuning, on_gpu
from benchmarks.video_tracking import whole_videos

Row = Callable[[Options], list[Finding]]


def memory_of_tracking(options: Options) -> list[Finding]:
    """Measure how a tracker's state grows when the video becomes four times as long."""
    frames = 16 if options.quick else 800
    trackers = tracker_memory.compare(frames, every=25)["trackers"]
    counts = trackers["sam2kit"]
    early, late = min(counts, key=int), max(counts, key=int)
    state_bytes = {
        name: [c[count]["state_bytes"] for count in (early, late)] for name, c in trackers.items()
    }
    texts = {name: f"{a / MIB:.1f} to {b / MIB:.1f} MiB" for name, (a, b) in state_bytes.items()}
    first, last = state_bytes["sam2kit"]
    bound = None if options.quick else 0.0
    what = f"memory of tracking, frame {early} to {late}: growth"
    sides = texts["SAM2VideoPredictor"], texts["sam2kit"]
    growth = last / first - 1
    return [Finding(what, "`SAM2VideoPredictor`", *sides, growth, "{:.0%}", bound, at_most=True)]


def region_and_boundary(options: Options) -> list[Finding]:
    """Measure the time to score a mask."""
    result = jf.compare(jf.DAVIS, 1000 if options.quick else 4)
    sides = result["ms"]["definition"] / 1000, result["ms"]["sam2kit"] / 1000
    note = f"equal values on {result['frames']} frames ({result['data']})"
    return [ratio("J and F of a mask", "the definition, whole images", *sides, 10, note)]


def loading(options: Options) -> list[Finding]:
    """Measure the CPU time to load a clip."""
    sizes, rounds = ([32], 1) if options.quick else ([512, 1024], 3)
    findings = []
    with TemporaryDirectory() as folder:
        use_davis = data.DAVIS.is_dir() and not options.quick
        root = data.DAVIS if use_davis else data.generated_davis(Path(folder))
        for size in sizes:
            for augmented in (False, True):
                row = data.compare(root, size, augmented, rounds)
                what = f"clips of {data.FRAMES} frames, {size} px{', augmented' * augmented}"
                # For a fair comparison, both sides return normalized floats.
                sides = 1 / row["upstream"], 1 / row["sam2kit, normalised"]
                findings.append(ratio(what, "`VOSDataset`", *sides, 1.5, "processor time"))
    return findings


def starting(options: Options) -> list[Finding]:
    """Measure the time to print the command-line help and to import the package."""
    checks = "; assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    helps = "import sys\nfrom sam2kit.cli.main import main\nmain(['--help'])\n"
    commands = {
        "`sam2kit --help`": ["-c", helps + checks[2:]],
        "`import sam2kit`": ["-c", "import sys, sam2kit" + checks],
        "bare": ["-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(1 + 3 * options.repeats):  # the first run fills the file system cache
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    bare = medians.pop("bare")
    note = "the whole process; torch is not imported"
    return [
        Finding(
            what, "bare Python", seconds(bare), seconds(median), median, "{:.2f} s", 0.3, True, note
        )
        for what, median in medians.items()
    ]


def gpu(size: str, options: Options) -> list[Finding]:
    """Measure a training step on a GPU, or report that there is none."""
    if not torch.cuda.is_available():
        name = f"training step on a GPU, {size} at 1024, T=8, 3 objects"
        return [Finding(name, "`SAM2Train` in bf16", "no GPU here", "", None, "")]
    large = replace(options, model=size, image_size=1024, frames=8, device="cuda")
    return on_gpu(options if options.quick else large, 3)


ROWS: dict[str, Row] = {
    "step1": partial(frozen_encoder, objects=1),
    "step3": partial(frozen_encoder, objects=3),
    "full1": partial(full_fine_tuning, objects=1),
    "full3": partial(full_fine_tuning, objects=3),
    "cache": filling_the_cache,
    "track1": partial(whole_videos, objects=1),
    "track3": partial(whole_videos, objects=3),
    "memory": memory_of_tracking,
    "jf": region_and_boundary,
    "data": loading,
    "start": starting,
    "gpu-b+": partial(gpu, "b+"),
    "gpu-l": partial(gpu, "l"),
}
