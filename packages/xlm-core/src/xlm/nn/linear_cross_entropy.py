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

from xlm.nn.chunks import add_product_, cached_rows, chunk_rows, missing_rows, product_dtype, slices


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
        row_weights: Factor of each row in the sum, a constant; one if absent.
        suppressed: Tokens that are never generated: removed from the softmax.
        chunk: Rows whose logits exist at a time; chosen by ``CHUNK_BYTES`` if absent.
    """
    device = states.device.type
    dtype = product_dtype(states)
    exact = torch.promote_types(dtype, torch.float32)
    chunk = chunk or chunk_rows(device, dtype, len(weight))
    if row_weights is None:
        row_weights = states.new_ones(len(states))
    row_weights, n = row_weights.to(exact), len(states)
    if device == "cpu" and dtype != exact and (more := missing_rows(n)):
        states, targets, row_weights = (
            F.pad(states, (0, 0, 0, more)),
            F.pad(targets, (0, more)),
            F.pad(row_weights, (0, more)),
        )
    with_gradients = torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad)
    total, nll = _LinearCrossEntropy.apply(
        chunk, dtype, with_gradients, states, weight, targets, row_weights, suppressed
    )
    return total, nll[:n]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chunk: int, dtype: torch.dtype, with_gradients: bool, *inputs: Any) -> tuple[Tensor, Tensor]:
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
    nll = torch.empty_like(row_weights)
    d_states = torch.empty_like(states, dtype=dtype) if with_gradients else states
    d_weight = torch.zeros_like(weight, dtype=row_weights.dtype) if with_gradients else weight
    factor = row_weights[:, None]
    with torch.autocast(states.device.type, enabled=False):
        low_states, low_weight, weighted_states = states.to(dtype), weight.to(dtype), (factor * states).to(dtype)
        buffer = states.new_empty(min(chunk, len(states)), len(weight), dtype=dtype)
        for part in slices(len(states), chunk):
            logits = torch.mm(low_states[part], low_weight.T, out=buffer[: len(targets[part])])
            _softmax_(logits, targets[part], suppressed, nll[part], with_gradients)
            if with_gradients:
                torch.mm(logits, low_weight, out=d_states[part])
                add_product_(d_weight, logits.T, weighted_states[part])
    total = torch.where(row_weights == 0, 0.0, row_weights * nll).sum()
    return total, nll, [(factor * d_states).to(states.dtype), d_weight.to(weight.dtype)] if with_gradients else None


def _softmax_(logits: Tensor, targets: Tensor, suppressed: Tensor | None, nll: Tensor, with_gradients: bool) -> None:
    """Fill ``nll`` and turn logits into its gradient, softmax - one-hot; in fp32 or better, a few rows at a time."""
    for part in slices(len(logits), cached_rows(logits)):
        exact = logits[part].to(nll.dtype)
        if suppressed is not None:
            exact.index_fill_(1, suppressed, -math.inf)
        log_p, target = F.log_softmax(exact, dim=-1), targets[part, None]
        nll[part] = -log_p.gather(1, target).squeeze(1)
        if with_gradients:
            p = log_p.exp_()
            logits[part] = p.scatter_(1, target, p.gather(1, target) - 1)
