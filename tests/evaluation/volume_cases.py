"""Make pairs of volumes, for the tests and the reference."""

from __future__ import annotations

import numpy as np

SPACING = (2.5, 0.8, 0.5)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two bool ellipsoids ``[12,20,24]`` with holes and loose voxels."""
    generator = np.random.default_rng(seed)
    grid = np.mgrid[:12, :20, :24].astype(float)
    volumes = []
    center = generator.uniform((3, 6, 8), (8, 14, 16))
    for _ in range(2):
        middle = center + generator.uniform(-2, 2, 3)
        radii = generator.uniform((2, 4, 4), (5, 9, 10))
        distance = (((grid.T - middle) / radii) ** 2).sum(-1).T
        volume = distance < 1
        volume ^= generator.random(volume.shape) < 0.01
        volumes.append(volume)
    return volumes[0], volumes[1]
