"""Compute upstream's memory attention faster: same parameters, same result up to rounding.

:func:`sam2kit.models.sam2.build_sam2_model` replaces upstream's classes with these; an exported
YAML names upstream's classes.

N objects, HW positions in a frame, K keys, C and M channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from sam2.modeling.memory_attention import MemoryAttention as UpstreamMemoryAttention
from sam2.modeling.position_encoding import compute_axial_cis
from sam2.modeling.sam.transformer import Attention, RoPEAttention
from torch import Tensor, nn
from torch.nn import functional as F


class MemoryAttention(UpstreamMemoryAttention):
    """Memory attention that shares object-independent computations among the objects of a frame.

    These are the first layer's self-attention and its queries to the memory. They are shared if all
    objects of the call belong to one frame (``curr`` is an expanded tensor) and there is no
    dropout, which would differ per object.
    """

    def forward(
        self,
        curr: Tensor | list[Tensor],
        memory: Tensor,
        curr_pos: Tensor | list[Tensor] | None = None,
        memory_pos: Tensor | None = None,
        num_obj_ptr_tokens: int = 0,
    ) -> Tensor:
        """Condition the features of a frame on the memories of N objects.

        Args:
            curr, curr_pos: features and positional encoding ``[HW,N,C]``, or a list of one such
                tensor.
            memory, memory_pos: ``[K,N,M]``; the last ``num_obj_ptr_tokens`` of K are object
                pointers, which have no position in the frame.
            num_obj_ptr_tokens: number of object pointer tokens.

        Returns:
            The conditioned features ``[HW,N,C]``.
        """
        if isinstance(curr, list):
            (curr,) = curr
        if isinstance(curr_pos, list):
            (curr_pos,) = curr_pos
        if not (self.pos_enc_at_input and self.batch_first and curr_pos is not None):
            return super().forward(curr, memory, curr_pos, memory_pos, num_obj_ptr_tokens)
        # With one row instead of N, the first layer is computed once until the cross-attention
        # expands it again.
        if not self._has_dropout():
            curr, curr_pos = _collapse(curr), _collapse(curr_pos)
        output = (curr + 0.1 * curr_pos).transpose(0, 1)  # upstream's factor
        position = curr_pos.transpose(0, 1)
        keys = memory if memory_pos is None else memory + memory_pos
        # Cast once here instead of once per layer, as autocast would.
        memory, keys = (_cast(x.transpose(0, 1)) for x in (memory, keys))
        for layer in self.layers:
            x = layer.norm1(output)
            queries = _cast(x + position if layer.pos_enc_at_attn else x)
            x = layer.self_attn(queries, queries, _cast(x) if layer.pos_enc_at_attn else queries)
            output = output + layer.dropout1(x)
            x = layer.norm2(output)
            x = layer.cross_attn_image(
                q=x + position if layer.pos_enc_at_cross_attn_queries else x,
                k=keys if layer.pos_enc_at_cross_attn_keys else memory,
                v=memory,
                num_k_exclude_rope=num_obj_ptr_tokens,
            )
            output = output + layer.dropout2(x)
            hidden = layer.dropout(layer.activation(layer.linear1(layer.norm3(output))))
            output = output + layer.dropout3(layer.linear2(hidden))
        return self.norm(output).transpose(0, 1)

    def place_rotations(self, device: torch.device) -> None:
        """Prepare for compilation on ``device``."""
        for module in self.modules():
            if isinstance(module, RotaryAttention):
                module.place_rotations(device)

    def _has_dropout(self) -> bool:
        return self.training and any(
            (isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "dropout_p", 0) > 0
            for m in self.modules()
        )


class RotaryAttention(RoPEAttention):
    """Attention with rotary positional encoding, which accepts queries shared by all objects."""

    def __init__(
        self,
        *args: Any,
        rope_theta: float = 10000.0,
        rope_k_repeat: bool = False,
        feat_sizes: tuple[int, int] = (64, 64),
        **options: Any,
    ) -> None:
        # RoPEAttention's constructor uses the first GPU, whichever the model is for.
        Attention.__init__(self, *args, **options)
        channels = self.internal_dim // self.num_heads
        self.compute_cis = partial(compute_axial_cis, dim=channels, theta=rope_theta)
        self.freqs_cis: Tensor = self.compute_cis(end_x=feat_sizes[0], end_y=feat_sizes[1])
        self.rope_k_repeat = rope_k_repeat

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """Attend to keys of one or several frames.

        Args:
            q: ``[N,Q,C]``, or ``[1,Q,C]`` if all objects share the queries.
            k, v: ``[N,K,C]``; the last ``num_k_exclude_rope`` of K are not rotated.
            num_k_exclude_rope: number of keys without a position, which are object pointers.

        Returns:
            ``[N,Q,C]``.
        """
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        positions = q.shape[-2]
        # Not divmod, which torch.compile does not support for symbolic sizes.
        keys = k.shape[-2] - num_k_exclude_rope
        frames = keys // positions
        assert keys % positions == 0 and (frames == 1 or self.rope_k_repeat)
        # A compiled graph must not call cached functions, which create tensors on the CPU.
        compiling = torch.compiler.is_compiling()
        rotations = self.freqs_cis if compiling else self._rotations(positions, q.device)
        q = _rotate(q, rotations)
        repeat = _repeat if compiling else _cached_repeat
        k = _rotate(k, repeat(rotations, frames, num_k_exclude_rope))
        q = q.expand(k.shape[0], -1, -1, -1)
        out = attend(q, k, v, self.dropout_p if self.training else 0.0)
        return self.out_proj(self._recombine_heads(out))

    def place_rotations(self, device: torch.device) -> None:
        """Move the rotations to ``device``, where a compiled graph reads them."""
        positions = len(self.freqs_cis)
        self.freqs_cis = self._rotations(positions, device)

    def _rotations(self, positions: int, device: torch.device) -> Tensor:
        settings = tuple(self.compute_cis.keywords.items())
        return _rotations(self.compute_cis.func, settings, positions, device)


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Compute scaled dot-product attention of ``[N,heads,Q,C]`` and ``[N,heads,K,C]``."""
    # On a CPU, matrix products use the processor's bfloat16 units, but torch's fused attention does
    # not: with torch 2.12 the products take half the time, forward and backward.
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and dropout == 0:
        rows = zip((q * q.shape[-1] ** -0.5).unbind(), k.unbind(), v.unbind(), strict=True)
        return torch.stack([torch.softmax(a @ b.mT, -1) @ c for a, b, c in rows])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def _rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate the channel pairs of ``x`` ``[N,heads,K,C]`` by complex ``rotations`` ``[K,C/2]``."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile does not support complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), torch.view_as_real(rotations).unbind(-1)
        product = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        product = torch.view_as_real(torch.view_as_complex(pairs) * rotations)
    return product.flatten(-2).to(x.dtype)


@lru_cache(maxsize=16)
def _rotations(
    compute_cis: Callable[..., Tensor],
    settings: tuple[tuple[str, Any], ...],
    positions: int,
    device: torch.device,
) -> Tensor:
    """Compute the complex rotations ``[positions,C/2]`` of a square frame, row by row.

    Layers with the same settings, the arguments of ``compute_cis``, share the result.
    """
    side = round(positions**0.5)
    # A tracker may fill this cache in inference mode, and training cannot use inference tensors.
    with torch.inference_mode(False):
        return compute_cis(**dict(settings), end_x=side, end_y=side).to(device)


def _repeat(rotations: Tensor, frames: int, pointers: int) -> Tensor:
    """Repeat the rotations for the keys of several frames, and append ones for object pointers."""
    with torch.inference_mode(False):
        identity = rotations.new_ones(pointers, rotations.shape[1])
        return torch.cat([rotations.repeat(frames, 1), identity])


_cached_repeat = lru_cache(maxsize=4)(_repeat)


def _cast(x: Tensor) -> Tensor:
    """Cast to autocast's dtype if autocast is on."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _collapse(x: Tensor) -> Tensor:
    """Return ``[HW,1,C]`` of an expanded tensor ``[HW,N,C]``, and any other tensor unchanged."""
    return x[:, :1] if x.shape[1] > 1 and x.stride(1) == 0 else x
