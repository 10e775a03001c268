"""Combine several sources, each with a share of every training epoch."""

from __future__ import annotations

import numpy as np

from sam2kit.data.sources.base import DerivedSource, VideoSource
from sam2kit.utils.errors import DataError


class MixtureDataset(DerivedSource):
    """Concatenate the videos of several sources, and sample them by weight in training.

    A training epoch has as many positions as there are videos. Each source gets a share of them in
    proportion to its weight, rounded by the largest remainder method. A source fills its positions
    with its videos in random order, and repeats a video only after all others were used; this
    continues from one epoch to the next. The order depends on the seed only. Validation uses every
    video once.

    If two sources have a video with the same name, all names get the number of their source as a
    prefix: ``1_bear``, ``2_bear``.

    Args:
        sources: one or more sources, each with masks.
        weights: one weight above 0 per source.
        seed: seed of the random order, 0 or more.
        numbered: whether names get the prefix. None (default): only if names collide.
        numbers: number of each source in the mixture, from 0. None (default): its position.

    Raises:
        DataError: no sources, weights that do not match them, or a weight that is so small that a
            source gets no position in an epoch.
    """

    def __init__(
        self,
        sources: list[VideoSource],
        weights: list[float],
        seed: int = 0,
        numbered: bool | None = None,
        numbers: list[int] | None = None,
    ) -> None:
        if not sources or len(weights) != len(sources) or not all(w > 0 for w in weights):
            raise DataError(
                key="weights",
                value=weights,
                expected=f"one number above 0 for each of the {len(sources)} sources",
                hint="give one or more sources, and a weight for each",
            )
        self.sources, self.weights, self.seed = list(sources), list(weights), seed
        self._numbers = list(range(len(sources))) if numbers is None else numbers
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        names = [name for source in sources for name in source.names]
        self._prefix = len(set(names)) < len(names) if numbered is None else numbered
        self.names = [self._name(p, n) for p, source in enumerate(sources) for n in source.names]
        self.has_masks = any(source.has_masks for source in sources)
        self.generated = all(source.generated for source in sources)
        self._epoch_starts = np.cumsum([0, *shares(weights, len(names))])
        if not all(np.diff(self._epoch_starts)):
            raise DataError(
                f"mixture: with weights {weights} a source gets none of the {len(names)} positions "
                "of an epoch",
                hint="raise the smallest weight",
            )

    def _name(self, part: int, name: str) -> str:
        return f"{self._numbers[part] + 1}_{name}" if self._prefix else name

    def locate(self, i: int) -> tuple[VideoSource, int]:
        part, local = self._locate(i)
        return self.sources[part], local

    def _locate(self, i: int) -> tuple[int, int]:
        """Return the index in ``sources`` of the source of video ``i``, and its index in it."""
        # Indices beyond the length interleave the generated videos of all sources, so that each of
        # these unlimited sequences has indices of its own (see index_in_epoch).
        if i >= len(self):
            local, part = divmod(i - len(self), len(self.sources))
            if local >= len(self.sources[part]):
                return part, local
        if not 0 <= i < len(self):
            raise IndexError(f"video {i} of {len(self)}")
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        return part, i - int(self._starts[part])

    def index_in_epoch(self, i: int, epoch: int) -> int:
        part = int(np.searchsorted(self._epoch_starts, i, side="right")) - 1
        share = int(self._epoch_starts[part + 1] - self._epoch_starts[part])
        source = self.sources[part]
        # Positions are counted across epochs, so that every video is used once per cycle, even if
        # an epoch has fewer or more positions than the source has videos.
        cycle, k = divmod(epoch * share + i - int(self._epoch_starts[part]), len(source))
        order = np.random.default_rng((self.seed, part, cycle)).permutation(len(source))
        local = source.index_in_epoch(int(order[k]), cycle)
        if local < len(source):
            return int(self._starts[part]) + local
        return len(self) + local * len(self.sources) + part

    def name(self, i: int) -> str:
        part, local = self._locate(i)
        return self._name(part, self.sources[part].name(local))


def shares(weights: list[float], total: int) -> list[int]:
    """Split ``total`` into integers in proportion to the weights (largest remainder method)."""
    exact = np.asarray(weights, float) / sum(weights) * total
    whole = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[rest] += 1
    return whole.tolist()
