"""Upstream's memory attention, computed with less: same parameters, same result up to rounding.

Built in the place of upstream's classes by :func:`sam2kit.model.build_sam2_model`; exports name
upstream's own.
"""

from __future__ import annotations

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
        memory = memory.transpose(0, 1)
        memory_pos = None if memory_pos is None else memory_pos.transpose(0, 1)
        for layer in self.layers:
            output = layer(output, memory, memory_pos, place, num_obj_ptr_tokens)
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
        turns = self._turns(q)
        places = k.shape[-2] - num_k_exclude_rope
        if places != q.shape[-2]:
            assert self.rope_k_repeat
        q = _turned(q, turns)
        k = _turned(k, turns, places)
        q = q.expand(k.shape[0], -1, -1, -1)
        out = attend(q, k, v, self.dropout_p if self.training else 0.0)
        return self.out_proj(self._recombine_heads(out))

    def _turns(self, q: Tensor) -> Tensor:
        """``[Q,C/2]`` complex, by place in a square frame of Q places."""
        if self.freqs_cis.shape[0] != q.shape[-2]:
            side = round(q.shape[-2] ** 0.5)
            self.freqs_cis = self.compute_cis(end_x=side, end_y=side)
        if self.freqs_cis.device != q.device:
            self.freqs_cis = self.freqs_cis.to(q.device)
        return self.freqs_cis


def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention of ``[N,heads,Q,C]`` and ``[N,heads,K,C]``.

    On a CPU in bfloat16 as plain products of matrices: those use the processor's bfloat16 units,
    which torch's fused attention does not (torch 2.12: half the time, forwards and backwards).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and dropout == 0:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return torch.softmax(scores, -1) @ v
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)


def _turned(x: Tensor, turns: Tensor, places: int | None = None) -> Tensor:
    """The first ``places`` of ``x`` ``[N,heads,K,C]`` turned by their place, frame after frame."""
    rest = None if places is None else x[:, :, places:]
    x = x if places is None else x[:, :, :places]
    pairs = x.float().reshape(*x.shape[:2], -1, *turns.shape, 2)
    if torch.compiler.is_compiling():  # which knows no complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), torch.view_as_real(turns).unbind(-1)
        product = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:
        product = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    turned = product.reshape(x.shape).to(x.dtype)
    return turned if rest is None or not rest.shape[2] else torch.cat([turned, rest], dim=2)


def _once(x: Tensor) -> Tensor:
    """``[HW,1,C]`` of an expanded ``[HW,N,C]``; any other as it is."""
    return x[:, :1] if x.shape[1] > 1 and x.stride(1) == 0 else x
