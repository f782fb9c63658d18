"""Bounds on -log p of texts that are built by insertion, whatever a sampler's options."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.errors import UserError
from xlm.likelihood import OFFSET_STREAM, any_order_bound
from xlm.nn.linear_logsumexp import chosen_logits, linear_logsumexp
from xlm.noise import uniforms
from xlm.protocols import SequenceLikelihood

from xlm_ilm.dropping import drop
from xlm_ilm.predictor.pairs import Vocabulary
from xlm_ilm.types import ILMBatch


def insertion_bound(vocabulary: Vocabulary, batch: ILMBatch, *, draws: int) -> SequenceLikelihood:
    """The mean over orders of -log p(text, order), minus log L!; L is the number of inserted tokens.

    With n tokens missing, CE_n the mean of their -log p(gap, token) and p_stop the chance to stop, it is the sum over
    n = 1..L of E[CE_n - log(1 - p_stop)], minus log p_stop(text); in windows and templates without the terms of p_stop.
    Each draw takes one n, systematic over the draws, and one uniform set of n tokens. What the whole text says needs no
    draw, so an open text costs one call more.
    """
    n_tokens = (batch["span"] >= 0).sum(1)

    def costs(dropped: Tensor, _: Tensor) -> Tensor:
        step = _Step(vocabulary, batch, dropped)
        cost = torch.zeros_like(step.log_continue).index_add(0, step.row, -step.log_p)
        return cost - dropped.sum(1) * step.log_continue if batch["counts_stop"] else cost

    result = any_order_bound(costs, batch["span"] >= 0, batch["noise_key"], draws=draws)
    result["nll"] = result["nll"] - torch.lgamma(n_tokens.double() + 1)
    if batch["counts_stop"]:
        result["nll"] -= _Step(vocabulary, batch, torch.zeros_like(batch["span"], dtype=torch.bool)).log_stop
        result["n_calls"] += 1
    result["n_tokens"], result["estimator"] = batch["n_tokens"], "insertion"
    return result


def order_bound(vocabulary: Vocabulary, batch: ILMBatch, *, draws: int) -> SequenceLikelihood:
    """-log p from whole orders: -log L! - log of the mean over K uniform orders of p(text, order), K = ``draws``.

    Its expectation lies between the bound and -log p, the nearer to -log p the greater K. L network calls an order, and
    one for stopping on an open text.
    """
    if draws < 1:
        raise UserError("must be 1 or more", where="harness.likelihood_draws", value=draws, fix="use 1 or more draws")
    droppable = batch["span"] >= 0
    n_tokens = droppable.sum(1)
    longest = int(n_tokens.max())
    log_p = torch.zeros(draws, len(n_tokens), dtype=torch.float64, device=n_tokens.device)
    for i in range(draws):
        u = uniforms(batch["noise_key"], droppable.shape[1], stream=OFFSET_STREAM + 1 + i, dtype=torch.float64)
        rank = u.masked_fill(~droppable, 2.0).argsort(1).argsort(1).masked_fill(~droppable, longest + 1)
        for n in range(1, longest + 1):
            rows = (n_tokens >= n).nonzero().squeeze(1)
            log_p[i, rows] += _last_of(vocabulary, batch, rank[rows], n, rows)
    if batch["counts_stop"]:
        log_p += _Step(vocabulary, batch, torch.zeros_like(droppable)).log_stop
    mean = log_p.logsumexp(0) - math.log(draws)
    result: SequenceLikelihood = {
        "nll": -mean - torch.lgamma(n_tokens.double() + 1),
        "n_tokens": batch["n_tokens"],
        "kind": "bound",
        "estimator": "insertion_orders",
        "n_calls": draws * longest + int(batch["counts_stop"]),
    }
    if draws > 1:
        shares = (log_p - mean).exp()  # of mean 1
        result["mc_variance"] = shares.var(0) / draws
    return result


def _last_of(vocabulary: Vocabulary, batch: ILMBatch, rank: Tensor, n: int, rows: Tensor) -> Tensor:
    """Log-probability of inserting the token of rank n - 1 while those below are missing too."""
    dropped = rank < n
    step = _Step(vocabulary, batch, dropped, rows)
    log_p = step.log_p[rank[dropped] == n - 1]  # one a row
    return log_p + step.log_continue if batch["counts_stop"] else log_p


class _Step:
    """What the network says about some rows (None: all) with some tokens missing, in fp64."""

    log_p: Float64[Tensor, " dropped"]
    """Of inserting each missing token in its gap, in row-major order."""
    row: Int[Tensor, " dropped"]
    log_stop: Float64[Tensor, " rows"]
    log_continue: Float64[Tensor, " rows"]

    def __init__(
        self,
        vocabulary: Vocabulary,
        batch: ILMBatch,
        dropped: Bool[Tensor, "rows full"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> None:
        chosen = [batch["full_ids"], batch["full_mask"], batch["span"]]
        if rows is not None:
            chosen = [None if values is None else values[rows] for values in chosen]
        full_ids, full_mask, span = chosen
        assert full_ids is not None
        assert span is not None
        model = vocabulary.model
        kept = drop(full_ids, full_mask, span, dropped, 0)
        states, stop_logit = model.read(kept.input_ids, kept.attention_mask)
        self.log_stop, self.log_continue = F.logsigmoid(stop_logit.double()), F.logsigmoid(-stop_logit.double())
        states, seq = states.flatten(0, 1), states.shape[1]
        weight, never = model.head.weight, vocabulary.never(free=batch["counts_stop"]).to(states.device)
        of_gaps = torch.full_like(kept.gaps, -torch.inf, dtype=torch.float64).flatten()
        of_gaps[kept.gap_rows] = linear_logsumexp(states[kept.gap_rows], weight, suppressed=never).double()
        self.row = kept.rows // seq
        logits = chosen_logits(states[kept.rows], weight, kept.tokens).double()
        logits = logits.masked_fill(torch.isin(kept.tokens, never), -torch.inf)
        self.log_p = logits - of_gaps.reshape(-1, seq).logsumexp(1)[self.row]
