"""Upstream's memory attention, computed with less: same parameters, same result up to rounding.

Built in the place of upstream's classes by :func:`sam2kit.models.sam2.build_sam2_model`; exports
name upstream's own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from sam2.modeling.memory_attention import MemoryAttention as UpstreamMemoryAttention
from sam2.modeling.sam.transformer import RoPEAttention
from torch import Tensor, nn
from torch.nn import functional as F


class MemoryAttention(UpstreamMemoryAttention):
    """What does not depend on the object is computed once a frame, not once an object.

    That is the first layer's self-attention and its queries to the memory, where the objects of a
    call see the same frame (``curr`` is one frame's features, expanded) and nothing is dropped.
    """

    def forward(
        self,
        curr: Tensor | list[Tensor],
        memory: Tensor,
        curr_pos: Tensor | list[Tensor] | None = None,
        memory_pos: Tensor | None = None,
        num_obj_ptr_tokens: int = 0,
    ) -> Tensor:
        """``[HW,N,C]`` features of a frame for N objects, after looking at their memories.

        Args:
            curr, curr_pos: ``[HW,N,C]``, or a list of one.
            memory, memory_pos: ``[K,N,M]``; the last ``num_obj_ptr_tokens`` of K are object
                pointers, which have no place in the frame.
        """
        if isinstance(curr, list):
            (curr,) = curr
        if isinstance(curr_pos, list):
            (curr_pos,) = curr_pos
        if not (self.pos_enc_at_input and self.batch_first and curr_pos is not None):
            return super().forward(curr, memory, curr_pos, memory_pos, num_obj_ptr_tokens)
        if not self._drops():
            curr, curr_pos = _once(curr), _once(curr_pos)
        output = (curr + 0.1 * curr_pos).transpose(0, 1)
        place = curr_pos.transpose(0, 1)
        keys = memory if memory_pos is None else memory + memory_pos
        memory, keys = (_rounded(x.transpose(0, 1)) for x in (memory, keys))
        for layer in self.layers:
            seen = layer.norm1(output)
            own = _rounded(seen + place if layer.pos_enc_at_attn else seen)
            seen = layer.self_attn(own, own, _rounded(seen) if layer.pos_enc_at_attn else own)
            output = output + layer.dropout1(seen)
            seen = layer.norm2(output)
            seen = layer.cross_attn_image(
                q=seen + place if layer.pos_enc_at_cross_attn_queries else seen,
                k=keys if layer.pos_enc_at_cross_attn_keys else memory,
                v=memory,
                num_k_exclude_rope=num_obj_ptr_tokens,
            )
            output = output + layer.dropout2(seen)
            wide = layer.dropout(layer.activation(layer.linear1(layer.norm3(output))))
            output = output + layer.dropout3(layer.linear2(wide))
        return self.norm(output).transpose(0, 1)

    def _drops(self) -> bool:
        return self.training and any(
            (isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "dropout_p", 0) > 0
            for m in self.modules()
        )


class RotaryAttention(RoPEAttention):
    """Attention with rotary positions, whose queries may stand for all objects at once."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, num_k_exclude_rope: int = 0) -> Tensor:
        """``[N,Q,C]``.

        Args:
            q: ``[N,Q,C]``, or ``[1,Q,C]`` for the same queries to every ``k``.
            k, v: ``[N,K,C]``; the last ``num_k_exclude_rope`` of K are not turned.
        """
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        places = q.shape[-2]
        frames, left = divmod(k.shape[-2] - num_k_exclude_rope, places)
        assert not left and (frames == 1 or self.rope_k_repeat)
        turns = _turns(self.compute_cis, places, q.device)
        q = _turned(q, turns)
        k = _turned(k, _repeated(turns, frames, num_k_exclude_rope))
        q = q.expand(k.shape[0], -1, -1, -1)
        out = attend(q, k, v, self.dropout_p if self.training else 0.0)
        return self.out_proj(self._recombine_heads(out))


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of ``[N,heads,Q,C]`` and ``[N,heads,K,C]``.

    On a CPU in bfloat16 as plain products of matrices: those use the processor's bfloat16 units,
    which torch's fused attention does not (torch 2.12: half the time, forwards and backwards).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and dropout == 0:
        rows = zip((q * q.shape[-1] ** -0.5).unbind(), k.unbind(), v.unbind(), strict=True)
        return torch.stack([torch.softmax(a @ b.mT, -1) @ c for a, b, c in rows])
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """``x`` ``[N,heads,K,C]`` turned by ``turns`` ``[K,C/2]``, complex."""
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which knows no complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), torch.view_as_real(turns).unbind(-1)
        product = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        product = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return product.flatten(-2).to(x.dtype)


@lru_cache(maxsize=16)
def _turns(compute_cis: Callable[..., Tensor], places: int, device: torch.device) -> Tensor:
    """``[places,C/2]`` complex, by place in a square frame."""
    side = round(places**0.5)
    with torch.inference_mode(False):  # training reads what a tracker may have made
        return compute_cis(end_x=side, end_y=side).to(device)


@lru_cache(maxsize=4)
def _repeated(turns: Tensor, frames: int, pointers: int) -> Tensor:
    """The turns of the keys of several frames, and of pointers, which have no place."""
    with torch.inference_mode(False):
        still = turns.new_ones(pointers, turns.shape[1])
        return torch.cat([turns.repeat(frames, 1), still])


def _rounded(x: Tensor) -> Tensor:
    """In the precision that autocast would bring it to, layer after layer."""
    device = x.device.type
    return x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x


def _once(x: Tensor) -> Tensor:
    """``[HW,1,C]`` of an expanded ``[HW,N,C]``; any other as it is."""
    return x[:, :1] if x.shape[1] > 1 and x.stride(1) == 0 else x
