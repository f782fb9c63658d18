"""The loop over a rule: what it draws, where, and how often it asks the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from xlm.data.layout import empty_canvases, prediction_batch, prompted, templates
from xlm.errors import UserError
from xlm.sampling import TokenFilter
from xlm.testing.factories import keyed, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import any_order_law, chi_square
from xlm.testing.toy import InconsistentDenoiser
from xlm.trace import Trace
from xlm.unmasking import denoiser as denoiser_module
from xlm.unmasking.batch import ORDER_STREAM, placed_uniforms
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import TokenRule, fill_by_rule
from xlm.unmasking.rules import RevealRule

TOKENIZER = tiny_tokenizer(n_letters=4)
PAD, MASK, EOS = 0, 1, 3
PLAIN = TokenRule(TokenFilter())
RULES = [
    RevealRule("random"),
    RevealRule("random", tokens_per_step=3),
    RevealRule("top_probability"),
    RevealRule("margin", gumbel=1.0),
    RevealRule("entropy", threshold=0.5),
    RevealRule("random", threshold=0.99),
    RevealRule("margin", factor=0.5),
]


class Says(nn.Module):
    """The same logits at each column, whatever it sees; remembers its calls."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.logits, self.calls, self.head_rows = logits.double(), [], []
        self.head.register_forward_hook(lambda _, inputs, __: self.head_rows.append(len(inputs[0])))

    def hidden(self, input_ids, attention_mask=None, *, positions=None, segments=None):
        self.calls.append(input_ids.clone())
        return self.logits[-input_ids.shape[1] :].expand(len(input_ids), -1, -1)


def certainties(*p: float) -> torch.Tensor:
    """Columns that give letter 4 the probability p, and letter 5 the rest."""
    logits = torch.full((len(p), 8), -1e4, dtype=torch.float64)
    logits[:, 4], logits[:, 5] = torch.tensor(p).double().log(), (1 - torch.tensor(p).double()).log()
    return logits


def canvases(n: int, size: int) -> Any:
    layout = empty_canvases(n, MASK, size)
    return prediction_batch(unconditional_examples(n), layout, prompt_lengths=[0] * n, ends_at_eos=True)


def revealed(rule: RevealRule, model: nn.Module, batch: Any) -> list[list[int]]:
    """Positions that the first row reveals, step by step."""
    trace = Trace()
    fill_by_rule(Denoiser(model, TOKENIZER), batch, rule, PLAIN, trace)
    steps: dict[int, list[int]] = {}
    for event in trace.events():
        if event["row"] == 0:
            steps.setdefault(event["step"], []).append(event["position"])
    return list(steps.values())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_ten_masks_need_at_most_ten_calls_and_every_call_reveals_something_in_every_row_that_has_masks(rule):
    torch.manual_seed(0)
    model = Says(torch.randn(10, 8))
    rows = [{"input_ids": [4] * 10, "fixed": [0] * n + [1] * (10 - n)} for n in (10, 7, 3, 1, 0)]
    examples = keyed(rows)
    batch = prediction_batch(examples, templates(examples, PAD, 10), prompt_lengths=[0] * 5, ends_at_eos=False)
    ids, n_calls = fill_by_rule(Denoiser(model, TOKENIZER), batch, rule, PLAIN, None)
    assert not (ids == MASK).any()
    assert (n_calls <= batch["predicted"].sum(1)).all()
    assert n_calls[-1] == 0
    masks = [(call == MASK).sum(1) for call in model.calls]
    assert all((n > 0).all() for n in masks), "a finished row stayed in the batch"
    assert sum(len(call) for call in model.calls) == int(n_calls.sum())


def test_the_most_certain_positions_are_revealed_first():
    model = Says(certainties(0.6, 0.9, 0.7, 0.8))
    assert revealed(RevealRule(), model, canvases(1, 4)) == [[1], [3], [2], [0]]
    assert revealed(RevealRule(tokens_per_step=3), model, canvases(1, 4)) == [[1, 2, 3], [0]]
    assert revealed(RevealRule(threshold=0.65), model, canvases(1, 4)) == [[1, 2, 3], [0]]
    assert revealed(RevealRule(factor=0.5), model, canvases(1, 4)) == [[1], [3], [2], [0]]
    assert revealed(RevealRule(factor=0.7), model, canvases(1, 4)) == [[1, 3], [2], [0]]


def test_a_random_order_runs_the_head_only_where_it_draws():
    model = Says(certainties(0.6, 0.9, 0.7, 0.8))
    fill_by_rule(Denoiser(model, TOKENIZER), canvases(3, 4), RevealRule("random"), PLAIN, None)
    assert model.head_rows == [3] * 4


def test_a_random_order_of_single_tokens_has_the_mean_law_over_orders():
    model = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8)
    ids, _ = fill_by_rule(Denoiser(model, TOKENIZER), canvases(20_000, 4), RevealRule("random"), PLAIN, None)
    assert chi_square(model.count(ids), any_order_law(model)) > 1e-3


def order_of_events(trace: Trace) -> torch.Tensor:
    """Positions of each row of four, in the order in which they were revealed."""
    return torch.tensor([event["position"] for event in sorted(trace.events(), key=lambda e: e["row"])]).view(-1, 4)


def test_gumbel_noise_gives_the_first_position_the_law_of_a_softmax():
    """argmax of log p + tau g is a draw from p^(1/tau), normalised."""
    p, tau = torch.tensor([0.6, 0.9, 0.7, 0.8], dtype=torch.float64), 0.5
    trace = Trace()
    fill_by_rule(Denoiser(Says(certainties(*p)), TOKENIZER), canvases(20_000, 4), RevealRule(gumbel=tau), PLAIN, trace)
    weight = p ** (1 / tau)
    first = torch.bincount(order_of_events(trace)[:, 0], minlength=4)
    assert chi_square(first, weight / weight.sum()) > 1e-3


def test_gumbel_noise_is_of_the_row_the_position_and_the_step():
    p, batch, trace = torch.tensor([0.6, 0.9, 0.7, 0.8], dtype=torch.float64), canvases(200, 4), Trace()
    fill_by_rule(Denoiser(Says(certainties(*p)), TOKENIZER), batch, RevealRule(gumbel=1.0), PLAIN, trace)
    hidden, expected = torch.ones(200, 4, dtype=torch.bool), []
    for step in range(4):
        noise = -(-placed_uniforms(batch, ORDER_STREAM + step).log()).log()
        expected.append((p.log() + noise).masked_fill(~hidden, -torch.inf).argmax(1))
        hidden[torch.arange(200), expected[-1]] = False
    assert torch.equal(order_of_events(trace), torch.stack(expected, 1))


def test_eos_is_not_drawn_at_the_first_places_of_an_answer_but_in_templates_it_may_be():
    logits = torch.full((6, 8), -1e4)
    logits[:, EOS], logits[:, 4] = 5.0, 0.0
    examples = keyed([{"prompt_ids": [5]}, {"prompt_ids": []}])
    batch = prediction_batch(
        examples, prompted(examples, empty_canvases(2, MASK, 4), PAD, 1), prompt_lengths=[1, 0], ends_at_eos=True
    )
    tokens = TokenRule(TokenFilter(temperature=0.0), min_new_tokens=2)
    denoiser = Denoiser(Says(logits), TOKENIZER)
    for rule in (RevealRule(), RevealRule("random")):
        ids, _ = fill_by_rule(denoiser, batch, rule, tokens, None)
        assert ids[:, 1:].tolist() == [[4, 4, EOS, EOS]] * 2
        template = {**batch, "ends_at_eos": torch.zeros(2, dtype=torch.bool)}
        assert (fill_by_rule(denoiser, template, rule, tokens, None)[0][:, 1:] == EOS).all()


def test_certainty_does_not_count_an_eos_that_may_not_be_drawn():
    logits = certainties(0.8, 0.7, 0.9)
    logits[1, EOS] = 5.0
    denoiser, batch, trace = Denoiser(Says(logits), TOKENIZER), canvases(1, 3), Trace()
    fill_by_rule(denoiser, batch, RevealRule(), TokenRule(TokenFilter(), min_new_tokens=3), trace)
    assert [event["position"] for event in trace.events()] == [2, 0, 1]


def test_few_new_tokens_are_refused_below_zero():
    with pytest.raises(UserError, match=r"0 or more in predictor\.min_new_tokens"):
        TokenRule(TokenFilter(), min_new_tokens=-1)


@pytest.mark.parametrize("rule", [RevealRule(tokens_per_step=2), RevealRule("margin", factor=1.0)], ids=str)
def test_logits_in_chunks_give_the_same_rows(rule, monkeypatch):
    torch.manual_seed(0)
    model = Says(torch.randn(6, 8))
    whole = fill_by_rule(Denoiser(model, TOKENIZER), canvases(5, 6), rule, PLAIN, None)
    model.head_rows.clear()
    monkeypatch.setattr(denoiser_module, "MAX_LOGITS", 8 * 4)
    chunked = fill_by_rule(Denoiser(model, TOKENIZER), canvases(5, 6), rule, PLAIN, None)
    assert max(model.head_rows) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))
