"""Make small cell tracking results with errors of every kind, for the tests and the reference."""

from __future__ import annotations

import numpy as np

from sam2kit.data.lineage import Track

SIZE, NUM_FRAMES = (64, 64), 8
REFERENCE_TRACKS = {
    1: Track(0, 7, 0),
    2: Track(0, 3, 0),
    3: Track(4, 7, 2),
    4: Track(4, 7, 2),
    5: Track(2, 6, 0),
}


def disk(row: float, column: float, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def place(n: int, t: int) -> tuple[int, int]:
    return {
        1: (10, 8 + 4 * t),
        2: (32, 12 + 2 * t),
        3: (27, 20 + 2 * t),
        4: (39, 20 + 2 * t),
        5: (55, 40 - 3 * t),
    }[n]


def reference() -> np.ndarray:
    """Return the markers ``[T,H,W]``; two cells divide from 2 on frame 4."""
    images = np.zeros((NUM_FRAMES, *SIZE), np.uint16)
    for n, track in REFERENCE_TRACKS.items():
        for t in range(track.begin, track.end + 1):
            images[t][disk(*place(n, t), 4.5)] = n
    return images


def result(seed: int) -> tuple[np.ndarray, dict[int, Track]]:
    """Return labels and tracks with random errors that make valid results.

    Objects are shifted and resized, missing, added, merged with a neighbour and swapped; tracks
    are broken, and divisions have the right, a wrong or no parent.
    """
    generator = np.random.default_rng(seed)
    images = np.zeros((NUM_FRAMES, *SIZE), np.uint16)
    numbers = dict(enumerate(generator.permutation(np.arange(11, 16)).tolist(), 1))
    for t in range(NUM_FRAMES):
        for n, track in REFERENCE_TRACKS.items():
            if not track.begin <= t <= track.end or generator.random() < 0.1:
                continue
            row, column = place(n, t)
            shift = generator.uniform(-2.5, 2.5, 2)
            radius = generator.uniform(3, 6)
            number = numbers[n]
            if generator.random() < 0.08:
                number = numbers[1 + n % 5]  # another cell's, so that both are one object
            images[t][disk(row + shift[0], column + shift[1], radius)] = number
        if generator.random() < 0.3:
            images[t][disk(*generator.uniform(5, 60, 2), 4)] = 30
        if t == 4 and generator.random() < 0.7:
            a, b = generator.choice(list(numbers), 2, replace=False)
            numbers[a], numbers[b] = numbers[b], numbers[a]
    return without_gaps(images, generator)


def without_gaps(
    images: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, dict[int, Track]]:
    """Give each part of an object a label of its own; some parts and daughters have a parent."""
    labels = np.zeros_like(images)
    tracks: dict[int, Track] = {}
    for n in np.unique(images)[1:].tolist():
        previous = 0
        frames = [t for t in range(NUM_FRAMES) if (images[t] == n).any()]
        for k, t in enumerate(frames):
            if not k or frames[k - 1] < t - 1:
                label = len(tracks) + 1
                ended = [m for m, track in tracks.items() if track.end < t]
                parent = previous if generator.random() < 0.7 else 0
                if not parent and ended and generator.random() < 0.5:
                    parent = int(generator.choice(ended))
                tracks[label] = Track(t, t, parent)
                previous = label
            tracks[label] = tracks[label]._replace(end=t)
            labels[t][images[t] == n] = label
    return labels, tracks
