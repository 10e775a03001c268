"""Measure opening a large COCO JSON file: ``python benchmarks/coco_index.py [--masks 1000000]``.

Writes ``benchmarks/results/coco_index.{json,md}``. The script generates one JSON file ordered by
image and one ordered by track, with empty files for the frames. Each is opened in a separate
process with ``sam2kit.data.COCODataset``. The first is also opened with ``pycocotools.coco.COCO``,
which does not support videos.

The time of the call includes checking the frame files. Peak memory is the process's largest
resident set minus the resident set before the call; it includes the memory-mapped JSON file. Held
memory is the private memory afterwards. Then a process is forked, as in a DataLoader, and reads the
masks of 2,000 random frames: its private memory is the additional memory per DataLoader worker.

Needs Linux, 4 GB of disk in TMPDIR, 6 GB of memory and about three minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from sam2kit.data.sources.coco import COCODataset
from sam2kit.viz.tables import markdown_table

RESULTS = Path(__file__).parent / "results"
SIZE = (480, 854)
FRAMES = 30
READS = 2000


def masks(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Return the compressed run-length encodings of 100 ellipses."""
    texts = []
    for _ in range(100):
        picture = np.zeros(SIZE, np.uint8)
        centre = generator.integers((200, 150), (650, 330)).tolist()
        axes = generator.integers(25, 100, 2).tolist()
        cv2.ellipse(picture, centre, axes, float(generator.uniform(0, 180)), 0, 360, 1, -1)
        runs = mask_utils.encode(np.asfortranarray(picture))
        texts.append({"size": list(SIZE), "counts": runs["counts"].decode()})
    return texts


def generate(folder: Path, videos: int, count: int) -> None:
    """Write both JSON files with ``count`` masks, and an empty file per frame."""
    # Write the files in pieces to save memory.
    generator = np.random.default_rng(0)
    segmentations = [json.dumps(mask) for mask in masks(generator)]
    drawn = generator.integers(0, len(segmentations), count).tolist()
    images = videos * FRAMES
    with (folder / "images.json").open("w") as file:
        file.write('{"images": [')
        for n in range(images):
            v, t = divmod(n, FRAMES)
            row = {"id": n + 1, "video_id": v, "order_in_video": t, "height": 480, "width": 854}
            row["file_name"] = f"video_{v:05d}/{t:05d}.jpg"
            file.write("," * bool(n) + json.dumps(row))
        file.write('], "categories": [{"id": 1, "name": "object"}], "annotations": [')
        for n in range(count):
            row = {"id": n + 1, "image_id": n % images + 1, "category_id": 1, "area": 5000.0}
            row |= {"track_id": n // images, "bbox": [10.0, 20.0, 80.0, 60.0], "iscrowd": 0}
            text = json.dumps(row)[:-1]
            file.write("," * bool(n) + text + f', "segmentation": {segmentations[drawn[n]]}}}')
        file.write("]}")
    with (folder / "tracks.json").open("w") as file:
        rows = [
            {"id": v, "file_names": [f"video_{v:05d}/{t:05d}.jpg" for t in range(FRAMES)]}
            for v in range(videos)
        ]
        file.write(f'{{"videos": {json.dumps(rows)}, "annotations": [')
        for n in range(count // FRAMES):
            part = ", ".join(segmentations[d] for d in drawn[n * FRAMES : (n + 1) * FRAMES])
            text = json.dumps({"id": n, "video_id": n % videos, "category_id": 1})[:-1]
            file.write("," * bool(n) + text + f', "segmentations": [{part}]}}')
        file.write("]}")
    for v in range(videos):
        (folder / f"video_{v:05d}").mkdir()
        for t in range(FRAMES):
            (folder / f"video_{v:05d}" / f"{t:05d}.jpg").touch()


def private_memory() -> float:
    """Return the private memory of this process in MB."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024


def sam2kit_reads(file: Path) -> Callable[[], None]:
    opened = COCODataset(file)
    frames = np.random.default_rng(1).integers((0, 0), (len(opened), FRAMES), (READS, 2)).tolist()

    def read() -> None:
        # Only run the part of read_masks that reads the JSON; read_masks also opens the image file.
        for i, t in frames:
            opened._indices[0].masks(i, t)

    return read


def pycocotools_reads(file: Path) -> Callable[[], None]:
    with contextlib.redirect_stdout(io.StringIO()):
        opened = COCO(str(file))
    images = np.random.default_rng(1).integers(1, len(opened.imgs), READS).tolist()

    def read() -> None:
        for n in images:
            opened.loadAnns(opened.getAnnIds(imgIds=[n]))

    return read


def measure(package: str, file: Path) -> dict[str, float]:
    """Open a file in this process and read from it in a forked process."""
    gc.collect()
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    private_before = private_memory()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    read = {"sam2kit": sam2kit_reads, "pycocotools": pycocotools_reads}[package](file)
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_before) / 1024
    gc.collect()
    held = private_memory() - private_before
    # The forked process sends its results through a pipe.
    out, into = os.pipe()
    if os.fork() == 0:
        private_at_start = private_memory()
        begin = time.perf_counter()
        read()
        milliseconds = 1000 * (time.perf_counter() - begin) / READS
        growth = private_memory() - private_at_start
        os.write(into, json.dumps([growth, milliseconds]).encode())
        os._exit(0)
    growth, milliseconds = json.loads(os.read(out, 1000))
    return {
        "seconds": seconds,
        "CPU seconds": cpu_seconds,
        "peak MB": round(peak),
        "held MB": round(held),
        "per DataLoader worker, MB": round(growth, 1),
        "ms per frame": milliseconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--masks", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "coco_index.json")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        generate(Path(name), args.videos, args.masks)
        megabytes = {p.stem: p.stat().st_size / 2**20 for p in Path(name).glob("*.json")}
        for package, form in (
            ("sam2kit", "images"),
            ("pycocotools", "images"),
            ("sam2kit", "tracks"),
        ):
            file = str(Path(name) / f"{form}.json")
            command = [sys.executable, __file__, "--measure", package, file]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append({"package": package, "JSON": form, **json.loads(output)})
            print(rows[-1], flush=True)
    kit, other = rows[:2]
    columns = ("seconds", "CPU seconds", "peak MB", "held MB")
    ratio = {key: other[key] / max(kit[key], 0.01) for key in columns}  # tiny files give 0 MB
    document = {
        "videos": args.videos,
        "images": args.videos * FRAMES,
        "masks": args.masks,
        "MB": megabytes,
        "rows": rows,
        "ratio": ratio,
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    text = (
        f"# Opening a COCO JSON\n\n{args.videos:,} videos, {args.videos * FRAMES:,} frames, "
        f"{args.masks:,} masks; {megabytes['images']:.0f} MB by image, "
        f"{megabytes['tracks']:.0f} MB by track.\n\n{markdown_table(rows)}\n"
        f"pycocotools takes {ratio['seconds']:.1f} times as long ({ratio['CPU seconds']:.1f} times "
        f"the CPU time), {ratio['peak MB']:.1f} times the memory while opening and "
        f"{ratio['held MB']:.0f} times afterwards, and does not search for the files.\n"
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
