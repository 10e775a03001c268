"""Measure the memory of tracking: ``python benchmarks/tracker_memory.py [--frames 2000]``.

The shipped nano model tracks two objects in a generated video. They are prompted again with their
masks every 25 frames, so that the tracker has the maximum number of conditioning frames at frame
200. sam2kit's tracker and upstream's ``SAM2VideoPredictor`` run in separate processes. Writes
``benchmarks/results/tracker_memory.json`` and ``.md``. Takes a few minutes on one CPU core.
Requires Linux, because resident memory is read from ``/proc``.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from sam2kit.config.schema import Config
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.sam2 import describe_model
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.video_tracker import VideoTracker
from sam2kit.viz.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
SIDE = 128
OBJECTS = 2
MIB = 2**20
FrameStates = Iterator[tuple[int, int]]  # frame number, bytes of the tracker's state


def masks(t: int) -> np.ndarray:
    """Return the masks of frame ``t``, bool ``[2,H,W]``: two discs on orbits."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angles = [t / 40, np.pi - t / 25]
    centers = [(64 + 38 * np.cos(a), 64 + 30 * np.sin(a)) for a in angles]
    return np.stack([(x - cx) ** 2 + (y - cy) ** 2 < 14**2 for cx, cy in centers])


def frame(t: int) -> np.ndarray:
    """Return frame ``t``, ``[H,W,3]`` uint8: the discs on a moving texture."""
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.stack([120 + 50 * np.sin((x + t) / 7), 120 + 50 * np.sin(y / 9), x + 0.5 * y], -1)
    for mask, colour in zip(masks(t), [(230, 60, 40), (40, 90, 230)], strict=True):
        image[mask] = colour
    return image.clip(0, 255).astype(np.uint8)


def nano() -> Config:
    config = Config()
    config.model.size, config.model.checkpoint = "nano", "nano"
    config.dataset.image_size = SIDE
    return config


def track_by_kit(frames: int, every: int) -> FrameStates:
    """Track with sam2kit, prompting every ``every`` frames."""
    session = VideoTracker(create_sam2_model(nano())).open(frame, frames, (SIDE, SIDE))
    for start in range(0, frames, every):
        prompts = torch.from_numpy(masks(start))
        session.add_prompt(Prompt(start, torch.arange(OBJECTS), masks=prompts))
        for tracks in session.propagate(start, start + every):
            yield tracks.frame, session.state_bytes()


def track_by_upstream(frames: int, every: int) -> FrameStates:
    """Track with ``SAM2VideoPredictor``, prompting every ``every`` frames."""
    from sam2.build_sam import build_sam2_video_predictor

    config, model = nano(), create_sam2_model(nano())
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        # The predictor loads its configuration, weights and frames from files.
        tree = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
        Path(folder, "model.yaml").write_text(f"# @package _global_\n{tree}")
        torch.save({"model": model.state_dict()}, Path(folder, "model.pt"))
        predictor = build_sam2_video_predictor(
            f"/{folder}/model.yaml", f"{folder}/model.pt", device="cpu"
        )
        for t in range(frames):
            Image.fromarray(frame(t)).save(Path(folder, f"{t:05d}.jpg"), quality=95)
        state = predictor.init_state(folder)
        for start in range(0, frames, every):
            for number, mask in enumerate(masks(start)):
                predictor.add_new_mask(state, start, number, mask)
            for t, _, _ in predictor.propagate_in_video(state, start, every - 1):
                yield t, tensor_bytes(state)


def tensor_bytes(value: object) -> int:
    """Return the total size of all tensors in nested dictionaries, lists and tuples.

    Tensors that share memory are counted once.
    """
    bytes_by_address: dict[int, int] = {}

    def collect(value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            bytes_by_address[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    collect(value)
    return sum(bytes_by_address.values())


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(
    track: Callable[[int, int], FrameStates], frames: int, every: int, counts: list[int]
) -> dict:
    """Measure memory after given numbers of frames, and the time per frame in between.

    Args:
        track: the tracker.
        frames: length of the video.
        every: frames between prompts.
        counts: numbers of frames after which to measure.
    """
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    begin, frames_done = 0.0, 0
    for t, state in track(frames, every):
        if not frames_done:  # start timing after the first frame to exclude the setup
            begin, frames_done = time.process_time(), 1
        if t + 1 in counts:
            seconds_per_frame = (time.process_time() - begin) / (t + 1 - frames_done)
            results[str(t + 1)] = {
                "state_bytes": state,
                "resident_bytes": resident_bytes(),
                "cpu_ms_a_frame": round(1000 * seconds_per_frame),
            }
            begin, frames_done = time.process_time(), t + 1
    return results


def table(results: dict) -> str:
    """Return the results as Markdown, one row per tracker and number of frames."""
    rows = [
        {
            "tracker": tracker,
            "after frame": count,
            "state, bytes": f"{measured['state_bytes']:,}",
            "resident, MiB": round(measured["resident_bytes"] / MIB),
            "CPU ms per frame since the previous row": measured["cpu_ms_a_frame"],
        }
        for tracker, counts in results["trackers"].items()
        for count, measured in counts.items()
    ]
    head = (
        f"# Memory of tracking\n\nA generated video of {results['frames']} frames, {SIDE} px, "
        f"{OBJECTS} objects, nano, new masks every {results['every']} frames; one thread.\n"
    )
    return f"{head}\n{markdown_table(rows)}\n"


def compare(frames: int, every: int) -> dict[str, Any]:
    """Measure both trackers, each in a separate process."""
    counts = sorted({min(200, frames), frames // 2, frames})
    results: dict[str, Any] = {"frames": frames, "every": every, "trackers": {}}
    for name, track in {"sam2kit": track_by_kit, "SAM2VideoPredictor": track_by_upstream}.items():
        # A forked process would start with the memory of this process.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            results["trackers"][name] = pool.submit(measure, track, frames, every, counts).result()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both trackers, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--every", type=int, default=25)
    arguments = parser.parse_args(argv)
    results = compare(arguments.frames, arguments.every)
    counts = results["trackers"]["sam2kit"]
    first, last = counts[min(counts, key=int)], counts[max(counts, key=int)]
    assert first["state_bytes"] == last["state_bytes"], "the tracker's state has grown"
    growth = abs(last["resident_bytes"] / first["resident_bytes"] - 1)
    assert growth < 0.05, f"resident memory changed by {growth:.1%}"
    (RESULTS / "tracker_memory.json").write_text(json.dumps(results, indent=1) + "\n")
    (RESULTS / "tracker_memory.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
