"""Laws of samplers by enumeration, and the test that compares samples with a law.

A sampler that fills in hidden positions is a Markov chain on the patterns of a ``TableDenoiser``; its transition matrix
is built from the chance that each position is revealed and the model's conditional there.
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


def any_order_law(model: TableDenoiser) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings when positions are revealed one at a time, in uniformly random order."""
    hidden = _hidden(model)
    at_each = torch.eye(model.length, dtype=torch.float64)  # row i: only position i is revealed
    step = sum(
        (hidden[:, i] / hidden.sum(1).clamp_min(1))[:, None] * _transition(model, at_each[i].expand_as(hidden))
        for i in range(model.length)
    )
    done = (hidden.sum(1) == 0).to(torch.float64)
    return _law(model, [step + done.diag()] * model.length)


def ancestral_law(model: TableDenoiser, mask_rates: Sequence[int | float]) -> Float64[Tensor, " strings"]:
    """Probabilities of all strings under the T-step reverse process, which starts with everything hidden.

    Args:
        model: The denoiser; letters drawn in one step are independent given what was visible before it.
        mask_rates: The T + 1 mask rates from the start (1) to the end (0): in the step from u to v each hidden position
            is revealed with probability (u - v) / u.
    """
    hidden = _hidden(model)
    chances = [(u - v) / u for u, v in pairwise(mask_rates)]
    return _law(model, [_transition(model, torch.full_like(hidden, chance)) for chance in chances])


def _hidden(model: TableDenoiser) -> Float64[Tensor, "patterns length"]:
    return (digits(model.n_letters + 1, model.length) == model.n_letters).to(torch.float64)


def _transition(model: TableDenoiser, reveal: Float[Tensor, "patterns length"]) -> Float64[Tensor, "patterns patterns"]:
    """Chance of every pattern after one step from every pattern, positions revealed independently."""
    patterns = digits(model.n_letters + 1, model.length)
    stays = torch.nn.functional.one_hot(patterns, model.n_letters + 1).to(torch.float64)
    letter = model.log_conditional.detach().exp()
    drawn = torch.cat([letter, torch.zeros_like(letter[..., :1])], dim=-1)
    reveal = (reveal * _hidden(model))[..., None]
    after = reveal * drawn + (1 - reveal) * stays
    return reduce(lambda left, right: (left[:, :, None] * right[:, None, :]).flatten(1), after.unbind(1))


def _law(model: TableDenoiser, steps: Sequence[Tensor]) -> Float64[Tensor, " strings"]:
    base = model.n_letters + 1
    state = torch.zeros(base**model.length, dtype=torch.float64)
    state[-1] = 1.0  # everything hidden
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
