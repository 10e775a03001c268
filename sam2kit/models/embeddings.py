"""Compute upstream's constant embeddings once instead of in every frame.

The values are the same. On a GPU, each of them costs up to thirty small kernels per frame.

B images or objects, C channels, H and W rows and columns.
"""

from __future__ import annotations

from typing import Any

import torch
from sam2.modeling.position_encoding import PositionEmbeddingSine
from sam2.modeling.sam.prompt_encoder import PromptEncoder as UpstreamPromptEncoder
from torch import Tensor


class PositionEncoding(PositionEmbeddingSine):
    """Upstream's sine encoding of positions, without a copy per image."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # The warm-up would use the first GPU, whichever the model is for.
        super().__init__(*args, **(options | {"warmup_cache": False}))

    def _pe(self, B: int, device: torch.device, *cache_key: int) -> Tensor:
        """Return ``[B,C,H,W]``, expanded from one image."""
        known = self.cache.get(cache_key)
        if known is None or known.device != device:
            # A tracker may fill this cache, and training cannot use inference tensors.
            with torch.inference_mode(False):
                known = super()._pe(1, device, *cache_key)[0]
            self.cache[cache_key] = known
        return known.expand(B, -1, -1, -1)


class PromptEncoder(UpstreamPromptEncoder):
    """Upstream's prompt encoder, which computes nothing for objects without a prompt."""

    _dense_pe: tuple[tuple, Tensor] | None = None  # what the encoding depends on, and the encoding

    def get_dense_pe(self) -> Tensor:
        """Return the positional encoding ``[1,C,H,W]`` of the image embedding."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        if torch.compiler.is_compiling() or matrix.is_inference():
            return super().get_dense_pe()
        # The version changes when weights are loaded; under autocast the encoding is rounded.
        device = matrix.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = (matrix, matrix._version, autocast)
        known = self._dense_pe
        if known is None or known[0][0] is not matrix or known[0][1:] != key[1:]:
            # As above, the result must be usable in training.
            with torch.inference_mode(False):
                known = key, super().get_dense_pe()
            self._dense_pe = known
        return known[1]

    def _embed_points(self, points: Tensor, labels: Tensor, pad: bool) -> Tensor:
        """Embed ``points`` ``[B,P,2]`` with ``labels`` ``[B,P]``; P=0 means no prompt.

        Upstream pads an absent prompt to two points without a position. All of them have the same
        embedding, which is returned directly.
        """
        if labels.shape[1] == 0:
            return self.not_a_point_embed.weight.expand(len(labels), 2, -1)
        return super()._embed_points(points, labels, pad)
