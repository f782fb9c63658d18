"""Laws of samplers by enumeration, and the test that compares samples with a law.

A sampler that fills in hidden positions is a Markov chain on the patterns of a ``TableDenoiser``; its transition matrix
is built from the chance that each position is revealed or hidden again, and the model's conditional there.

Every law takes ``start``: the letter (its digit) at each given position and None where something is to be generated;
without it, everything is hidden at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from xlm.testing.toy import TableDenoiser, digits, number

LEAST_EXPECTED = 5.0  # the usual rule for a chi-square approximation

Start = Sequence[int | None]


def any_order_law(
    model: TableDenoiser, *, block_length: int | None = None, start: Start | None = None
) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings when positions are revealed one at a time, in uniformly random order.

    Args:
        model: The denoiser.
        block_length: The order is random within blocks of so many generated positions, filled from left to right.
        start: What is given.
    """
    hidden = _hidden(model)
    generated = hidden[_number(model, start)]
    block = ((generated.cumsum(0) - 1) // (block_length or model.length)).expand_as(hidden)
    first = block.masked_fill(hidden == 0, model.length).amin(1, keepdim=True)
    return one_token_law(model, hidden * (block == first), start=start)


def one_token_law(
    model: TableDenoiser, weights: Float[Tensor, "patterns length"], *, start: Start | None = None
) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings when positions are revealed one at a time, each chosen at random.

    Args:
        model: The denoiser.
        weights: For each pattern, to what each position's chance of being next is proportional; visible ones have none.
        start: What is given.
    """
    weights = weights * _hidden(model)
    chances = weights / weights.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    at_each = torch.eye(model.length, dtype=torch.float64)  # row i: only position i is revealed
    step = sum(
        chances[:, i, None] * _transition(model, at_each[i].expand_as(chances), torch.zeros_like(chances))
        for i in range(model.length)
    )
    done = (_hidden(model).sum(1) == 0).to(torch.float64)
    return _law(model, [step + done.diag()] * model.length, start)


def ancestral_law(
    model: TableDenoiser, mask_rates: Sequence[int | float], *, start: Start | None = None
) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings under the T-step reverse process.

    Args:
        model: The denoiser; letters drawn in one step are independent given what was visible before it.
        mask_rates: The T + 1 mask rates from the start (1) to the end (0): in the step from u to v each hidden position
            is revealed with probability (u - v) / u.
        start: What is given.
    """
    return remasking_law(model, mask_rates, [0.0] * (len(mask_rates) - 1), start=start)


def remasking_law(
    model: TableDenoiser,
    mask_rates: Sequence[int | float],
    remask: Sequence[float | Float[Tensor, "patterns length"]],
    *,
    start: Start | None = None,
) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings under the T-step reverse process with remasking (ReMDM, arXiv:2503.00307).

    With sigma the chance that a generated position is hidden again, a hidden one is revealed in the step from u to v
    with probability ((1 - v) - (1 - sigma)(1 - u)) / u.

    Args:
        model: The denoiser.
        mask_rates: The T + 1 mask rates from the start (1) to the end (0).
        remask: sigma of each of the T steps: one number, or one for each position of each pattern.
        start: What is given; it is never hidden.
    """
    hidden = _hidden(model)
    generated = hidden[_number(model, start)]
    steps = []
    for (u, v), sigma in zip(pairwise(mask_rates), remask, strict=True):
        sigmas = torch.as_tensor(sigma, dtype=torch.float64).expand_as(hidden)
        reveal = (u - v + sigmas * (1 - u)) / u
        steps.append(_transition(model, reveal, sigmas * generated))
    return _law(model, steps, start)


def _hidden(model: TableDenoiser) -> Float64[Tensor, "patterns length"]:
    return (digits(model.n_letters + 1, model.length) == model.n_letters).to(torch.float64)


def _number(model: TableDenoiser, start: Start | None) -> Tensor:
    """Number of the pattern that a sampler starts from."""
    letters = start or [None] * model.length
    return number(torch.tensor([model.n_letters if d is None else d for d in letters]), model.n_letters + 1)


def _transition(
    model: TableDenoiser, reveal: Float[Tensor, "patterns length"], remask: Float[Tensor, "patterns length"]
) -> Float64[Tensor, "patterns patterns"]:
    """Chance of every pattern after one step from every pattern: hidden positions are revealed, visible ones remasked,
    independently."""
    patterns = digits(model.n_letters + 1, model.length)
    stays = torch.nn.functional.one_hot(patterns, model.n_letters + 1).to(torch.float64)
    letter = model.log_conditional.detach().exp()
    drawn = torch.cat([letter, torch.zeros_like(letter[..., :1])], dim=-1)
    masked = torch.nn.functional.one_hot(torch.tensor(model.n_letters), model.n_letters + 1).to(torch.float64)
    was_hidden = _hidden(model)[..., None]
    reveal, remask = reveal[..., None], remask[..., None]
    after = was_hidden * (reveal * drawn + (1 - reveal) * stays)
    after = after + (1 - was_hidden) * (remask * masked + (1 - remask) * stays)
    return reduce(lambda left, right: (left[:, :, None] * right[:, None, :]).flatten(1), after.unbind(1))


def _law(model: TableDenoiser, steps: Sequence[Tensor], start: Start | None) -> Float64[Tensor, " strings"]:
    base = model.n_letters + 1
    state = torch.zeros(base**model.length, dtype=torch.float64)
    state[_number(model, start)] = 1.0
    for step in steps:
        state = state @ step
    return state[number(digits(model.n_letters, model.length), base)]


def chi_square(counts: Int[Tensor, " outcomes"], probabilities: Float[Tensor, " outcomes"]) -> float:
    """P-value of Pearson's test that the counts were drawn with these probabilities; 0 after an impossible outcome.

    The rarest outcomes are pooled until they are expected ``LEAST_EXPECTED`` times.
    """
    probabilities = probabilities.to(torch.float64)
    if (counts[probabilities == 0] > 0).any():
        return 0.0
    order = probabilities.argsort()
    expected, observed = probabilities[order] * counts.sum(), counts[order].to(torch.float64)
    n_pooled = int((expected.cumsum(0) < LEAST_EXPECTED).sum()) + 1
    n_pooled = max(n_pooled, int((expected < LEAST_EXPECTED).sum()))
    expected = torch.cat([expected[:n_pooled].sum()[None], expected[n_pooled:]])
    observed = torch.cat([observed[:n_pooled].sum()[None], observed[n_pooled:]])
    statistic = ((observed - expected).square() / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))
