"""Likelihoods of masked networks against enumeration."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from xlm.sampling import TokenFilter
from xlm.testing.factories import tiny_tokenizer
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, entropy, random_table
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.likelihood import any_order, in_order, pseudo
from xlm.unmasking.rules import RevealRule

TOKENIZER = tiny_tokenizer(n_letters=4)
LETTERS, MASK = [4, 5, 6, 7], 1
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 2},
    {"tokens_per_step": 3},
    {"threshold": 0.0},
    {"threshold": 0.5},
    {"factor": 1.4},
    {"factor": 2.0},
]


def exact() -> ExactDenoiser:
    return ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)


def inconsistent() -> InconsistentDenoiser:
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)


def batch_of(ids: torch.Tensor, predicted: torch.Tensor | None = None) -> dict[str, Any]:
    predicted = torch.ones_like(ids, dtype=torch.bool) if predicted is None else predicted
    return {
        "input_ids": ids,
        "target_ids": ids,
        "predicted": predicted,
        "n_tokens": predicted.sum(1),
        "attention_mask": None,
        "positions": None,
        "segments": None,
        "index": torch.arange(len(ids)),
        "noise_key": torch.arange(len(ids)) * 7919,
    }


@pytest.mark.parametrize("order", ["top_probability", "margin", "entropy"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.5, "top_k": 3}, {"temperature": 0.0}], ids=str)
def test_exact_likelihoods_of_every_deterministic_order_sum_to_one(order, schedule, options):
    model = inconsistent()
    result = in_order(
        Denoiser(model, TOKENIZER), batch_of(model.all_strings()), RevealRule(order, **schedule), TokenFilter(**options)
    )
    assert result["kind"] == "exact"
    assert float((-result["nll"].detach()).exp().sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    "rules",
    [
        [RevealRule(order) for order in ("top_probability", "margin", "entropy")],
        [RevealRule(**schedule) for schedule in SCHEDULES],
    ],
    ids=["orders", "schedules"],
)
def test_every_order_and_every_schedule_gives_another_likelihood(rules):
    model = inconsistent()
    batch, denoiser = batch_of(model.all_strings()), Denoiser(model, TOKENIZER)
    found = [in_order(denoiser, batch, rule, TokenFilter())["nll"] for rule in rules]
    assert not any(torch.allclose(one, other) for one, other in itertools.combinations(found, 2))


def test_exact_likelihoods_are_after_the_token_filters_so_a_greedy_sampler_has_one_text():
    model = inconsistent()
    batch = batch_of(model.all_strings())
    nll = in_order(Denoiser(model, TOKENIZER), batch, RevealRule("margin"), TokenFilter(temperature=0.0))["nll"]
    assert sorted(nll.tolist())[0] == 0
    assert sorted(nll.tolist())[1] == math.inf


def test_an_exact_denoiser_has_one_likelihood_in_every_one_token_order():
    model = exact()
    denoiser, batch = Denoiser(model, TOKENIZER), batch_of(model.all_strings())
    expected = -model.table.flatten().log()
    for order in ("top_probability", "margin", "entropy"):
        torch.testing.assert_close(in_order(denoiser, batch, RevealRule(order), TokenFilter())["nll"], expected)


def test_the_any_order_bound_of_the_exact_posterior_is_the_entropy():
    model = exact()
    result = any_order(Denoiser(model, TOKENIZER), batch_of(model.all_strings()), draws=64)
    p = model.table.flatten()
    standard_error = math.sqrt(float((p**2 * result["mc_variance"]).sum()))
    assert result["kind"] == "bound"
    assert abs(float((p * result["nll"]).sum()) - entropy(model.table)) < 3 * standard_error < 0.06


def test_the_any_order_bound_of_an_inconsistent_network_is_the_mean_of_the_chain_rule_over_orders():
    model = inconsistent()
    ids = model.all_strings()[:4].repeat(4000, 1)
    nll = any_order(Denoiser(model, TOKENIZER), batch_of(ids), draws=2)["nll"].view(4000, 4)
    expected = torch.tensor(
        [sum(chain_rule(model, ids[i], order) for order in itertools.permutations(range(4))) / 24 for i in range(4)]
    )
    standard_error = nll.std(0) / math.sqrt(4000)
    assert ((nll.mean(0) - expected).abs() < 4 * standard_error).all()


def chain_rule(model: InconsistentDenoiser, ids: torch.Tensor, order: tuple[int, ...]) -> float:
    state, cost = torch.full_like(ids, MASK), 0.0
    for i in order:
        cost -= float(model(state[None])[0, i].detach().log_softmax(-1)[ids[i]])
        state[i] = ids[i]
    return cost


def test_the_pseudo_likelihood_is_each_token_given_all_others():
    model = exact()
    ids = model.all_strings()[[3, 77, 200]]
    predicted = torch.tensor([[True] * 4, [False, True, False, True], [False] * 4])
    result = pseudo(Denoiser(model, TOKENIZER), batch_of(ids, predicted))
    expected = []
    for row, at in zip(ids, predicted, strict=True):
        cost = 0.0
        for i in at.nonzero().squeeze(1).tolist():
            alone = row.clone()
            alone[i] = MASK
            cost -= float(model(alone[None])[0, i].detach().log_softmax(-1)[row[i]])
        expected.append(cost)
    assert result["nll"].tolist() == pytest.approx(expected)
    assert result["kind"] == "pseudo"
    assert result["n_calls"] == 4
    assert result["n_tokens"].tolist() == [4, 2, 0]


def test_the_pseudo_likelihood_is_no_likelihood():
    """Two letters that are always equal: given the other, each is certain."""
    table = torch.full((2, 2), 1e-300, dtype=torch.float64)
    table[0, 0] = table[1, 1] = 0.5
    model = ExactDenoiser(table, token_ids=[4, 5], vocab_size=8)
    nll = pseudo(Denoiser(model, TOKENIZER), batch_of(torch.tensor([[4, 4]])))["nll"]
    assert float(nll) < 1e-6 < entropy(table)


def test_a_batch_without_predicted_tokens_costs_nothing_and_needs_no_call():
    model = exact()
    batch = batch_of(model.all_strings()[:2], torch.zeros(2, 4, dtype=torch.bool))
    denoiser = Denoiser(model, TOKENIZER)
    for result in (
        any_order(denoiser, batch, draws=2),
        in_order(denoiser, batch, RevealRule(), TokenFilter()),
        pseudo(denoiser, batch),
    ):
        assert result["nll"].tolist() == [0, 0]
        assert result["n_tokens"].tolist() == [0, 0]
