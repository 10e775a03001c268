"""Several sources as one, each with its share of an epoch."""

from __future__ import annotations

import numpy as np

from sam2kit.data.sources.base import DerivedSource, VideoSource
from sam2kit.utils.errors import DataError


class MixtureDataset(DerivedSource):
    """The videos of several sources, one after the other; in training, by weight.

    An epoch of training has as many places as there are videos, and each source as many of them as
    its weight's share of all weights (fractions of a place go to the largest remainders). A
    source fills its places with its videos in random order, each once before any comes again, from
    one epoch to the next; the order follows from the seed alone. Validation takes every video once.

    Where a name is in two sources, all names get the number of their source before them:
    ``1_bear``, ``2_bear``.

    Args:
        sources: at least one, each with masks.
        weights: one above 0 for each source.
        seed: 0 or more.
        numbered: whether names get numbers; None: as stated above.

    Raises:
        DataError: no sources, weights that do not fit, or so small a weight that a source would
            have no place in an epoch.
    """

    def __init__(
        self,
        sources: list[VideoSource],
        weights: list[float],
        seed: int = 0,
        numbered: bool | None = None,
    ) -> None:
        if not sources or len(weights) != len(sources) or not all(w > 0 for w in weights):
            raise DataError(f"a mixture of {len(sources)} sources has weights {weights}")
        self.sources, self.weights, self.seed = list(sources), list(weights), seed
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        names = [name for source in sources for name in source.names]
        self._prefix = len(set(names)) < len(names) if numbered is None else numbered
        self.names = [self._name(p, n) for p, source in enumerate(sources) for n in source.names]
        self.has_masks = all(source.has_masks for source in sources)
        self._places = np.cumsum([0, *shares(weights, len(names))])
        if not all(np.diff(self._places)):
            raise DataError(
                f"mixture: an epoch has {len(names)} places, and weights {weights} leave a source "
                "without one; raise the smallest weight"
            )

    def _name(self, part: int, name: str) -> str:
        return f"{part + 1}_{name}" if self._prefix else name

    def locate(self, i: int) -> tuple[VideoSource, int]:
        part, local = self._place(i)
        return self.sources[part], local

    def _place(self, i: int) -> tuple[int, int]:
        """The place in ``sources`` of the one that holds video ``i``, and its number there."""
        if i >= len(self):  # one that a source generates beyond its length
            local, part = divmod(i - len(self), len(self.sources))
            if local >= len(self.sources[part]):
                return part, local
        if not 0 <= i < len(self):
            raise IndexError(f"video {i} of {len(self)}")
        part = int(np.searchsorted(self._starts, i, side="right")) - 1
        return part, i - int(self._starts[part])

    def index_in_epoch(self, i: int, epoch: int) -> int:
        part = int(np.searchsorted(self._places, i, side="right")) - 1
        places = int(self._places[part + 1] - self._places[part])
        source = self.sources[part]
        turn, k = divmod(epoch * places + i - int(self._places[part]), len(source))
        order = np.random.default_rng((self.seed, part, turn)).permutation(len(source))
        local = source.index_in_epoch(int(order[k]), turn)
        if local < len(source):
            return int(self._starts[part]) + local
        return len(self) + local * len(self.sources) + part

    def name(self, i: int) -> str:
        part, local = self._place(i)
        return self._name(part, self.sources[part].name(local))


def shares(weights: list[float], places: int) -> list[int]:
    """Whole numbers in the proportion of the weights that add up to ``places``."""
    exact = np.asarray(weights, float) / sum(weights) * places
    whole = np.floor(exact).astype(int)
    rest = np.argsort(-(exact - whole), kind="stable")[: places - int(whole.sum())]
    whole[rest] += 1
    return whole.tolist()
