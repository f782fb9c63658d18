"""Blocks from left to right: which positions are revealed when, where a text ends, and what it costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from xlm.data.layout import completions, empty_canvases, prediction_batch, templates, windows
from xlm.errors import UserError
from xlm.sampling import TokenFilter
from xlm.testing.factories import keyed, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import any_order_law, chi_square
from xlm.testing.toy import InconsistentDenoiser
from xlm.trace import Trace, by_row, replay
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import TokenRule, fill_by_rule
from xlm.unmasking.likelihood import in_order
from xlm.unmasking.rules import RevealRule

TOKENIZER = tiny_tokenizer(n_letters=4)
PAD, MASK, EOS = 0, 1, 3
PLAIN = TokenRule(TokenFilter())
DRAWS, LEAST_P = 20_000, 1e-3
RULES = [
    RevealRule("margin", block_length=2),
    RevealRule("entropy", block_length=2, tokens_per_step=2),
    RevealRule("top_probability", block_length=2, threshold=0.5),
    RevealRule("margin", block_length=1),
]


class Says(nn.Module):
    """Each column's letter with a probability of its own, else letter 5; counts its calls."""

    def __init__(self, p: list[float], letters: list[int] | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.logits = torch.full((len(p), 8), -1e4, dtype=torch.float64)
        self.logits[:, 5] = (1 - torch.tensor(p, dtype=torch.float64)).log()
        self.logits[range(len(p)), letters or [4] * len(p)] = torch.tensor(p, dtype=torch.float64).log()
        self.calls: list[torch.Tensor] = []

    def hidden(self, input_ids, attention_mask=None, **_):
        self.calls.append(input_ids.clone())
        return self.logits.expand(len(input_ids), -1, -1)


def canvases(n: int, size: int, *, ends: bool = True) -> Any:
    layout = empty_canvases(n, MASK, size)
    return prediction_batch(unconditional_examples(n), layout, prompt_lengths=[0] * n, ends_at_eos=ends)


def to_fill(*rows: list[int]) -> Any:
    """Templates: 1 where a token is given."""
    examples = keyed([{"input_ids": [6] * len(fixed), "fixed": fixed} for fixed in rows])
    layout = templates(examples, PAD, 10)
    layout.ids = layout.ids.masked_fill(layout.predicted, MASK)
    return prediction_batch(examples, layout, prompt_lengths=[0] * len(rows), ends_at_eos=False)


def revealed(rule: RevealRule, model: nn.Module, batch: Any) -> list[list[int]]:
    """Positions of the first row, step by step."""
    trace = Trace()
    fill_by_rule(Denoiser(model, TOKENIZER), batch, rule, PLAIN, trace)
    steps: dict[int, list[int]] = {}
    for event in trace.events():
        if event["row"] == 0:
            steps.setdefault(event["step"], []).append(event["position"])
    return list(steps.values())


P = [0.6, 0.7, 0.9, 0.65, 0.95, 0.8]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [[4], [2], [5], [1], [3], [0]]),
        ({"block_length": 3}, [[2], [1], [0], [4], [5], [3]]),
        ({"block_length": 1}, [[0], [1], [2], [3], [4], [5]]),
        ({"block_length": 3, "tokens_per_step": 2}, [[1, 2], [0], [4, 5], [3]]),
        ({"block_length": 2, "tokens_per_step": 5}, [[0, 1], [2, 3], [4, 5]]),
        ({"block_length": 3, "threshold": 0.67}, [[1, 2], [0], [4, 5], [3]]),
        ({"block_length": 3, "factor": 0.5}, [[2], [1], [0], [4], [5], [3]]),
        ({"block_length": 6}, [[4], [2], [5], [1], [3], [0]]),
    ],
    ids=str,
)
def test_blocks_are_filled_from_left_to_right_and_within_one_the_rule_says_what_comes_next(options, steps):
    assert revealed(RevealRule(**options), Says(P), canvases(1, 6)) == steps


def test_given_tokens_are_not_counted_and_the_last_block_of_a_template_may_be_short():
    batch = to_fill([0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 0, 0])
    assert revealed(RevealRule(block_length=2), Says(P), batch) == [[3], [0], [4]]
    n_calls = fill_by_rule(Denoiser(Says(P), TOKENIZER), batch, RevealRule(block_length=2), PLAIN, None)[1]
    assert n_calls.tolist() == [3, 4]


def test_a_random_order_within_blocks_has_the_mean_law_over_the_orders_that_keep_to_them():
    model = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8)
    rule = RevealRule("random", block_length=2)
    ids, _ = fill_by_rule(Denoiser(model, TOKENIZER), canvases(DRAWS, 4), rule, PLAIN, None)
    assert chi_square(model.count(ids), any_order_law(model, block_length=2)) > LEAST_P
    assert chi_square(model.count(ids), any_order_law(model)) < 1e-6


def test_an_answer_is_done_with_the_block_in_which_eos_appears_and_what_follows_is_eos_without_calls():
    model = Says([1 - 1e-9] * 6, letters=[4, EOS, 4, EOS, 4, 4])
    trace, batch = Trace(), canvases(2, 6)
    rule = RevealRule("random", block_length=3)
    ids, n_calls = fill_by_rule(Denoiser(model, TOKENIZER), batch, rule, PLAIN, trace)
    assert ids.tolist() == [[4, EOS, 4, EOS, EOS, EOS]] * 2
    assert n_calls.tolist() == [3, 3]
    assert len(model.calls) == 3
    for events in by_row(trace.events(), 2):
        states = list(replay(events, [MASK] * 6))
        assert states[-1] == [4, EOS, 4, EOS, EOS, EOS]
        assert len(states) == 4


def test_without_blocks_or_in_a_template_eos_stops_nothing():
    model = Says([1 - 1e-9] * 6, letters=[4, EOS, 4, 4, 4, 4])
    for batch, block_length in ((canvases(1, 6), None), (canvases(1, 6, ends=False), 3)):
        ids, n_calls = fill_by_rule(
            Denoiser(model, TOKENIZER), batch, RevealRule("random", block_length=block_length), PLAIN, None
        )
        assert ids.tolist() == [[4, EOS, 4, 4, 4, 4]]
        assert n_calls.tolist() == [6]


def test_an_eos_of_the_prompt_does_not_end_the_answer():
    examples = keyed([{"prompt_ids": [EOS, EOS]}])
    batch = prediction_batch(examples, completions(examples, MASK, 6, 6), prompt_lengths=[2], ends_at_eos=True)
    ids, _ = fill_by_rule(Denoiser(Says([1 - 1e-9] * 6), TOKENIZER), batch, RevealRule(block_length=2), PLAIN, None)
    assert ids.tolist() == [[EOS, EOS, 4, 4, 4, 4]]


def model_with_eos() -> InconsistentDenoiser:
    return InconsistentDenoiser(token_ids=[4, 5, EOS], vocab_size=8)


def every_string(model: InconsistentDenoiser, *, ends: bool) -> dict[str, Any]:
    ids = model.all_strings()
    layout = windows(ids.tolist(), PAD, model.length)
    where = {"attention_mask": None, "positions": None, "segments": None, "ends_at_eos": torch.full((len(ids),), ends)}
    texts = {"input_ids": ids, "target_ids": ids, "predicted": layout.predicted, "n_tokens": layout.n_tokens}
    return {**texts, **where, "index": torch.arange(len(ids)), "noise_key": torch.arange(len(ids))}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("ends", [True, False], ids=["canvas", "window"])
def test_exact_likelihoods_in_blocks_sum_to_one_and_are_the_law_of_the_samples(rule, ends):
    model = model_with_eos()
    denoiser, tokens = Denoiser(model, TOKENIZER), TokenRule(TokenFilter(temperature=0.8))
    law = (-in_order(denoiser, every_string(model, ends=ends), rule, tokens.filter)["nll"].detach()).exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    ids, _ = fill_by_rule(denoiser, canvases(DRAWS, 4, ends=ends), rule, tokens, None)
    assert chi_square(model.count(ids), law) > LEAST_P


def test_a_text_that_goes_on_after_the_block_in_which_it_ended_cannot_be():
    model = model_with_eos()
    nll = in_order(Denoiser(model, TOKENIZER), every_string(model, ends=True), RULES[0], TokenFilter())["nll"]
    strings = model.all_strings()
    ended = (strings[:, :2] == EOS).any(1)
    goes_on = ended & (strings[:, 2:] != EOS).any(1)
    assert nll[goes_on].isinf().all()
    assert nll[~goes_on].isfinite().all()


@pytest.mark.parametrize(("size", "length", "fits"), [(6, 4, 3), (7, 3, 1), (7, 5, 7), (6, 12, 6)])
def test_blocks_that_do_not_fill_a_canvas_are_refused_before_any_call_naming_one_that_fits(size, length, fits):
    model = Says([0.5] * size)
    message = rf"does not divide a canvas of {size} positions in predictor\.block_length \({length}\); fix: use {fits}$"
    with pytest.raises(UserError, match=message):
        fill_by_rule(Denoiser(model, TOKENIZER), canvases(2, size), RevealRule(block_length=length), PLAIN, None)
    batch = every_string(model_with_eos(), ends=True)
    with pytest.raises(UserError, match=r"predictor\.block_length"):
        in_order(Denoiser(model, TOKENIZER), batch, RevealRule(block_length=3), TokenFilter())
    assert not model.calls


def test_a_block_has_at_least_one_position():
    with pytest.raises(UserError, match=r"1 or more in predictor\.block_length"):
        RevealRule(block_length=0)
