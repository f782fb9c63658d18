"""Remasking: which share of positions is hidden when, what is drawn, and what is never touched."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from xlm.data.layout import empty_canvases, prediction_batch, templates
from xlm.errors import UserError
from xlm.noise import CosineSchedule
from xlm.sampling import TokenFilter
from xlm.testing.factories import infill_examples, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import ancestral_law, chi_square, remasking_law
from xlm.testing.toy import InconsistentDenoiser, digits
from xlm.trace import Trace, by_row, replay
from xlm.unmasking.batch import REVEAL_STREAM, placed_uniforms
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import TokenRule, fill_by_plan
from xlm.unmasking.plan import ancestral_plan, step_times
from xlm.unmasking.remask import Remasking, fill_by_remasking

TOKENIZER = tiny_tokenizer(n_letters=4)
PAD, MASK = 0, 1
PLAIN = TokenRule(TokenFilter())
DRAWS, LEAST_P = 20_000, 1e-3
LINEAR = [1.0, 0.75, 0.5, 0.25, 0.0]
FAIR = [Remasking("cap", 0.3), Remasking("cap", 1.0), Remasking("rescale", 0.5), Remasking("rescale", 1.0)]
KINDS = [*FAIR, Remasking("confidence", 1.0)]


class Says(nn.Module):
    """Letters 4 and 5, equally probable; remembers its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.calls: list[torch.Tensor] = []

    def hidden(self, input_ids, attention_mask=None, **_):
        self.calls.append(input_ids.clone())
        logits = torch.full((8,), -1e4, dtype=torch.float64)
        logits[4:6] = 0.0
        return logits.expand(*input_ids.shape, -1)


def canvases(n: int, size: int) -> Any:
    layout = empty_canvases(n, MASK, size)
    return prediction_batch(unconditional_examples(n), layout, prompt_lengths=[0] * n, ends_at_eos=True)


def sigma(remasking: Remasking, u: float, v: float) -> float:
    """From mask rate u to v, as the paper has it."""
    most = 1.0 if u == 1 else min(1.0, v / (1 - u))
    return min(remasking.eta, most) if remasking.strategy == "cap" else remasking.eta * most


def hidden_after_each_step(remasking: Remasking, rates: torch.Tensor, n: int, size: int) -> torch.Tensor:
    """Share of hidden positions after each step."""
    trace, steps = Trace(), len(rates)
    fill_by_remasking(Denoiser(Says(), TOKENIZER), canvases(n, size), rates, remasking, PLAIN, trace)
    change = torch.zeros(steps)
    for event in trace.events():
        change[event["step"]] += 1 if event["action"] == "remask" else -1
    return 1 + change.cumsum(0) / (n * size)


@pytest.mark.parametrize("remasking", FAIR, ids=str)
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_cap_and_rescale_keep_the_mask_rates_of_the_reverse_process(remasking, schedule):
    times = step_times(8)
    rates = times if schedule == "linear" else CosineSchedule().mask_rate(times)
    found = hidden_after_each_step(remasking, rates, 2000, 10)
    for share, rate in zip(found.tolist(), [*rates[1:].tolist(), 0.0], strict=True):
        assert abs(share - rate) <= 4 * math.sqrt(rate * (1 - rate) / 20_000) + 1e-6


def test_confidence_hides_more_than_the_schedule_says():
    found = hidden_after_each_step(Remasking("confidence", 1.0), step_times(8), 2000, 10)
    assert (found[1:-1] > step_times(8)[2:] + 0.02).all()
    assert found[-1].abs() < 1e-6


@pytest.mark.parametrize("remasking", FAIR, ids=str)
def test_samples_follow_the_law_of_the_t_step_process_with_remasking(remasking):
    model = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8)
    denoiser, batch = Denoiser(model, TOKENIZER), canvases(DRAWS, 4)
    ids, _ = fill_by_remasking(denoiser, batch, step_times(4), remasking, PLAIN, None)
    sigmas = [sigma(remasking, u, v) for u, v in pairwise(LINEAR)]
    assert chi_square(model.count(ids), remasking_law(model, LINEAR, sigmas)) > LEAST_P
    assert chi_square(model.count(ids), ancestral_law(model, LINEAR)) < 1e-4


def test_a_schedule_that_stops_short_of_its_end_starts_from_masks_all_the_same():
    model, remasking = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8), Remasking("rescale", 0.5)
    denoiser, batch = Denoiser(model, TOKENIZER), canvases(DRAWS, 4)
    ids, _ = fill_by_remasking(denoiser, batch, 0.5 * step_times(4), remasking, PLAIN, None)
    sigmas = [sigma(remasking, u, v) for u, v in pairwise(LINEAR)]
    assert chi_square(model.count(ids), remasking_law(model, LINEAR, sigmas)) > LEAST_P


def test_three_steps_by_confidence_follow_their_law():
    """What is visible after the first step was drawn when nothing was, so its psi is known; the third hides nothing."""
    model = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8)
    denoiser, batch = Denoiser(model, TOKENIZER), canvases(DRAWS, 4)
    rates = [1.0, 0.4, 0.4, 0.0]
    remasking = Remasking("confidence", 1.0)
    ids, _ = fill_by_remasking(denoiser, batch, torch.tensor(rates[:3]).double(), remasking, PLAIN, None)
    patterns = digits(5, 4)
    first = torch.nn.functional.pad(model.log_conditional.detach()[-1].exp(), (0, 1))  # digit 4: hidden
    psi = first[torch.arange(4), patterns]
    share = (-psi).exp() * (patterns < 4)
    share = share / share.sum(1, keepdim=True).clamp_min(1e-300)
    law = remasking_law(model, rates, [0.0, 0.4 / 0.6 * share, 0.0])
    assert chi_square(model.count(ids), law) > LEAST_P
    assert chi_square(model.count(ids), ancestral_law(model, rates)) < 1e-4


def test_confidence_hides_more_probably_what_was_less_probable_when_drawn():
    psi, revealed = torch.tensor([[0.9, 0.1, 0.5, 0.3]]).double(), torch.tensor([[True, True, False, False]])
    found = Remasking("confidence", 0.5).chances(0.6, 0.3, revealed, psi)
    weights = [math.exp(-0.9), math.exp(-0.1)]
    expected = [0.5 * (0.3 / 0.4) * weight / sum(weights) for weight in weights]
    assert found[0].tolist() == pytest.approx([*expected, 0.0, 0.0])
    nothing = Remasking("confidence", 0.5).chances(0.6, 0.3, torch.zeros_like(revealed), psi)
    assert nothing.tolist() == [[0.0] * 4]


@pytest.mark.parametrize("strategy", ["cap", "rescale", "confidence"])
def test_eta_zero_gives_the_draws_of_the_ancestral_sampler(strategy):
    model = InconsistentDenoiser(token_ids=[4, 5, 6, 7], vocab_size=8)
    denoiser, batch, rates = Denoiser(model, TOKENIZER), canvases(500, 4), CosineSchedule().mask_rate(step_times(7))
    plan = ancestral_plan(placed_uniforms(batch, REVEAL_STREAM), batch["predicted"], rates)
    left = fill_by_plan(denoiser, batch, plan, PLAIN, None)
    right = fill_by_remasking(denoiser, batch, rates, Remasking(strategy, 0.0), PLAIN, None)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("remasking", KINDS, ids=str)
def test_what_is_given_is_never_hidden_and_the_trace_replays_to_the_answer(remasking):
    examples = infill_examples([10] * 20, n_letters=4)
    layout = templates(examples, PAD, 10)
    layout.ids = layout.ids.masked_fill(layout.predicted, MASK)
    batch = prediction_batch(examples, layout, prompt_lengths=[0] * 20, ends_at_eos=False)
    model, trace = Says(), Trace()
    ids, _ = fill_by_remasking(Denoiser(model, TOKENIZER), batch, step_times(20), remasking, PLAIN, trace)
    given = ~batch["predicted"]
    assert torch.equal(ids[given], batch["input_ids"][given])
    assert not (ids == MASK).any()
    events = trace.events()
    assert {event["action"] for event in events} == {"reveal", "remask"}
    assert not any(given[event["row"], event["position"]] for event in events)
    assert all(0 < event["probability"] <= 1 for event in events)
    for start, row, end in zip(batch["input_ids"].tolist(), by_row(events, 20), ids.tolist(), strict=True):
        assert list(replay(row, start))[-1] == end


@pytest.mark.parametrize("remasking", KINDS, ids=str)
def test_the_network_is_called_only_for_rows_that_reveal_something(remasking):
    model, trace = Says(), Trace()
    denoiser, batch = Denoiser(model, TOKENIZER), canvases(3, 6)
    _, n_calls = fill_by_remasking(denoiser, batch, step_times(50), remasking, PLAIN, trace)
    revealing = {(event["row"], event["step"]) for event in trace.events() if event["action"] == "reveal"}
    assert int(n_calls.sum()) == len(revealing) == sum(len(call) for call in model.calls)
    assert (n_calls < 50).all()


def test_a_remasked_token_is_drawn_anew():
    trace, rates = Trace(), torch.tensor([1.0, 0.4, 0.4], dtype=torch.float64)  # hidden again with probability 2/3
    fill_by_remasking(Denoiser(Says(), TOKENIZER), canvases(4000, 1), rates, Remasking("cap", 1.0), PLAIN, trace)
    drawn: dict[int, list[int]] = {}
    for event in trace.events():
        if event["action"] == "reveal":
            drawn.setdefault(event["row"], []).append(event["token"])
    twice = [tokens for tokens in drawn.values() if len(tokens) == 2]
    same = sum(first == second for first, second in twice) / len(twice)
    assert abs(len(twice) / 4000 - 0.6 * 2 / 3) < 4 * 0.5 / math.sqrt(4000)
    assert abs(same - 0.5) < 4 * 0.5 / math.sqrt(len(twice))


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(UserError, match=r"\[0, 1\] in predictor\.eta"):
        Remasking("cap", eta)


def test_the_label_says_which_strategies_are_exact():
    assert all(remasking.law.startswith("exact for T steps") for remasking in [*FAIR, Remasking("confidence", 0.0)])
    assert Remasking("confidence", 0.5).law.startswith("approximate")
