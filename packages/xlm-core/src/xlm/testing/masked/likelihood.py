"""What a text costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import comb, sqrt

import torch
from jaxtyping import Float64
from torch import Tensor

from xlm.testing import oracles
from xlm.testing.masked.parts import (
    MaskedParts,
    every_string,
    exact,
    inconsistent,
    pair_examples,
)
from xlm.testing.oracles import Measured
from xlm.testing.toy import TableDenoiser, digits, entropy, number

BOUND = "the any-order bound is the mean over hidden sets"


def measures() -> dict[str, Callable[[MaskedParts], Measured]]:
    """By the statement that each measures."""
    return {
        "the any-order bound of the exact posterior is its entropy": _bound_is_entropy,
        BOUND: _bound_by_enumeration,
        "a likelihood does not depend on its batch": _likelihoods_stand_alone,
    }


def bounds(model: TableDenoiser) -> Float64[Tensor, " strings"]:
    """The any-order bound of every string in nats, by enumeration of all hidden sets."""
    strings = digits(model.n_letters, model.length)
    total = torch.zeros(len(strings), dtype=torch.float64)
    for k in range(1, model.length + 1):
        for chosen in combinations(range(model.length), k):
            at = list(chosen)
            pattern = strings.clone()
            pattern[:, at] = model.n_letters
            log_p = model.log_conditional.detach()[number(pattern, model.n_letters + 1)]
            cost = -log_p.gather(2, strings[..., None])[:, at, 0].sum(1)
            total += cost / (k * comb(model.length, k))
    return total


def _expected_bound(parts: MaskedParts, model: TableDenoiser, p: Tensor) -> tuple[float, float]:
    """The estimate and its standard error, averaged over strings."""
    result = parts.predictor(model).log_likelihood(every_string(parts), draws=64)
    return float((p * result["nll"]).sum()), sqrt(float((p**2 * result["mc_variance"]).sum()))


def _bound_is_entropy(parts: MaskedParts) -> Measured:
    model = exact()
    estimate, error = _expected_bound(parts, model, model.table.flatten())
    return oracles.within_error(estimate, entropy(model.table), error)


def _bound_by_enumeration(parts: MaskedParts) -> Measured:
    model = inconsistent()
    p = torch.full((len(bounds(model)),), 1 / len(bounds(model)), dtype=torch.float64)
    estimate, error = _expected_bound(parts, model, p)
    return oracles.within_error(estimate, float((p * bounds(model)).sum()), error)


def _likelihoods_stand_alone(parts: MaskedParts) -> Measured:
    return oracles.likelihoods_stand_alone(parts.predictor(parts.network()), parts.pairs(), pair_examples())
