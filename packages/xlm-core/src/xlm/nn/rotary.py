"""Rotary positions (Su et al., 2021) in the half-split convention of Llama and ModernBERT."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

RotaryTable = tuple[Float[Tensor, "#batch 1 seq head_dim"], Float[Tensor, "#batch 1 seq head_dim"]]
"""Cosines and sines of every position's angles, made by ``rotary_table``; one row serves a batch of equal positions."""


def rotary_table(positions: Int[Tensor, "batch seq"], head_dim: int, base: float = 10000.0) -> RotaryTable:
    """Cosines and sines, in fp32, for explicit positions, so that padding and packing are the caller's to place."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angles = (positions[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "batch heads seq head_dim"], table: RotaryTable
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Turn feature pairs (i, i + head_dim / 2) by their position's angles, in the dtype of x."""
    cos, sin = (part.to(x.dtype) for part in table)
    turned: Tensor = _Rotation.apply(x, cos, sin)
    return turned


class _Rotation(torch.autograd.Function):
    """Two passes over x instead of autograd's five; the gradient is turned back by the same angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        turned = x * cos
        turned[..., :half].addcmul_(x[..., half:], sin[..., half:], value=-1)
        turned[..., half:].addcmul_(x[..., :half], sin[..., :half])
        return turned

    @staticmethod
    def backward(ctx: Any, d_turned: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Rotation.apply(d_turned, cos, -sin), None, None
