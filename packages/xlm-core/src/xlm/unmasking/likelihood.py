"""What a text costs under a network that fills in hidden positions; nats a sequence, in fp64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlm.likelihood import any_order_bound, deterministic_order
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.protocols import SequenceLikelihood
from xlm.sampling import TokenFilter
from xlm.unmasking.batch import places
from xlm.unmasking.blocks import after_the_end, check_blocks
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import next_by_rule
from xlm.unmasking.rules import RevealRule


def any_order(denoiser: Denoiser, batch: Mapping[str, Any], *, draws: int) -> SequenceLikelihood:
    """Any-order bound on -log p of the predicted tokens under the network, whatever a sampler does with its logits.

    Token filters, guidance, blocks and orders are the sampler's and change nothing.

    ``draws`` network calls a sequence; a network that is told the mask rate is told the one that fits.

    Args:
        denoiser: The network.
        batch: ``target_ids``, ``predicted``, ``n_tokens``, ``noise_key`` and where the tokens stand.
        draws: Hidden sets a sequence.
    """
    place, predicted, denoiser = places(batch), batch["predicted"], denoiser.unguided

    def cross_entropy(masked: Tensor, u: Tensor) -> Tensor:
        return _cross_entropy(denoiser, batch, masked.gather(1, place) & predicted, u)

    # In its own place, not its column, a position's randomness does not depend on the padding before it
    at_place = torch.zeros_like(place).scatter_add(1, place, predicted.long()) > 0
    bound = any_order_bound(cross_entropy, at_place, batch["noise_key"], draws=draws)
    bound["n_tokens"] = batch["n_tokens"]
    return bound


def in_order(
    denoiser: Denoiser, batch: Mapping[str, Any], rule: RevealRule, token_filter: TokenFilter
) -> SequenceLikelihood:
    """Exact -log p of the predicted tokens under the sampler of a deterministic rule, after the token filters.

    Args:
        denoiser: The network.
        batch: As of ``any_order``; nothing is drawn.
        rule: A deterministic one. In blocks, what follows the block in which an answer ended is certainly EOS.
        token_filter: A token that it removes costs infinitely much.
    """
    assert rule.deterministic, "a random order has no exact likelihood"
    denoiser.check(batch)
    check_blocks(batch, rule.block_length)
    targets, eos_id = batch["target_ids"], denoiser.tokenizer.eos_token_id

    def reveal(hidden: Tensor) -> tuple[Tensor, Tensor]:
        row, column, states = next_by_rule(denoiser, batch, denoiser.hide(targets, hidden), hidden, rule)
        log_p = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
        log_p[row, column] = _log_probabilities(denoiser, token_filter, states, targets[row, column])
        revealed = torch.zeros_like(hidden)
        revealed[row, column] = True
        if rule.block_length is not None:
            rest = after_the_end(batch, targets, hidden & ~revealed, rule.block_length, eos_id)
            log_p = log_p.masked_fill(rest & (targets != eos_id), -torch.inf)
            revealed |= rest
        return revealed, log_p

    exact = deterministic_order(reveal, batch["predicted"])
    exact["n_tokens"] = batch["n_tokens"]
    exact["n_calls"] *= denoiser.n_readings
    return exact


def pseudo(denoiser: Denoiser, batch: Mapping[str, Any]) -> SequenceLikelihood:
    """-log of each predicted token given all others, summed (Salazar et al., 2020, arXiv:1910.14659); N calls.

    Not a likelihood: it is of no distribution over texts, and may lie below the entropy. Nothing is drawn.
    """
    predicted, denoiser = batch["predicted"], denoiser.unguided
    n = predicted.sum(1)
    nll = torch.zeros(len(predicted), dtype=torch.float64, device=predicted.device)
    mask_rate = 1 / (n + 1)
    nth = predicted.cumsum(1)
    n_calls = int(n.max()) if len(n) else 0
    for i in range(1, n_calls + 1):
        nll += _cross_entropy(denoiser, batch, predicted & (nth == i), mask_rate)
    return {
        "nll": nll,
        "n_tokens": batch["n_tokens"],
        "kind": "pseudo",
        "estimator": "pseudo_log_likelihood",
        "n_calls": n_calls,
    }


def _cross_entropy(
    denoiser: Denoiser, batch: Mapping[str, Any], hidden: Tensor, mask_rate: Tensor
) -> Float[Tensor, " batch"]:
    """Of the tokens at hidden positions, given all others; summed over each row."""
    at, targets = hidden.nonzero(as_tuple=True), batch["target_ids"]
    states = denoiser.states(batch, denoiser.hide(targets, hidden), mask_rate)[at]
    suppressed = denoiser.suppressed.to(targets.device)
    _, costs = linear_cross_entropy(states, denoiser.model.head.weight, targets[at], suppressed=suppressed)
    return torch.zeros_like(hidden, dtype=torch.float64).index_put(at, costs.double()).sum(1)


def _log_probabilities(
    denoiser: Denoiser,
    token_filter: TokenFilter,
    states: Float[Tensor, "rows d_model"],
    tokens: Int[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Of each token, after the token filters."""
    parts = [
        token_filter(denoiser.logits(part)).log_softmax(-1).gather(1, token[:, None])
        for part, token in denoiser.parts(states, tokens)
    ]
    return torch.cat(parts).squeeze(1).double()
