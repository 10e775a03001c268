"""What tracking a long video keeps: ``python benchmarks/tracker_memory.py [--frames 2000]``.

Two objects are tracked by the shipped nano through a generated video, and prompted again with their
masks every 25 frames, so that by frame 200 the tracker holds the maximum number of conditioning
frames; upstream's ``SAM2VideoPredictor`` does the same, each in a process of its own. Writes
``benchmarks/results/tracker_memory.json`` and ``.md``. Takes some minutes on one CPU core; Linux
only (the resident memory is read from ``/proc``).
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
Tracked = Iterator[tuple[int, int]]  # frame, bytes of the state


def masks(t: int) -> np.ndarray:
    """``[2,H,W]`` bool: two discs on their orbits."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angles = [t / 40, np.pi - t / 25]
    centers = [(64 + 38 * np.cos(a), 64 + 30 * np.sin(a)) for a in angles]
    return np.stack([(x - cx) ** 2 + (y - cy) ** 2 < 14**2 for cx, cy in centers])


def frame(t: int) -> np.ndarray:
    """``[H,W,3]`` uint8: the discs over a texture that drifts."""
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


def track_by_kit(frames: int, every: int) -> Tracked:
    session = VideoTracker(create_sam2_model(nano())).open(frame, frames, (SIDE, SIDE))
    for start in range(0, frames, every):
        prompts = torch.from_numpy(masks(start))
        session.add_prompt(Prompt(start, torch.arange(OBJECTS), masks=prompts))
        for tracks in session.propagate(start, start + every):
            yield tracks.frame, session.state_bytes()


def track_by_upstream(frames: int, every: int) -> Tracked:
    from sam2.build_sam import build_sam2_video_predictor

    config, model = nano(), create_sam2_model(nano())
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
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
    """Bytes of all different tensors in nested dictionaries, lists and tuples."""
    found: dict[int, int] = {}

    def collect(value: object) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for item in value:
                collect(item)

    collect(value)
    return sum(found.values())


def resident_bytes() -> int:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(track: Callable[[int, int], Tracked], frames: int, every: int, at: list[int]) -> dict:
    """State and resident memory after so many frames, and milliseconds a frame up to there."""
    torch.set_num_threads(1)
    found: dict[str, dict] = {}
    began, done = 0.0, 0
    for t, state in track(frames, every):
        if not done:  # from here on, without what was set up
            began, done = time.process_time(), 1
        if t + 1 in at:
            spent = (time.process_time() - began) / (t + 1 - done)
            found[str(t + 1)] = {
                "state_bytes": state,
                "resident_bytes": resident_bytes(),
                "cpu_ms_a_frame": round(1000 * spent),
            }
            began, done = time.process_time(), t + 1
    return found


def table(results: dict) -> str:
    """The results as Markdown: a row for each tracker and count of frames."""
    rows = [
        {
            "tracker": tracker,
            "after frame": count,
            "state, bytes": f"{found['state_bytes']:,}",
            "resident, MiB": round(found["resident_bytes"] / MIB),
            "CPU ms a frame up to there": found["cpu_ms_a_frame"],
        }
        for tracker, counts in results["trackers"].items()
        for count, found in counts.items()
    ]
    head = (
        f"A generated video of {results['frames']} frames, {SIDE} px, {OBJECTS} objects, the "
        f"shipped nano, new masks every {results['every']} frames; one thread.\n"
    )
    return f"{head}\n{markdown_table(rows)}\n"


def compare(frames: int, every: int) -> dict[str, Any]:
    """Both trackers, each in a process of its own."""
    at = sorted({min(200, frames), frames // 2, frames})
    results: dict[str, Any] = {"frames": frames, "every": every, "trackers": {}}
    for name, track in {"sam2kit": track_by_kit, "SAM2VideoPredictor": track_by_upstream}.items():
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, fresh) as pool:
            results["trackers"][name] = pool.submit(measure, track, frames, every, at).result()
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Measure both trackers, print the table and write it."""
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
