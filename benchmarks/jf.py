"""Measure the time to compute J and F of a mask: ``python benchmarks/jf.py [--davis DAVIS]``.

Writes ``benchmarks/results/jf.json`` and ``jf.md``. Compares
``sam2kit.evaluation.boundary.region_and_boundary`` with J and F as the official DAVIS 2017 package
computes them: on whole images, with ``cv2.dilate`` and a disk (without its void masks, which would
make it slower). Both are timed alternately on the same frames in one process, and their values must
be equal. The time of a frame is the shortest of five runs; the result is the median over the
frames. The frames come from the OSVOS results on DAVIS, or are generated at the same size if that
data is missing. OpenCV uses one thread for both. Takes 15 seconds on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2kit.data.pictures import read_labels
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.evaluation.boundary import BOUNDARY_TOLERANCE, region_and_boundary
from sam2kit.viz.tables import TrustedMarkdown, markdown_table

RESULTS = Path(__file__).parent / "results"
DAVIS = Path(__file__).parents[2] / "shared" / "davis"
OFFICIAL_MS = 5.7  # per frame with the official package itself, measured on another machine
REPEATS = 5


@lru_cache
def disk(radius: int) -> np.ndarray:
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return (rows**2 + columns**2 <= radius**2).astype(np.uint8)


def boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels that differ from their right, lower or lower right neighbour."""
    right, below, diagonal = (np.zeros_like(mask) for _ in range(3))
    right[:, :-1] = mask[:, 1:]
    below[:-1] = mask[1:]
    diagonal[:-1, :-1] = mask[1:, 1:]
    edges = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edges[-1] = mask[-1] ^ right[-1]
    edges[:, -1] = mask[:, -1] ^ below[:, -1]
    edges[-1, -1] = False
    return edges


def by_definition(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Compute J and F on whole images, with the same steps as the official package."""
    union = np.sum(prediction | truth)
    j = 1.0 if union == 0 else np.sum(prediction & truth) / union
    radius = int(np.ceil(BOUNDARY_TOLERANCE * np.linalg.norm(truth.shape)))
    a, b = boundary(prediction), boundary(truth)
    near_a = cv2.dilate(a.astype(np.uint8), disk(radius))
    near_b = cv2.dilate(b.astype(np.uint8), disk(radius))
    count_a, count_b = np.sum(a), np.sum(b)
    if count_a == 0 or count_b == 0:
        return float(j), float(count_a == count_b)
    precision, recall = np.sum(a * near_b) / count_a, np.sum(b * near_a) / count_b
    total = precision + recall
    return float(j), float(2 * precision * recall / total if total > 0 else 0)


def davis_pairs(davis: Path, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield prediction and ground truth of every ``step``-th frame, bool."""
    source = VideoDataset(davis)
    for i, name in enumerate(source.names):
        for t in range(0, source.num_frames(i), step):
            path = davis / "Predictions" / "osvos" / name / f"{source.frame_name(i, t)}.png"
            truth = (source.read_masks(i, t) or {}).get(1)
            if truth is not None:
                yield read_labels(path).pixels > 0, truth


def generated_pairs(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs of similar blobs of about the size of DAVIS objects."""
    generator = np.random.default_rng(0)
    rows, columns = np.ogrid[:480, :854]

    def waves(scale: float) -> np.ndarray:
        noise = cv2.GaussianBlur(generator.normal(size=(480, 854)), (0, 0), scale)
        return noise / noise.std()

    for _ in range(count):
        y, x, size = generator.uniform((140, 180, 80), (340, 670, 180))
        blob = 1 - ((rows - y) ** 2 + (columns - x) ** 2) / size**2 + 0.15 * waves(25)
        yield blob + 0.05 * waves(8) > 0, blob > 0


def milliseconds(score: Callable, pair: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the shortest time of several runs, which other processes affect least."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        score(*pair)
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def compare(davis: Path, step: int) -> dict[str, Any]:
    """Compare both implementations on every ``step``-th frame of ``davis``, or on generated frames.

    Raises:
        SystemExit: the values differ.
    """
    cv2.setNumThreads(1)
    real = (davis / "Predictions").is_dir()
    pairs = davis_pairs(davis, step) if real else generated_pairs(max(480 // step, 2))
    times: dict[str, list[float]] = {"definition": [], "sam2kit": []}
    for pair in pairs:
        if by_definition(*pair) != region_and_boundary(*pair):
            raise SystemExit(f"values differ: {by_definition(*pair)} {region_and_boundary(*pair)}")
        times["definition"].append(milliseconds(by_definition, pair))
        times["sam2kit"].append(milliseconds(region_and_boundary, pair))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = np.array(times["definition"]) / np.array(times["sam2kit"])
    return {
        "frames": len(ratios),
        "data": "OSVOS on DAVIS, 480x854" if real else "generated, 480x854",
        "ms": medians,
        "ratio_of_medians": medians["definition"] / medians["sam2kit"],
        "ratio_by_frame_5_50_95": np.percentile(ratios, [5, 50, 95]).tolist(),
        "official_ms_elsewhere": OFFICIAL_MS,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--davis", type=Path, default=DAVIS)
    parser.add_argument("--step", type=int, default=4, help="use every STEP-th frame")
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = compare(args.davis, args.step)
    medians = result["ms"]
    low, middle, high = result["ratio_by_frame_5_50_95"]
    names = {
        "definition": TrustedMarkdown("on whole images, `cv2.dilate` with a disk"),
        "sam2kit": TrustedMarkdown("`sam2kit.evaluation.boundary.region_and_boundary`"),
    }
    table = markdown_table(
        [{"J and F of one mask": names[k], "ms, median": value} for k, value in medians.items()]
    )
    text = (
        f"# J and F\n\n{table}\n\n{result['ratio_of_medians']:.1f} times as fast; per frame "
        f"{middle:.1f} times in the median, {low:.1f} to {high:.1f} times in 90% of the frames. "
        f"Equal values on all {result['frames']} frames ({result['data']}), one thread, one run. "
        f"The official package took {OFFICIAL_MS} ms per frame on another machine.\n"
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "jf.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.output_dir / "jf.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
