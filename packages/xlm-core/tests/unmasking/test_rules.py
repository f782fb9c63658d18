"""Which positions are revealed next, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.unmasking.rules import RevealRule


def logits_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def scored(rule: RevealRule, logits: torch.Tensor, u: float = 0.5) -> list[float]:
    return rule.scores(logits, torch.full((len(logits),), u, dtype=torch.float64)).tolist()


LOGITS = logits_of([0.6, 0.3, 0.1], [0.5, 0.05, 0.45], [0.55, 0.225, 0.225])


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("top_probability", [0.6, 0.5, 0.55]),
        ("margin", [0.3, 0.05, 0.325]),
        (
            "entropy",
            [sum(p * math.log(p) for p in row) for row in ([0.6, 0.3, 0.1], [0.5, 0.05, 0.45], [0.55, 0.225, 0.225])],
        ),
    ],
)
def test_each_order_scores_certainty_in_its_own_way(order, expected):
    assert scored(RevealRule(order), LOGITS) == pytest.approx(expected)


def test_a_random_order_is_that_of_the_uniform_numbers_and_asks_no_network():
    assert scored(RevealRule("random"), LOGITS, u=0.25) == [0.25] * 3
    assert not RevealRule("random").asks_network
    assert RevealRule("random", threshold=0.5).asks_network


@pytest.mark.parametrize(
    ("order", "log_certainty"),
    [
        ("top_probability", math.log(0.6)),
        ("margin", math.log(0.3)),
        ("entropy", scored(RevealRule("entropy"), LOGITS)[0]),
    ],
)
def test_gumbel_noise_of_scale_tau_is_added_to_the_log_of_the_certainty(order, log_certainty):
    noise = -math.log(-math.log(0.25))
    assert scored(RevealRule(order, gumbel=2.0), LOGITS, u=0.25)[0] == pytest.approx(log_certainty + 2.0 * noise)


def test_gumbel_scores_are_finite_even_without_a_margin_or_with_a_uniform_number_of_zero():
    rule = RevealRule("margin", gumbel=1.0)
    assert all(math.isfinite(score) for score in scored(rule, logits_of([0.5, 0.5]), u=0.0))


def chosen(rule: RevealRule, p: list[float], hidden: list[int] | None = None) -> list[int]:
    """Positions that a row of these top probabilities reveals; the score is p itself."""
    at = torch.ones(len(p), dtype=torch.bool) if hidden is None else torch.tensor(hidden, dtype=torch.bool)
    probability = torch.tensor([p], dtype=torch.float64)
    scores = probability.masked_fill(~at, -torch.inf)
    reveal = rule.choose(scores, probability.masked_fill(~at, -1.0))
    return reveal[0].nonzero().squeeze(1).tolist()


def test_so_many_tokens_a_step_are_revealed_most_certain_first_and_ties_go_to_the_first_position():
    assert chosen(RevealRule(tokens_per_step=2), [0.5, 0.9, 0.5, 0.5]) == [0, 1]
    assert chosen(RevealRule(tokens_per_step=9), [0.5, 0.9], hidden=[1, 0]) == [0]


def test_a_threshold_reveals_what_exceeds_it_and_one_where_nothing_does():
    rule = RevealRule(threshold=0.8)
    assert chosen(rule, [0.9, 0.8, 0.85, 0.1]) == [0, 2]
    assert chosen(rule, [0.9, 0.8, 0.85, 0.1], hidden=[0, 1, 0, 1]) == [1]
    assert chosen(RevealRule(threshold=0.0), [0.2, 0.1], hidden=[1, 0]) == [0]
    assert chosen(RevealRule(threshold=1.0), [1.0, 1.0]) == [0]


def test_a_factor_reveals_the_largest_k_for_which_k_plus_one_times_the_doubt_stays_below_it():
    p = [0.9, 0.5, 0.8, 0.95]  # (k + 1)(1 - p_k): 2 x 0.05 = 0.1, 3 x 0.1 = 0.3, 4 x 0.2 = 0.8, 5 x 0.5 = 2.5
    assert chosen(RevealRule(factor=0.05), p) == [3]
    assert chosen(RevealRule(factor=0.2), p) == [3]
    assert chosen(RevealRule(factor=0.7), p) == [0, 3]
    assert chosen(RevealRule(factor=0.9), p) == [0, 2, 3]
    assert chosen(RevealRule(factor=3.0), p) == [0, 1, 2, 3]
    assert chosen(RevealRule(factor=100.0), p, hidden=[1, 0, 1, 0]) == [0, 2]


def test_where_nothing_is_sure_the_order_says_which_position_comes_first():
    scores = torch.tensor([[0.1, 0.3, 0.2]])
    p = torch.tensor([[0.5, 0.4, 0.3]])
    for rule in (RevealRule("margin", threshold=0.9), RevealRule("margin", factor=0.1)):
        assert rule.choose(scores, p).tolist() == [[False, True, False]]


def test_a_row_without_hidden_positions_reveals_nothing():
    nothing = torch.full((1, 3), -torch.inf)
    for rule in (RevealRule(), RevealRule(threshold=0.0), RevealRule(factor=10.0)):
        assert not rule.choose(nothing, torch.full((1, 3), -1.0)).any()


def test_only_orders_of_the_network_alone_are_deterministic():
    assert RevealRule("margin", threshold=0.9).deterministic
    assert not RevealRule("random").deterministic
    assert not RevealRule("margin", gumbel=0.5).deterministic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gumbel": -1.0}, r"0 or more in predictor\.gumbel"),
        ({"gumbel": math.inf}, r"0 or more in predictor\.gumbel"),
        ({"order": "random", "gumbel": 1.0}, r"changes nothing of a random order in predictor\.gumbel"),
        ({"tokens_per_step": 0}, r"1 or more in predictor\.tokens_per_step"),
        ({"threshold": 1.1}, r"\[0, 1\] in predictor\.threshold"),
        ({"factor": 0.0}, r"above 0 in predictor\.factor"),
        ({"threshold": 0.9, "factor": 1.0}, r"cannot be combined with factor in predictor\.threshold"),
        ({"threshold": 0.9, "tokens_per_step": 2}, r"combined with tokens_per_step in predictor\.threshold"),
        ({"factor": 0.9, "tokens_per_step": 2}, r"combined with tokens_per_step in predictor\.factor"),
    ],
)
def test_options_that_cannot_be_are_refused_by_their_key(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        RevealRule(**options)
