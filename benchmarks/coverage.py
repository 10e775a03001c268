"""Simulate the coverage of 95% intervals: ``python -m benchmarks.coverage``.

Scores and paired differences are sampled from distributions that are as skewed as for real videos,
with one or several correlated objects per video. sam2kit's interval is compared with the percentile
bootstrap over videos, which earlier versions used. Writes ``coverage.{json,md}``. Takes a minute on
one CPU core.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from benchmarks.measure import RESULTS, write
from sam2kit.evaluation.statistics import mean_interval
from sam2kit.viz.tables import markdown_table

VIDEOS = (3, 6, 9, 14, 30)
BOOTSTRAPS, POPULATION = 1000, 50_000
Draw = Callable[[np.random.Generator, int], np.ndarray]  # the values of a video with N objects


def _tracked(mean: float, video: float, within: float) -> Draw:
    """Return scores on the logit scale: deviations between videos and between their objects."""
    return lambda g, n: expit(mean + video * g.normal() + within * g.normal(size=n))


def _lost(g: np.random.Generator, n: int) -> np.ndarray:
    """Draw scores of objects that are either tracked well or lost."""
    lost = g.random(n) > expit(1.6 + 1.2 * g.normal())
    return np.where(
        lost, 0.15 * g.random(n), expit(1.8 + 0.4 * g.normal() + 0.4 * g.normal(size=n))
    )


def _gain(g: np.random.Generator, n: int) -> np.ndarray:
    """Draw differences with a normal spread, as between two runs on similar videos."""
    return 0.05 + 0.08 * g.normal() + 0.06 * g.normal(size=n)


def _some_gain(g: np.random.Generator, n: int) -> np.ndarray:
    """Draw differences with a large gain on a fifth of the videos."""
    large = 0.25 * g.random() * (g.random() < 0.2)
    return 0.02 + 0.04 * g.normal() + 0.05 * g.normal(size=n) + large


def _rare_gain(g: np.random.Generator, n: int) -> np.ndarray:
    """Draw differences with a very large gain or loss on an eighth of the objects."""
    rare = (g.random(n) < 0.12) * 0.5 * (g.random(n) - 0.2)
    return 0.01 + 0.02 * g.normal() + 0.02 * g.normal(size=n) + rare


# name -> (whether these are scores from 0 to 1, distribution of the values of a video)
KINDS: dict[str, tuple[bool, Draw]] = {
    "J&F about 0.9": (True, _tracked(2.5, 0.8, 0.7)),
    "J&F about 0.8": (True, _tracked(1.9, 0.9, 0.8)),
    "J&F about 0.3": (True, _tracked(-1.1, 0.9, 0.7)),
    "tracked or lost": (True, _lost),
    "difference": (False, _gain),
    "difference, a fifth gains much": (False, _some_gain),
    "difference, rare and very large": (False, _rare_gain),
}
OBJECTS: dict[str, Callable[[np.random.Generator], int]] = {
    "1": lambda g: 1,
    "1 to 4": lambda g: int(g.integers(1, 5)),
    "1 to 12, skewed": lambda g: min(int(g.geometric(0.35)), 12),
}
# With few videos, most samples do not contain the rare event, so no interval can cover it.
LIMITS = {("tracked or lost", "1"), *(("difference, rare and very large", o) for o in OBJECTS)}


def bootstrap_interval(
    groups: Sequence[np.ndarray], generator: np.random.Generator
) -> tuple[float, float]:
    """Compute the percentile interval of the cluster bootstrap, for comparison."""
    sums, counts = np.array([(g.sum(), len(g)) for g in groups]).T
    drawn = generator.integers(len(groups), size=(BOOTSTRAPS, len(groups)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def simulate(kind: str, objects: str, repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the coverage of both intervals for each number of videos.

    Args:
        kind: a key of :data:`KINDS`.
        objects: a key of :data:`OBJECTS`.
        repeats: number of simulated datasets; the bootstrap uses a tenth of them.
    """
    bounded, draw = KINDS[kind]
    count = OBJECTS[objects]
    generator = np.random.default_rng(seed)
    videos = [
        draw(generator, count(generator)) for _ in range(POPULATION if repeats > 1000 else 5000)
    ]
    truth = float(np.concatenate(videos).mean())
    rows = []
    for n in VIDEOS:
        hits, widths, bootstrap_hits = [], [], []
        for repeat in range(repeats):
            # The large sample is the population, and a dataset is a random subset of it.
            groups = [videos[i] for i in generator.integers(len(videos), size=n)]
            if (bounds := mean_interval(groups, bounded)) is not None:
                hits.append(bounds[0] <= truth <= bounds[1])
                widths.append(bounds[1] - bounds[0])
            if repeat % 10 == 0:
                low, high = bootstrap_interval(groups, generator)
                bootstrap_hits.append(low <= truth <= high)
        rows.append(
            {
                "kind": kind,
                "objects": objects,
                "videos": n,
                "limit": (kind, objects) in LIMITS,
                "coverage": float(np.mean(hits)) if hits else None,
                "width": float(np.median(widths)) if widths else None,
                "bootstrap": float(np.mean(bootstrap_hits)),
            }
        )
    return rows


def page(rows: Sequence[dict[str, Any]], repeats: int) -> str:
    """Return the results as Markdown."""

    def cell(row: dict[str, Any]) -> str:
        percent = "none" if row["coverage"] is None else f"{100 * row['coverage']:.1f}%"
        return f"{percent} ({100 * row['bootstrap']:.0f}%)"

    def part(limit: bool) -> str:
        chosen = [r for r in rows if r["limit"] == limit]
        keys = dict.fromkeys((r["kind"], r["objects"]) for r in chosen)
        table = [
            {"values": kind, "objects per video": objects}
            | {
                f"{r['videos']} videos": cell(r)
                for r in chosen
                if (r["kind"], r["objects"]) == (kind, objects)
            }
            for kind, objects in keys
        ]
        return markdown_table(table)

    usual = [r["coverage"] for r in rows if not r["limit"] and r["coverage"] is not None]
    return (
        "# Coverage of the intervals\n\n"
        f"Share of {repeats:,} simulated datasets whose nominal 95% interval contains the true "
        "mean, and in brackets the share with the percentile bootstrap over videos, which sam2kit "
        "used before. Scores are skewed, and the objects of a video resemble each other. Fewer "
        "than 6 videos get no interval. The lowest coverage from 6 videos on is "
        f"{100 * min(usual):.1f}%. `python -m benchmarks.coverage`\n\n"
        f"{part(False)}\n\n"
        "## Limits\n\n"
        "Some distributions defeat every interval from few videos: if an eighth of the videos "
        "decides the mean, many small datasets contain none of them.\n\n"
        f"{part(True)}\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5_000, help="simulated datasets per cell")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    rows = []
    for kind in KINDS:
        for objects in OBJECTS:
            print(f"{kind}, objects: {objects}", file=sys.stderr, flush=True)
            rows += simulate(kind, objects, arguments.repeats)
    text = page(rows, arguments.repeats)
    write(arguments.out / "coverage", {"repeats": arguments.repeats, "rows": rows}, text)
    print(text)


if __name__ == "__main__":
    main()
