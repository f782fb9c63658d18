"""The output head and the log-sum-exp of its logits in one step, a chunk of rows at a time, and chosen logits.

For a softmax that runs over several rows together: its normaliser is the log-sum-exp of these rows' values. The
backward pass computes a chunk's logits again; a tensor of rows x vocab never exists beyond one chunk.
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
def linear_logsumexp(
    states: Float[Tensor, "rows d_model"],
    weight: Float[Tensor, "vocab d_model"],
    *,
    suppressed: Int[Tensor, " n"] | None = None,
    chunk: int | None = None,
) -> Float[Tensor, " rows"]:
    """Log-sum-exp over the vocabulary of states weight^T, of each row.

    Differentiable (once) in ``states`` and ``weight``. Matrix products run in the dtype of ``states``, or autocast's;
    exponentials and sums in fp32 or better.

    Args:
        states: What the head would be applied to, selected rows only.
        weight: The head's weight.
        suppressed: Tokens that are left out of the sum.
        chunk: Rows whose logits exist at a time; chosen by ``CHUNK_BYTES`` if absent.
    """
    dtype = product_dtype(states)
    chunk = chunk or chunk_rows(states.device.type, dtype, len(weight))
    n = len(states)
    if states.device.type == "cpu" and dtype.itemsize < 4:  # see SIZES_AN_OCTAVE
        states = F.pad(states, (0, 0, 0, missing_rows(n)))
    value: Tensor = _LinearLogSumExp.apply(chunk, dtype, states, weight, suppressed)
    return value[:n]


def chosen_logits(
    states: Float[Tensor, "rows d_model"], weight: Float[Tensor, "vocab d_model"], tokens: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """One logit of each row, rounded as ``linear_logsumexp`` rounds it: a chosen logit does not exceed the sum."""
    dtype = product_dtype(states)
    with torch.autocast(states.device.type, enabled=False):
        exact = torch.promote_types(dtype, torch.float32)
        products = states.to(dtype).to(exact) * weight.index_select(0, tokens).to(dtype).to(exact)
        return products.sum(-1).to(dtype).to(exact)


class _LinearLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, chunk: int, dtype: torch.dtype, states: Tensor, weight: Tensor, suppressed: Tensor | None
    ) -> Tensor:
        exact = torch.promote_types(dtype, torch.float32)
        value = states.new_empty(len(states), dtype=exact)
        with torch.autocast(states.device.type, enabled=False):
            low_states, low_weight = states.to(dtype), weight.to(dtype)
            buffer = states.new_empty(min(chunk, len(states)), len(weight), dtype=dtype)
            for part in slices(len(states), chunk):
                logits = torch.mm(low_states[part], low_weight.T, out=buffer[: len(value[part])])
                for some in slices(len(logits), cached_rows(logits)):
                    value[part][some] = _without(suppressed, logits[some].to(exact)).logsumexp(1)
        ctx.chunk, ctx.dtype = chunk, dtype
        ctx.save_for_backward(states, weight, suppressed, value)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, suppressed, value = ctx.saved_tensors
        d_states = torch.empty_like(states)
        d_weight = torch.zeros_like(weight, dtype=value.dtype)
        with torch.autocast(states.device.type, enabled=False):
            low_states, low_weight = states.to(ctx.dtype), weight.to(ctx.dtype)
            scaled = (upstream[:, None] * states).to(ctx.dtype)
            buffer = states.new_empty(min(ctx.chunk, len(states)), len(weight), dtype=ctx.dtype)
            for part in slices(len(states), ctx.chunk):
                logits = torch.mm(low_states[part], low_weight.T, out=buffer[: len(value[part])])
                for some in slices(len(logits), cached_rows(logits)):
                    exact = _without(suppressed, logits[some].to(value.dtype))
                    logits[some] = exact.sub_(value[part][some, None]).exp_()
                d_states[part] = upstream[part, None] * (logits @ low_weight)
                add_product_(d_weight, logits.T, scaled[part])
        return None, None, d_states, d_weight.to(weight.dtype), None


def _without(suppressed: Tensor | None, logits: Tensor) -> Tensor:
    return logits if suppressed is None else logits.index_fill(1, suppressed, -math.inf)
