"""Likelihoods: estimators that families share, and the one place where nats become perplexity and bits per byte.

Sums are in fp64. An estimator gives nats a sequence (``SequenceLikelihood``); ``summarise`` turns those of a data set
into the numbers that are printed, with their standard errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.noise import Stream, uniforms
from xlm.protocols import EventSpace, Kind, SequenceLikelihood

OFFSET_STREAM = Stream.LIKELIHOOD << 32  # draw d uses OFFSET_STREAM + 1 + d: far from any sampler's steps


def any_order_bound(
    cross_entropy: Callable[[Bool[Tensor, "batch seq"], Float[Tensor, " batch"]], Float[Tensor, " batch"]],
    predicted: Bool[Tensor, "batch seq"],
    noise_key: Int[Tensor, " batch"],
    *,
    draws: int,
) -> SequenceLikelihood:
    """Any-order bound on -log p(predicted positions | the others), for any network that fills in hidden tokens.

    NELBO = sum over k = 1..N of (1/k) E_{|S|=k} [sum over i in S of CE_i(x with S hidden)], which is the mean over
    orders of the chain rule (Uria et al., 2014). Each draw takes one k, systematic over the draws with a random offset,
    and one uniform set S of that size, and weighs its cross-entropy with N/k: nothing is cut off, nothing diverges.

    Args:
        cross_entropy: Nats summed over the hidden positions of each row, given which positions are hidden and the noise
            level u. u is the k-th smallest of the N uniforms whose k smallest choose S, so u ~ Beta(k, N - k + 1) as a
            network conditioned on the noise level needs; a time-free network ignores it.
        predicted: The N positions that the sum runs over (not prompt, given cells or padding).
        noise_key: Where the randomness of each row comes from.
        draws: Network calls a row; ``mc_variance`` needs two.

    Returns:
        ``n_tokens`` counts ``predicted``; a family whose denominator differs (fill tokens are predicted but are not
        real) replaces it.
    """
    if draws < 1:
        raise UserError("must be 1 or more", where="harness.likelihood_draws", value=draws, fix="use 1 or more draws")
    n = predicted.sum(-1)
    offset = uniforms(noise_key, 1, stream=OFFSET_STREAM, dtype=torch.float64)[:, 0]
    values = []
    for i in range(draws):
        k = ((offset + i) / draws * n).long().clamp_max(n - 1).clamp_min(0) + 1
        scores = uniforms(noise_key, predicted.shape[1], stream=OFFSET_STREAM + 1 + i, dtype=torch.float64)
        scores = scores.masked_fill(~predicted, 2.0)
        u = scores.sort(dim=-1).values.gather(1, k[:, None] - 1)
        hidden = (scores <= u) & predicted
        values.append(n.double() / k * cross_entropy(hidden, u[:, 0].clamp_max(1.0)).to(torch.float64))
    estimates = torch.stack(values)
    result: SequenceLikelihood = {
        "nll": estimates.mean(0),
        "n_tokens": n,
        "kind": "bound",
        "estimator": "any_order",
        "n_calls": draws,
    }
    if draws > 1:
        result["mc_variance"] = _systematic_variance(estimates)
    return result


def _systematic_variance(estimates: Float64[Tensor, "draws batch"]) -> Float64[Tensor, " batch"]:
    """Variance of the mean of a systematic sample, from successive differences (Wolter, 2007, section 8.2)."""
    return estimates.diff(dim=0).square().mean(0) / (2 * len(estimates))


def deterministic_order(
    reveal: Callable[[Bool[Tensor, "batch seq"]], tuple[Bool[Tensor, "batch seq"], Float[Tensor, "batch seq"]]],
    predicted: Bool[Tensor, "batch seq"],
) -> SequenceLikelihood:
    """Exact -log p under a sampler whose revealed positions are a function of the state (arXiv:2603.01367).

    The sampler is run teacher-forced: the true tokens take the place of its draws. It must choose positions from the
    visible tokens alone, with ties settled (lowest index first), and may reveal several a call.

    Args:
        reveal: One step with the true tokens: given which positions are hidden, the hidden positions that the sampler
            reveals, and at those the log-probability (nats, after the token filters; may be -inf) of the true token.
        predicted: Positions that are hidden at the start.
    """
    hidden = predicted
    nll = torch.zeros(len(predicted), dtype=torch.float64, device=predicted.device)
    n_calls = 0
    while hidden.any():
        revealed, log_probability = reveal(hidden)
        revealed = revealed & hidden
        assert (revealed.any(-1) | ~hidden.any(-1)).all(), "a step revealed nothing in a row with hidden tokens"
        nll = nll - torch.where(revealed, log_probability.to(torch.float64), 0.0).sum(-1)
        hidden = hidden & ~revealed
        n_calls += 1
    return {
        "nll": nll,
        "n_tokens": predicted.sum(-1),
        "kind": "exact",
        "estimator": "deterministic_order",
        "n_calls": n_calls,
    }


@dataclass(frozen=True)
class LikelihoodSummary:
    """The likelihood of a data set. Standard errors are over sequences; None means n/a."""

    nats_per_token: float
    nats_per_token_se: float | None
    """Includes the Monte-Carlo part; n/a for one sequence."""
    mc_se: float | None
    """The Monte-Carlo part of ``nats_per_token_se`` alone; n/a where nothing was drawn, or only once a sequence."""
    perplexity: float | None
    """exp(nats per token); n/a for a pseudo-likelihood."""
    perplexity_se: float | None
    bits_per_byte: float | None
    """Per UTF-8 byte of the source text; n/a for a lossy tokenizer and for a pseudo-likelihood."""
    bits_per_byte_se: float | None
    n_tokens: int
    n_sequences: int
    kind: Kind
    estimator: str
    event_space: EventSpace
    n_calls: int | float
    """Network calls a sequence."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values under the names above, for JSON."""
        return asdict(self)


def summarise(
    nll: Float64[Tensor, " n"],
    n_tokens: Int[Tensor, " n"],
    *,
    n_bytes: Int[Tensor, " n"] | None,
    kind: Kind,
    estimator: str,
    event_space: EventSpace,
    n_calls: int | float,
    mc_variance: Float64[Tensor, " n"] | None = None,
) -> LikelihoodSummary:
    """Nats per token over a data set: the ratio of the sums, so long sequences count more than short ones.

    Args:
        nll: -log p of each sequence, or its estimate, nats.
        n_tokens: Predicted real tokens of each sequence.
        n_bytes: UTF-8 bytes of each sequence's source text; None where tokens do not give the text back.
        kind: What ``nll`` is; a pseudo-likelihood has neither perplexity nor bits per byte.
        estimator: Its name, for the table.
        event_space: What the likelihood is the probability of.
        n_calls: Network calls a sequence.
        mc_variance: Variance of the Monte-Carlo error of each ``nll``.
    """
    tokens = int(n_tokens.sum())
    if tokens == 0:
        fix = "give a data set that is not empty"
        raise UserError("no tokens to evaluate", where="datamodule.dataset_managers", fix=fix)
    nats, nats_se = _ratio(nll, n_tokens)
    per_byte, per_byte_se = (None, None) if n_bytes is None or kind == "pseudo" else _ratio(nll, n_bytes)
    perplexity = None if kind == "pseudo" else math.exp(nats) if nats < 700 else math.inf
    return LikelihoodSummary(
        nats_per_token=nats,
        nats_per_token_se=nats_se,
        mc_se=None if mc_variance is None else math.sqrt(float(mc_variance.sum())) / tokens,
        perplexity=perplexity,
        perplexity_se=None if perplexity is None or nats_se is None else perplexity * nats_se,
        bits_per_byte=None if per_byte is None else per_byte / math.log(2),
        bits_per_byte_se=None if per_byte_se is None else per_byte_se / math.log(2),
        n_tokens=tokens,
        n_sequences=len(nll),
        kind=kind,
        estimator=estimator,
        event_space=event_space,
        n_calls=n_calls,
    )


def _ratio(values: Tensor, sizes: Tensor) -> tuple[float, float | None]:
    """sum(values) / sum(sizes) and its standard error by the delta method (Cochran, 1977, section 2.11)."""
    values, sizes = values.to(torch.float64), sizes.to(torch.float64)
    ratio = values.sum() / sizes.sum()
    n = len(values)
    if n < 2 or not ratio.isfinite():
        return float(ratio), None
    residuals = values - ratio * sizes
    return float(ratio), float((residuals.square().sum() * n / (n - 1)).sqrt() / sizes.sum())


def row_sums(
    values: Float[Tensor, " chosen"], places: Int[Tensor, " chosen"], shape: tuple[int, int]
) -> Float[Tensor, " batch"]:
    """Sum of each row's values, given their different places in a flattened batch of ``shape``; no atomic additions.

    >>> row_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 5]), (3, 3)).tolist()
    [3.0, 4.0, 0.0]
    """
    return values.new_zeros(shape).flatten().scatter(0, places, values).view(shape).sum(1)
