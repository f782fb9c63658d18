"""The output head and its cross-entropy in one step, a chunk of rows at a time (as in Liger Kernel, 2024).

Gradients are computed in the forward pass, while a chunk's logits exist: three matrix products a chunk, and never a
tensor of rows x vocab beyond one chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_BYTES = {"cpu": 2**26, "cuda": 2**29}
"""Memory for one chunk's fp32 logits, by device type; two to three such tensors live at a time."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def linear_cross_entropy(
    states: Float[Tensor, "rows d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " rows"],
    *,
    row_weights: Float[Tensor, " rows"] | None = None,
    suppressed: Int[Tensor, " n"] | None = None,
    chunk: int | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, " rows"]]:
    """Sum over rows of row_weight x -log softmax(states weight^T)[target], and -log p of each row, in nats.

    The sum is differentiable (once) in ``states`` and ``weight``; the values of the rows are detached. Matrix products
    run in the dtype of ``states``, or autocast's; softmax and sums in fp32 or better. A row of weight zero adds
    nothing, even if its target is impossible.

    Args:
        states: What the head would be applied to, selected rows only.
        weight: The head's weight.
        targets: The token of each row.
        row_weights: Factor of each row in the sum; one if absent.
        suppressed: Tokens that are never generated: removed from the softmax.
        chunk: Rows whose logits exist at a time; chosen by ``CHUNK_BYTES`` if absent.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    if chunk is None:
        chunk = max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * weight.shape[0]))
    exact = torch.promote_types(dtype, torch.float32)
    if row_weights is None:
        row_weights = states.new_ones(len(states), dtype=exact)
    gradients = torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad)
    inputs = (states, weight, targets, row_weights.to(exact), suppressed)
    total, nll = _LinearCrossEntropy.apply(chunk, dtype, gradients, *inputs)
    return total, nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chunk: int, dtype: torch.dtype, with_gradients: bool, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.chunk, ctx.dtype = chunk, dtype
        ctx.save_for_backward(*inputs)
        total, nll, ctx.gradients = _by_chunks(chunk, dtype, with_gradients, *inputs)
        ctx.mark_non_differentiable(nll)
        return total, nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are given away, scaled in place: a second backward (retain_graph) computes them again.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            gradients = _by_chunks(ctx.chunk, ctx.dtype, True, *ctx.saved_tensors)[2]
        if upstream.device.type != "cpu" or upstream != 1:
            torch._foreach_mul_(gradients, upstream)
        return (None, None, None, *gradients, None, None, None)


def _by_chunks(
    chunk: int,
    dtype: torch.dtype,
    with_gradients: bool,
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    row_weights: Tensor,
    suppressed: Tensor | None,
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """The weighted sum, -log p of each row, and the sum's gradients with respect to states and weight."""
    rows, exact = len(states), row_weights.dtype
    n_chunks = math.ceil(rows / chunk)
    nll = row_weights.new_zeros(rows)
    d_states, d_weight = torch.zeros_like(states), torch.zeros_like(weight, dtype=exact)
    with torch.autocast(states.device.type, enabled=False):
        low_weight = weight.to(dtype)
        for part in torch.arange(rows, device=states.device).tensor_split(n_chunks) if rows else ():
            low_states = states[part].to(dtype)
            logits = (low_states @ low_weight.T).to(exact)
            if suppressed is not None:
                logits.index_fill_(1, suppressed, -math.inf)
            log_p = F.log_softmax(logits, dim=-1)
            del logits
            target = targets[part, None]
            nll[part] = -log_p.gather(1, target).squeeze(1)
            if with_gradients:
                d_logits = log_p.exp_().scatter_add_(1, target, -torch.ones_like(target, dtype=exact)).to(dtype)
                factor = row_weights[part, None]
                d_states[part] = (factor * (d_logits @ low_weight)).to(states.dtype)
                d_weight += d_logits.T @ (factor * low_states).to(dtype)
    total = torch.where(row_weights == 0, 0.0, row_weights * nll).sum()
    return total, nll, [d_states, d_weight.to(weight.dtype)] if with_gradients else None
