"""Taking tokens out of whole rows: which spans there are, which tokens go, and what is left with its gaps.

A span is a maximal run of droppable tokens. All functions are vectorised over rows and tokens and run on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Kept:
    """Rows without their dropped tokens; entries as in ``ILMBatch``."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"] | None
    gaps: Bool[Tensor, "batch seq"]
    gap_rows: Int[Tensor, " gaps"]
    rows: Int[Tensor, " dropped"]
    tokens: Int[Tensor, " dropped"]
    n_dropped: Int[Tensor, " batch"]


def span_numbers(droppable: Bool[Tensor, "batch full"]) -> Int[Tensor, "batch full"]:
    """Number of the span that each token belongs to, counted within its row; -1 at tokens that are given.

    Example:
        >>> span_numbers(torch.tensor([[False, True, True, False, True]])).tolist()
        [[-1, 0, 0, -1, 1]]
    """
    starts = droppable & ~F.pad(droppable, (1, 0))[:, :-1]
    return (starts.cumsum(1) - 1).masked_fill_(~droppable, -1)


def choose(
    droppable: Bool[Tensor, "batch full"], n: Int[Tensor, " batch"], u: Float[Tensor, "batch full"]
) -> Bool[Tensor, "batch full"]:
    """The n[row] droppable tokens with the smallest ``u``: a uniform set of that size where ``u`` is uniform.

    Args:
        droppable: Where a token can be taken out; at least ``n`` a row.
        n: Tokens to take out.
        u: Numbers in [0, 1), one a token and without ties: fp64.
    """
    u = u.masked_fill(~droppable, math.inf)
    next_smallest = F.pad(u.sort(dim=1).values, (0, 1), value=math.inf).gather(1, n[:, None])
    return u < next_smallest


def drop(
    full_ids: Int[Tensor, "batch full"],
    full_mask: Bool[Tensor, "batch full"] | None,
    span: Int[Tensor, "batch full"],
    dropped: Bool[Tensor, "batch full"],
    pad_id: int,
) -> Kept:
    """The rows without ``dropped``, right-padded, and the gap that each dropped token belongs to.

    A gap after kept token p lies in the span of p or of p + 1. It is open iff that span misses a token; so a row that
    misses nothing has no open gap, whatever its event space: only the stop head speaks about it.

    Args:
        full_ids: Whole rows, BOS first.
        full_mask: False at padding; None where nothing is padded.
        span: From ``span_numbers``.
        dropped: Tokens to take out, all of them in a span.
        pad_id: Fills the rows up.
    """
    kept = ~dropped if full_mask is None else full_mask & ~dropped
    lengths = kept.sum(1)
    seq = int(lengths.max()) if len(lengths) else 0
    filled = torch.arange(seq, device=kept.device) < lengths[:, None]

    input_ids = full_ids.new_full((len(full_ids), seq), pad_id)
    input_ids[filled] = full_ids[kept]
    gaps = torch.zeros_like(filled)
    gaps[filled] = _open_gaps(span, dropped)[kept]
    column = kept.cumsum(1).add_(seq * torch.arange(len(kept), device=kept.device)[:, None] - 1)
    return Kept(
        input_ids=input_ids,
        attention_mask=None if bool((lengths == seq).all()) else filled,
        gaps=gaps,
        gap_rows=gaps.flatten().nonzero().squeeze(1),
        rows=column[dropped],
        tokens=full_ids[dropped],
        n_dropped=dropped.sum(1),
    )


def _open_gaps(span: Tensor, dropped: Tensor) -> Tensor:
    """Whether the gap after each token of the whole row, were it kept, lies in a span that misses a token."""
    gap_span = torch.maximum(span, F.pad(span[:, 1:], (0, 1), value=-1))
    missing = torch.zeros_like(span).scatter_add_(1, span.clamp(min=0), dropped.long())
    open_gaps: Tensor = (missing.gather(1, gap_span.clamp(min=0)) > 0) & (gap_span >= 0)
    return open_gaps
