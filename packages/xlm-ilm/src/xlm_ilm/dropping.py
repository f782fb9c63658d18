"""Taking tokens out of whole rows: which spans there are, which tokens go, and what is left with its gaps.

A span is a maximal run of droppable tokens. All functions are vectorised over rows and tokens and run on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.data.padding import flat_indices


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
    next_smallest = F.pad(_sorted(u), (0, 1), value=math.inf).gather(1, n[:, None])
    return u < next_smallest


def gap_spans(
    span: Int[Tensor, "batch full"], dropped: Bool[Tensor, "batch full"]
) -> tuple[Int[Tensor, "batch full"], Int[Tensor, "batch full"]]:
    """Of the gap after each token of the whole row: its span, or -1, and how many tokens that span misses.

    The gap after token p lies in the span of p or of p + 1.

    Example:
        >>> span, dropped = torch.tensor([[-1, 0, 0, -1, 1]]), torch.tensor([[False, True, True, False, False]])
        >>> [part.tolist() for part in gap_spans(span, dropped)]
        [[[0, 0, 0, 1, 1]], [[2, 2, 2, 0, 0]]]
    """
    of_gap = torch.maximum(span, F.pad(span[:, 1:], (0, 1), value=-1))
    missing = span.new_zeros(len(span), span.shape[1] + 1)  # slot 0 is that of span -1
    missing.scatter_add_(1, span + 1, dropped.long())
    return of_gap, missing.gather(1, of_gap + 1)


def drop(
    full_ids: Int[Tensor, "batch full"],
    full_mask: Bool[Tensor, "batch full"] | None,
    span: Int[Tensor, "batch full"],
    dropped: Bool[Tensor, "batch full"],
    pad_id: int,
) -> Kept:
    """The rows without ``dropped``, right-padded, and the gap that each dropped token belongs to.

    A gap is open iff its span misses a token; so a row that misses nothing has no open gap, whatever its event space:
    only the stop head speaks about it.

    Args:
        full_ids: Whole rows, BOS first.
        full_mask: False at padding; None where nothing is padded.
        span: From ``span_numbers``.
        dropped: Tokens to take out, all of them in a span.
        pad_id: Fills the rows up.
    """
    kept = ~dropped if full_mask is None else full_mask & ~dropped
    count = kept.cumsum(1)
    lengths = count[:, -1]
    seq = int(lengths.max()) if len(lengths) else 0
    # Of every token in the flattened result: its own column if it stays, the gap's if it goes.
    place = (count + (seq * torch.arange(len(kept), device=kept.device)[:, None] - 1)).flatten()
    stays, gone = flat_indices(kept), flat_indices(dropped)

    input_ids = full_ids.new_full((len(kept) * seq,), pad_id)
    input_ids[place.index_select(0, stays)] = full_ids.flatten().index_select(0, stays)
    gap_rows = place.index_select(0, flat_indices(kept & (gap_spans(span, dropped)[1] > 0)))
    gaps = torch.zeros_like(input_ids, dtype=torch.bool).index_fill_(0, gap_rows, True)
    return Kept(
        input_ids=input_ids.view(len(kept), seq),
        attention_mask=_mask(lengths, seq),
        gaps=gaps.view(len(kept), seq),
        gap_rows=gap_rows,
        rows=place.index_select(0, gone),
        tokens=full_ids.flatten().index_select(0, gone),
        n_dropped=dropped.sum(1),
    )


def _mask(lengths: Tensor, seq: int) -> Tensor | None:
    """False at padding; None where nothing is padded."""
    filled = torch.arange(seq, device=lengths.device) < lengths[:, None]
    return None if bool(filled.all()) else filled


def _sorted(u: Tensor) -> Tensor:
    """Each row in ascending order; on the CPU numpy takes an eighth of torch's time for rows as short as texts."""
    return torch.from_numpy(np.sort(u.numpy(), axis=1)) if u.device.type == "cpu" else u.sort(dim=1).values
