"""Keep low-precision copies of weights, which autocast would otherwise make in every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch
from torch import Tensor, nn

CAST_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
"""Layers whose weights and biases autocast casts to its lower precision."""


class CastWeights:
    """Cache low-precision copies of weights for inference with autocast, with the same results.

    Autocast rounds the weights of linear and convolutional layers in every call. On a GPU, that is
    a kernel per weight and frame, a third of all kernels of the tiny model.

    Args:
        model: the model. Weights that change later are copied again.
        dtype: the dtype of autocast.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._layers = [m for m in model.modules() if isinstance(m, CAST_LAYERS)]
        self._copies: dict[tuple[nn.Module, str], tuple[Tensor, int, Tensor]] = {}
        self._originals: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._lock, self._depth = RLock(), 0  # a widget tracks in a thread

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers use the copies within a ``with`` block; blocks may be nested."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._put_copies()
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._put_originals()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let the layers use their original weights, within a block of :meth:`applied`."""
        with self._lock:
            self._put_originals()
            try:
                yield
            finally:
                self._put_copies()

    def _put_copies(self) -> None:
        self._originals = [
            (layer, name, weight)
            for layer in self._layers
            for name, weight in layer._parameters.items()
            if weight is not None and weight.dtype == torch.float32
        ]
        for layer, name, weight in self._originals:
            layer._parameters[name] = self._copy(layer, name, weight)  # type: ignore[assignment]

    def _put_originals(self) -> None:
        for layer, name, weight in self._originals:
            layer._parameters[name] = weight
        self._originals = []

    def _copy(self, layer: nn.Module, name: str, weight: Tensor) -> Tensor:
        """Return the copy of a weight, made again if the weight has changed."""
        known = self._copies.get((layer, name))
        version = weight._version
        if known is None or known[0] is not weight or known[1] != version:
            known = weight, version, weight.detach().to(self._dtype)
            self._copies[layer, name] = known
        return known[2]
