"""Pick a sample of a long list."""

from __future__ import annotations

import numpy as np


def evenly_spaced(count: int, max_count: int) -> list[int]:
    """Return up to ``max_count`` evenly spaced indices from 0 to ``count - 1``, both included."""
    return np.linspace(0, count - 1, min(count, max_count)).round().astype(int).tolist()
