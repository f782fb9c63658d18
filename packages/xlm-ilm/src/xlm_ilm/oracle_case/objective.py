"""What is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from xlm.testing import factories, oracles
from xlm.testing.insertion_laws import Steps, insertion_bound, order_log_probabilities
from xlm.testing.oracles import DRAWS, Measured

from xlm_ilm import dropping
from xlm_ilm.oracle_case.parts import (
    BOS,
    EOS,
    PAD,
    ROWS,
    VOCAB,
    A,
    B,
    C,
    D,
    exact,
    fp64,
    loss_of,
    network,
    pair_collator,
    pair_examples,
    steps_to,
    text_collator,
)

LOSS_BOUND = "the loss's estimate of -log p has the bound as its mean"
ABOVE = "the mean of the loss's estimate is not below -log p, the sum over all orders"
FORMULA = "the loss is the dense formula, row by row"
STATIONARY = "the expected loss is stationary at the exact network"
ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"
UNIFORM = "how many tokens are missing is uniform, and so is which"
SPREAD = "numbers of missing tokens are spread several times more evenly than independent ones"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        LOSS_BOUND: _loss_bound,
        ABOVE: _above,
        FORMULA: _formula,
        STATIONARY: _stationary,
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
        UNIFORM: _uniform,
        SPREAD: _spread,
    }


def _missing(batch: Any, row: int) -> frozenset[int]:
    """Places of a row's missing tokens, all tokens of which are different ones behind the prompt."""
    n = batch["full_ids"].shape[1] if batch["full_mask"] is None else int(batch["full_mask"][row].sum())
    kept = batch["input_ids"][row].tolist()
    places = [place for place in range(n) if batch["span"][row, place] >= 0]
    first = min(places, default=n)
    return frozenset(place for place in places if int(batch["full_ids"][row, place]) not in kept[first:])


def _expected_costs(net: Any) -> list[tuple[float, Steps, bool]]:
    """Of one row of each role: the mean of the loss's estimate over numbers and sets of missing tokens, which all occur
    in 600 draws of noise; the steps on the way to the row; and whether its end counts."""
    costs = []
    for collate, counts_stop, rows in ROWS.values():
        batch, steps = collate()(factories.keyed(rows[:1] * 600)), steps_to(net, rows[0], counts_stop)
        values = {_missing(batch, row): nll for row, nll in enumerate(loss_of(net).loss_fn(batch)["nll"].tolist())}
        n = max(map(len, steps))
        mean = sum(values.get(missing, math.inf) / math.comb(n, len(missing)) for missing in steps) / (n + 1)
        costs.append((mean, steps, counts_stop))
    return costs


def _loss_bound() -> Measured:
    costs = _expected_costs(network())
    expected = [insertion_bound(steps, counts_stop=counts_stop) for _, steps, counts_stop in costs]
    return oracles.equal(fp64([cost for cost, _, _ in costs]), fp64(expected))


def _above() -> Measured:
    costs = _expected_costs(network())
    orders = [order_log_probabilities(steps, counts_stop=counts_stop) for _, steps, counts_stop in costs]
    least = torch.stack([-log_p.logsumexp(0) for log_p in orders])
    return oracles.not_below(fp64([cost for cost, _, _ in costs]), least)


def _formula() -> Measured:
    """With stop_weight=2.5; where the stop head learns, its target is that nothing is missing."""
    net, ours, expected = network(), [], []
    for role, (collate, counts_stop, rows) in ROWS.items():
        examples = factories.keyed(rows * 8)
        steps = [steps_to(net, row, counts_stop) for row in rows]
        batch, total, n_tokens = collate()(examples), 0.0, 0
        for i in range(len(examples)):
            missing, of_row = _missing(batch, i), steps[i % len(rows)]
            step, length = of_row[missing], max(map(len, of_row))
            cost = -sum(step.log_p.values()) / len(missing) if missing else 0.0
            if role != "templates":
                cost -= step.log_continue if missing else 2.5 * step.log_stop
            total, n_tokens = total + (length + 1) * cost, n_tokens + length + counts_stop
        ours.append(float(loss_of(net, stop_weight=2.5).loss_fn(batch)["loss"].detach()))
        expected.append(total / n_tokens)
    return oracles.equal(fp64(ours), fp64(expected))


def _stationary() -> Measured:
    """Of texts of unequal length, over all that can be missing: were all weights equal, p / (L + 1) would be learnt."""
    net = exact(2, 3)
    expected = torch.zeros((), dtype=torch.float64)
    for p, ids in zip(net.table.tolist(), net.texts(), strict=True):
        full = torch.tensor([[BOS, *ids]])
        for n in range(len(ids) + 1):
            sets = list(combinations(range(1, len(ids) + 1), n))
            for missing in sets:
                dropped = torch.isin(torch.arange(len(ids) + 1), torch.tensor(missing, dtype=torch.int64))[None]
                out = loss_of(net).loss_fn(_without(full, dropped))
                share = p / (len(ids) + 1) / len(sets)
                expected = expected + share * out["loss"] * out["loss_denominator"]
    gradients = torch.autograd.grad(expected, [net.insert_logits, net.stop_logits])
    error = max(float(gradient.abs().max()) for gradient in gradients)
    return Measured(error, 1e-9, "largest slope")


def _without(full: Tensor, dropped: Tensor) -> Any:
    """The batch of a text that misses some tokens."""
    span = dropping.span_numbers(torch.arange(full.shape[1])[None] > 0)
    kept = dropping.drop(full, None, span, dropped, PAD)
    n_tokens = torch.tensor([full.shape[1]])
    return {**vars(kept), "span": span, "counts_stop": True, "trains_stop": True, "n_tokens": n_tokens}


def _adds_up_texts() -> Measured:
    return oracles.adds_up(loss_of(network()), text_collator(), factories.lm_examples([3, 8, 0, 5], n_letters=4))


def _adds_up_pairs() -> Measured:
    return oracles.adds_up(loss_of(network()), pair_collator(), pair_examples())


def _gradient() -> Measured:
    batch = text_collator()(factories.lm_examples([3, 8, 0, 5], n_letters=4))
    return oracles.has_gradient(loss_of(network(), stop_weight=2.5), batch)


def _uniform() -> Measured:
    """All 32 sets of what can be missing of five tokens."""
    ids = [A, B, C, D, EOS]
    batch = text_collator("window")(factories.keyed([{"input_ids": ids}] * DRAWS))
    missing = torch.zeros(DRAWS, VOCAB, dtype=torch.int64)
    missing[batch["rows"] // batch["input_ids"].shape[1], batch["tokens"]] = 1
    number = (missing[:, ids] * 2 ** torch.arange(5)).sum(1)
    sizes = [i.bit_count() for i in range(32)]
    shares = fp64([1 / 6 / math.comb(5, n) for n in sizes])
    return oracles.has_law(torch.bincount(number, minlength=32), shares)


def _spread() -> Measured:
    """Independent numbers uniform on 0..8 give 1; the mean of 32 of them has a variance of (9^2 - 1) / 12 / 32."""
    numbers = text_collator("window")(factories.lm_examples([8] * 32 * 200, n_letters=4))["n_dropped"].double()
    variance = float(numbers.reshape(200, 32).mean(1).var())
    return Measured(variance * 12 * 32 / 80, 0.2, "variance of a batch's mean number / that of independent ones")
