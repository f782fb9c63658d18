"""What a text costs, against enumeration of all orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from xlm.testing import factories, oracles
from xlm.testing.insertion import ExactInserter, InconsistentInserter
from xlm.testing.insertion_laws import insertion_bound, order_log_probabilities
from xlm.testing.oracles import Measured
from xlm.testing.toy import entropy

from xlm_ilm.oracle_case.parts import (
    LETTERS,
    ROWS,
    A,
    C,
    exact,
    fp64,
    inconsistent,
    network,
    pair_collator,
    sampler,
    steps_to,
    text_collator,
    text_law,
)

ORDERS = "the orders of a text together have the probability of the recursion over texts"
MASS = "the probabilities of all texts and of the truncated tail sum to 1"
BOUND = "the bound is the mean over numbers and sets of missing tokens"
TIGHTER = "the bound from two orders is that of enumeration, between the bound and -log p"
OWN_COST = "the likelihood is the model's, whatever the sampler's options"
BOUND_ALONE = "a bound does not depend on its batch"
ORDERS_ALONE = "a bound from orders does not depend on its batch"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        ORDERS: _orders,
        MASS: _mass,
        BOUND: _bound,
        TIGHTER: _two_orders,
        "every order of the exact network gives -log of its table": _exact_orders,
        "the bound of the exact network is its table's entropy": _exact_bound,
        BOUND_ALONE: partial(_costs_stand_alone, "bound"),
        ORDERS_ALONE: partial(_costs_stand_alone, "orders"),
        OWN_COST: _own_cost,
    }


def _orders_summed(net: InconsistentInserter) -> Float64[Tensor, " texts"]:
    """Of each text: the sum of the probabilities of its orders, as the likelihood says them; 64 draws meet all six."""
    texts = net.texts()
    rows = factories.keyed([{"input_ids": ids} for ids in texts for _ in range(64)])
    nll = sampler(net, likelihood="orders").log_likelihood(text_collator()(rows), draws=1)["nll"].view(len(texts), 64)
    nll = nll.sort(1).values
    fresh = nn.functional.pad(nll.diff(dim=1) > 1e-9, (1, 0), value=True)
    n_orders = torch.tensor([math.factorial(len(ids)) for ids in texts])
    return ((-nll).exp() * fresh).sum(1) / n_orders


def _orders() -> Measured:
    net = inconsistent()
    law = text_law(net, room=[4])
    return oracles.equal(_orders_summed(net), fp64([law[tuple(ids)] for ids in net.texts()]))


def _mass() -> Measured:
    net = inconsistent()
    tail = sum(p for ids, p in text_law(net, room=[4]).items() if len(ids) == 4)
    return oracles.has_mass(-torch.cat([_orders_summed(net), fp64([tail])]).log())


def _bound() -> Measured:
    """Of one row of each role, 4000 draws: the greatest distance."""
    net, worst = inconsistent(5, LETTERS), Measured(0.0, 3.0, "")
    for collate, counts_stop, rows in ROWS.values():
        batch = collate()(factories.keyed(rows[:1] * 4000))
        nll = sampler(net).log_likelihood(batch, draws=1)["nll"]
        expected = insertion_bound(steps_to(net, rows[0], counts_stop), counts_stop=counts_stop)
        measured = oracles.within_error(float(nll.mean()), expected, float(nll.std()) / 4000**0.5)
        worst = max(worst, measured, key=lambda m: m.error)
    return worst


def _two_orders() -> Measured:
    net, row = inconsistent(5, LETTERS), {"input_ids": [A, C, A]}
    steps = steps_to(net, row, True)
    orders = order_log_probabilities(steps, counts_stop=True)
    of_two = -float((torch.logaddexp(orders[:, None], orders) - math.log(2)).mean()) - math.log(6)
    if not -float(orders.logsumexp(0)) <= of_two <= insertion_bound(steps, counts_stop=True):
        return Measured(math.inf, 0.0, "the enumerated bounds are out of order")
    nll = sampler(net, likelihood="orders").log_likelihood(text_collator()(factories.keyed([row] * 4000)), draws=2)[
        "nll"
    ]
    return oracles.within_error(float(nll.mean()), of_two, float(nll.std()) / 4000**0.5)


def _of_exact(net: ExactInserter, copies: int, draws: int, **options: Any) -> Any:
    rows = factories.keyed([{"input_ids": ids} for ids in net.texts()] * copies)
    return sampler(net, **options).log_likelihood(text_collator()(rows), draws=draws)


def _exact_orders() -> Measured:
    net = exact()
    return oracles.equal(_of_exact(net, 1, 2, likelihood="orders")["nll"], -net.table.log())


def _exact_bound() -> Measured:
    net = exact()
    result, p = _of_exact(net, 8, 16), net.table.repeat(8) / 8
    error = math.sqrt(float((p.square() * result["mc_variance"]).sum()))
    return oracles.within_error(float((p * result["nll"]).sum()), entropy(net.table), error)


def _costs_stand_alone(likelihood: str) -> Measured:
    pairs = factories.seq2seq_examples([3, 6, 0, 1, 2], [4, 5, 3, 0, 5], n_letters=4)
    return oracles.likelihoods_stand_alone(sampler(network(), likelihood=likelihood), pair_collator(), pairs)


def _own_cost() -> Measured:
    net, batch = network(), text_collator()(factories.lm_examples([3, 0, 4], n_letters=4))
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "stop_rule": "threshold", "tokens_per_step": 3}
    plain, other = (sampler(net, **given).log_likelihood(batch, draws=2)["nll"] for given in ({}, options))
    return oracles.equal(other, plain)
