"""Hold the masks that a model proposes for a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from sam2kit.models.automatic_masks import Proposal, propose
from sam2kit.models.sam2 import SAM2Model
from sam2kit.utils.errors import DataError


class Proposals:
    """Hold the masks that were proposed on one frame and neither accepted nor discarded.

    Attributes:
        frame: index of the frame.
        items: the proposals, best first.
    """

    def __init__(self) -> None:
        self.frame = 0
        self.items: list[Proposal] = []

    def find(
        self,
        t: int,
        model: SAM2Model,
        frame: np.ndarray,
        existing: Sequence[np.ndarray],
        **limits: Any,
    ) -> Iterator[float]:
        """Replace the proposals by those of another frame.

        Args:
            t: index of the frame.
            model, frame, existing: see :func:`~sam2kit.models.automatic_masks.propose`.
            **limits: its other arguments.

        Yields:
            The share of the work that is done, 0 to 1.
        """
        self.items, self.frame = [], t
        for share, self.items in propose(model, frame, existing, **limits):
            yield share

    def take(self, indices: Iterable[int] | None = None) -> list[Proposal]:
        """Remove proposals and return them.

        Args:
            indices: positions in ``items``. None (default): all of them.

        Raises:
            DataError: there is no such proposal.
        """
        chosen = set(range(len(self.items)) if indices is None else indices)
        if unknown := chosen - set(range(len(self.items))):
            raise DataError(
                key="indices",
                value=sorted(unknown),
                expected=f"below {len(self.items)}, the number of proposals",
                hint="count the proposals from 0",
            )
        taken = [p for n, p in enumerate(self.items) if n in chosen]
        self.items = [p for n, p in enumerate(self.items) if n not in chosen]
        return taken
