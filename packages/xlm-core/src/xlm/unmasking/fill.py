"""The loops that fill in hidden positions: after a plan, or after a rule that asks the network.

Each position takes its random numbers from the row's ``noise_key`` and its own place in the row, so an answer does not
depend on the rest of the batch. Rows leave the batch when nothing in them is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.sampling import TokenFilter, draw, top_probability_scores
from xlm.trace import Action, Trace
from xlm.unmasking.batch import (
    ORDER_STREAM,
    REVEAL_STREAM,
    TOKEN_STREAM,
    MaskedPredictionBatch,
    placed_uniforms,
    places,
)
from xlm.unmasking.blocks import after_the_end, check_blocks, in_first_block
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.plan import RevealPlan
from xlm.unmasking.rules import RevealRule

Filled = tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]
"""Whole rows, and the network calls in which each took part."""


@dataclass(frozen=True)
class TokenRule:
    """Which tokens may be drawn.

    Args:
        filter: Temperature, top-k, top-p, min-p.
        min_new_tokens: EOS is not drawn at so many first places of an answer that ends at EOS.
    """

    filter: TokenFilter
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.min_new_tokens < 0:
            where, fix = "predictor.min_new_tokens", "use 0 to let a text end at once"
            raise UserError("must be 0 or more", where=where, value=self.min_new_tokens, fix=fix)

    def no_eos(self, batch: MaskedPredictionBatch) -> Bool[Tensor, "batch seq"] | None:
        """Where EOS is not drawn; None for nowhere."""
        if self.min_new_tokens == 0:
            return None
        place = places(batch) - batch["prompt_lengths"][:, None]
        return (place < self.min_new_tokens) & batch["ends_at_eos"][:, None]

    def draw(
        self,
        denoiser: Denoiser,
        states: Float[Tensor, "rows d_model"],
        u: Float[Tensor, " rows"],
        no_eos: Bool[Tensor, " rows"] | None,
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """One token a row from the filtered distribution, and its probability there."""
        tokens, probabilities = [], []
        for some_states, some_u, some_no_eos in denoiser.parts(states, u, no_eos):
            logits = self.filter(denoiser.logits(some_states, some_no_eos))
            tokens.append(draw(logits, some_u))
            probabilities.append(logits.softmax(-1).gather(1, tokens[-1][:, None]).squeeze(1))
        return torch.cat(tokens), torch.cat(probabilities)


def fill_by_plan(
    denoiser: Denoiser, batch: MaskedPredictionBatch, plan: RevealPlan, tokens: TokenRule, trace: Trace | None
) -> Filled:
    """Reveal after a plan: the network runs for the rows that reveal something in a step, its head where they do."""
    filling = Filling(denoiser, batch, tokens, trace)
    for step in torch.unique(plan.step[batch["predicted"]]).tolist():
        reveal = plan.step == step
        rows = reveal.any(1).nonzero().squeeze(1)
        i, column = reveal[rows].nonzero(as_tuple=True)
        states = denoiser.states(batch, filling.ids, plan.mask_rate[rows, step], rows)
        filling.reveal(step, rows[i], column, states[i, column])
        filling.n_calls[rows] += denoiser.n_readings
    return filling.ids, filling.n_calls


def fill_by_rule(
    denoiser: Denoiser, batch: MaskedPredictionBatch, rule: RevealRule, tokens: TokenRule, trace: Trace | None
) -> Filled:
    """Reveal after a rule until nothing is hidden: at most one call a hidden position.

    In blocks an answer that ends at EOS is done with the block in which EOS appears: what follows is EOS, too.
    """
    filling, hidden = Filling(denoiser, batch, tokens, trace), batch["predicted"].clone()
    check_blocks(batch, rule.block_length)
    u = placed_uniforms(batch, REVEAL_STREAM)
    step = 0
    while hidden.any():
        if rule.gumbel:
            u = placed_uniforms(batch, ORDER_STREAM + step)
        filling.n_calls += denoiser.n_readings * hidden.any(1)
        row, column, states = next_by_rule(denoiser, batch, filling.ids, hidden, rule, u=u, no_eos=filling.no_eos)
        filling.reveal(step, row, column, states)
        hidden[row, column] = False
        if rule.block_length is not None:
            filling.finish(step, hidden, rule.block_length)
        step += 1
    return filling.ids, filling.n_calls


def next_by_rule(
    denoiser: Denoiser,
    batch: Mapping[str, Any],
    ids: Int[Tensor, "batch seq"],
    hidden: Bool[Tensor, "batch seq"],
    rule: RevealRule,
    *,
    u: Float[Tensor, "batch seq"] | None = None,
    no_eos: Bool[Tensor, "batch seq"] | None = None,
) -> tuple[Int[Tensor, " revealed"], Int[Tensor, " revealed"], Float[Tensor, "revealed d_model"]]:
    """Row, column and state of the positions to reveal next, in the rows where something is hidden.

    With k of N positions hidden, a network that is told the mask rate is told k / (N + 1), the mean of the mask rates
    at which the reverse process reveals the next one.

    Args:
        denoiser: The network.
        batch: Where the tokens stand.
        ids: The rows as they are now.
        hidden: Positions that are still hidden.
        rule: Chooses among them.
        u: Uniform numbers, for rules that are not deterministic.
        no_eos: Where EOS is never drawn.
    """
    rows = hidden.any(1).nonzero().squeeze(1)
    mask_rate = hidden.sum(1) / (batch["predicted"].sum(1) + 1)
    if rule.block_length is not None:
        hidden = in_first_block(hidden, batch["predicted"], rule.block_length)
    i, column = hidden[rows].nonzero(as_tuple=True)
    row = rows[i]
    states = denoiser.states(batch, ids, mask_rate[rows], rows)[i, column]
    some_u = states.new_zeros(len(states)) if u is None else u[row, column]
    score, top_probability = some_u, None
    if rule.asks_network:
        parts = denoiser.parts(states, some_u, None if no_eos is None else no_eos[row, column])
        measured = [_measure(rule, denoiser.logits(part, banned), part_u) for part, part_u, banned in parts]
        score, top_probability = (torch.cat(column) for column in zip(*measured, strict=True))
    shape = (len(rows), hidden.shape[1])
    scores = score.new_full(shape, -torch.inf).index_put((i, column), score)
    if top_probability is not None:
        top_probability = top_probability.new_full(shape, -1.0).index_put((i, column), top_probability)
    chosen = rule.choose(scores, top_probability)[i, column]
    return row[chosen], column[chosen], states[chosen]


def _measure(rule: RevealRule, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    score = rule.scores(logits, u)
    return score, top_probability_scores(logits) if rule.parallel else score


class Filling:
    """The rows while they are filled in."""

    def __init__(
        self, denoiser: Denoiser, batch: MaskedPredictionBatch, tokens: TokenRule, trace: Trace | None
    ) -> None:
        denoiser.check(batch)
        self.denoiser, self.batch, self.tokens, self.trace = denoiser, batch, tokens, trace
        self.ids, self.place = denoiser.hide(batch["input_ids"], batch["predicted"]), places(batch)
        self.token_u = placed_uniforms(batch, TOKEN_STREAM)
        self.no_eos = None if denoiser.tokenizer.eos_token_id is None else tokens.no_eos(batch)
        self.n_calls = torch.zeros_like(batch["index"])

    def reveal(self, step: int, row: Tensor, column: Tensor, states: Tensor) -> Tensor:
        """Draw a token at each of these positions; how probable each was."""
        no_eos = None if self.no_eos is None else self.no_eos[row, column]
        tokens, probabilities = self.tokens.draw(self.denoiser, states, self.token_u[row, column], no_eos)
        self.put(step, "reveal", row, column, tokens, probabilities)
        return probabilities

    def put(
        self, step: int, action: Action, row: Tensor, column: Tensor, tokens: Tensor, probabilities: Tensor
    ) -> None:
        """Write these tokens, and say so in the trace."""
        self.ids[row, column] = tokens
        if self.trace is not None:
            self.trace.record(step, action, row, self.place[row, column], tokens, probabilities)

    def finish(self, step: int, hidden: Bool[Tensor, "batch seq"], block_length: int) -> None:
        """EOS, without a call, wherever an answer is hidden after the block in which it ended."""
        eos_id = self.denoiser.tokenizer.eos_token_id
        row, column = after_the_end(self.batch, self.ids, hidden, block_length, eos_id).nonzero(as_tuple=True)
        certain = torch.ones(len(row), device=row.device)
        self.put(step, "reveal", row, column, torch.full_like(row, eos_id or 0), certain)
        hidden[row, column] = False
