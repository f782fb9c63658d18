"""Drawing a gap and a token for it: together, or the gap first and then the token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from xlm.errors import UserError
from xlm.nn.chunks import MAX_LOGITS
from xlm.nn.linear_logsumexp import linear_logsumexp
from xlm.sampling import TokenFilter, draw, suppress

from xlm_ilm.types import ILMModel

Draw = Literal["joint", "two_stage"]


class GapFilter(TokenFilter):
    """The same options for gaps; their names begin with ``gap_``."""

    def _check(self, holds: bool, name: str, what: str, fix: str) -> None:
        if not holds:
            fix = fix.replace("token", "gap")
            raise UserError(what, where=f"predictor.gap_{name}", value=getattr(self, name), fix=fix)


class Pairs(NamedTuple):
    """One insertion a row."""

    gaps: Int[Tensor, " rows"]
    """Columns after which the tokens are inserted."""
    tokens: Int[Tensor, " rows"]
    probabilities: Float[Tensor, " rows"]
    """What the pair was drawn with."""


@dataclass(frozen=True)
class Vocabulary:
    """Logits of the tokens that may be inserted.

    Args:
        model: The network.
        suppressed: Tokens that are never inserted.
        eos_id: Is not inserted where the length is free; None: there is no such token.
    """

    model: ILMModel
    suppressed: Int[Tensor, " n"]
    eos_id: int | None

    def never(self, *, free: bool) -> Int[Tensor, " n"]:
        """Every token that is not inserted into rows of free, or of given, length."""
        if not free or self.eos_id is None:
            return self.suppressed
        return torch.cat([self.suppressed, self.suppressed.new_tensor([self.eos_id])])

    def logits(self, states: Float[Tensor, "rows d_model"], free: Bool[Tensor, " rows"]) -> Float[Tensor, "rows vocab"]:
        """Logits of each state; never drawn is -inf. In fp32 or better."""
        logits = suppress(self.model.head(states), self.suppressed.to(states.device))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.eos_id is not None:
            logits[:, self.eos_id] = logits[:, self.eos_id].masked_fill(free, -torch.inf)
        return logits

    def log_sums(self, states: Float[Tensor, "rows d_model"], free: Bool[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Log of the summed exponentials of each state's logits; those of one chunk exist at a time."""
        weight = self.model.head.weight
        values = states.new_empty(len(states), dtype=torch.float64)
        for is_free in (True, False):
            of_kind = (free == is_free).nonzero().squeeze(1)
            never = self.never(free=is_free).to(states.device)
            values[of_kind] = linear_logsumexp(states[of_kind], weight, suppressed=never).double()
        return values


class ByGap:
    """The gap by its share of the softmax over all pairs, then the token given the gap; each has filters of its own.

    Without filters this is the joint law, and no more than a chunk of logits exists at a time.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        states: Float[Tensor, "rows seq d_model"],
        free: Bool[Tensor, " rows"],
        gaps: Bool[Tensor, "rows seq"],
        *,
        token_filter: TokenFilter,
        gap_filter: TokenFilter,
    ) -> None:
        self.vocabulary, self.states, self.free = vocabulary, states, free
        self.token_filter, self.gap_filter = token_filter, gap_filter
        row, column = gaps.nonzero(as_tuple=True)
        log_sums = vocabulary.log_sums(states[row, column], free[row])
        self.scores = log_sums.new_full(gaps.shape, -torch.inf).index_put((row, column), log_sums)

    def draw(
        self, rows: Int[Tensor, " chosen"], gaps: Bool[Tensor, "chosen seq"], u: Float64[Tensor, "chosen 2"]
    ) -> Pairs:
        """One pair for each of ``rows`` among ``gaps``, from two uniform numbers."""
        scores = self.gap_filter(self.scores[rows].masked_fill(~gaps, -torch.inf))
        gap = draw(scores, u[:, 0])
        logits = self.token_filter(self.vocabulary.logits(self.states[rows, gap], self.free[rows]))
        token = draw(logits, u[:, 1])
        return Pairs(gap, token, _probability(scores, gap) * _probability(logits, token))


class Jointly:
    """Gap and token together, from the filtered softmax over all pairs."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        states: Float[Tensor, "rows seq d_model"],
        free: Bool[Tensor, " rows"],
        *,
        pair_filter: TokenFilter,
    ) -> None:
        self.vocabulary, self.states, self.free, self.filter = vocabulary, states, free, pair_filter

    def draw(
        self, rows: Int[Tensor, " chosen"], gaps: Bool[Tensor, "chosen seq"], u: Float64[Tensor, "chosen 2"]
    ) -> Pairs:
        """One pair for each of ``rows`` among ``gaps``, from the second of two uniform numbers."""
        chunk = max(1, MAX_LOGITS // (len(self.vocabulary.model.head.weight) * int(gaps.sum(1).max())))
        parts = zip(*(torch.split(values, chunk) for values in (rows, gaps, u[:, 1])), strict=True)
        return Pairs(*map(torch.cat, zip(*(self._draw(*part) for part in parts), strict=True)))

    def _draw(self, rows: Tensor, gaps: Tensor, u: Tensor) -> Pairs:
        row, column = gaps.nonzero(as_tuple=True)
        nth = (gaps.cumsum(1) - 1)[row, column]
        logits = self.vocabulary.logits(self.states[rows[row], column], self.free[rows[row]])
        shape = (len(rows), int(gaps.sum(1).max()), logits.shape[1])
        filled = logits.new_full(shape, -torch.inf).index_put((row, nth), logits)
        pairs = self.filter(filled.flatten(1))
        pair = draw(pairs, u)
        columns = torch.zeros_like(filled[..., 0], dtype=torch.int64).index_put((row, nth), column)
        gap = columns.gather(1, pair[:, None] // shape[2]).squeeze(1)
        return Pairs(gap, pair % shape[2], _probability(pairs, pair))


def _probability(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.softmax(-1).gather(1, chosen[:, None]).squeeze(1)
