"""What a text costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from xlm.testing import factories, oracles
from xlm.testing.oracles import Measured
from xlm.testing.toy import digits

from xlm_arlm.oracle_case.parts import (
    EOS,
    FEW,
    LENGTH,
    MOST,
    PAIRS,
    A,
    B,
    every_text,
    loss_of,
    network,
    of_table,
    pair_examples,
    sampler,
    table,
    text_batch,
    window_batch,
)

WINDOWS_MASS = "the probabilities of all windows sum to 1"
TEXTS_MASS = "the probabilities of all texts and of going on sum to 1"
TABLE_COST = "the likelihood of a text is -log of its table's p, whatever the sampler's options"
ANSWER_COST = "the likelihood of an answer is conditional on its prompt"
COSTS_ALONE = "a likelihood does not depend on its batch"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        WINDOWS_MASS: _windows_mass,
        TEXTS_MASS: _texts_mass,
        TABLE_COST: _table_cost,
        ANSWER_COST: _answer_cost,
        COSTS_ALONE: _costs_stand_alone,
    }


def _windows_mass() -> Measured:
    rows = torch.tensor([EOS, A, B])[digits(3, LENGTH)].tolist()
    return oracles.has_mass(sampler(network(FEW)).log_likelihood(window_batch(rows))["nll"])


def _texts_mass() -> Measured:
    net = network(FEW)
    ended, going_on = every_text(MOST)
    nll = [sampler(net).log_likelihood(batch)["nll"] for batch in (text_batch(ended), window_batch(going_on))]
    return oracles.has_mass(torch.cat(nll))


def _table_cost() -> Measured:
    net = table()
    batch = text_batch(net.all_strings().tolist())
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "repetition_penalty": 2.0, "min_new_tokens": 3}
    costs = [sampler(net, **options).log_likelihood(batch)["nll"], loss_of(net).loss_fn(batch)["nll"]]
    return oracles.equal(torch.stack(costs), -net.table.flatten().log().expand(2, -1))


def _answer_cost() -> Measured:
    net = table()
    rows = [{"prompt_ids": ids[:n], "target_ids": ids[n:]} for ids in net.all_strings().tolist() for n in (1, 3)]
    laws = {prompt: of_table(net, prompt) for prompt in {tuple(row["prompt_ids"]) for row in rows}}
    expected = [-math.log(laws[tuple(row["prompt_ids"])][tuple(row["target_ids"])]) for row in rows]
    nll = sampler(net).log_likelihood(PAIRS(factories.keyed(rows)))["nll"]
    return oracles.equal(nll, torch.tensor(expected, dtype=torch.float64))


def _costs_stand_alone() -> Measured:
    return oracles.likelihoods_stand_alone(sampler(network()), PAIRS, pair_examples())
