"""Guidance: away from what the network says without what is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.data.layout import prediction_batch, templates
from xlm.errors import UserError
from xlm.sampling import TokenFilter
from xlm.testing.factories import keyed, tiny_tokenizer
from xlm.testing.laws import any_order_law, chi_square
from xlm.testing.toy import InconsistentDenoiser, TableDenoiser, digits, number
from xlm.unmasking.batch import REVEAL_STREAM, placed_uniforms
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import TokenRule, fill_by_plan, fill_by_rule
from xlm.unmasking.likelihood import any_order, in_order, pseudo
from xlm.unmasking.plan import first_hitting_plan, step_times
from xlm.unmasking.remask import Remasking, fill_by_remasking
from xlm.unmasking.rules import RevealRule

TOKENIZER = tiny_tokenizer(n_letters=4)
PAD, MASK, LETTERS = 0, 1, [4, 5, 6, 7]
PLAIN = TokenRule(TokenFilter())
W = 1.5


def inconsistent() -> InconsistentDenoiser:
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)


def guided(model: TableDenoiser, w: float) -> TableDenoiser:
    """The toy whose own conditionals are the guided ones, where the first letter is what is given."""
    patterns = digits(5, 4)
    blind = patterns.clone()
    blind[:, 0] = 4
    log_c, log_u = model.log_conditional.detach(), model.log_conditional.detach()[number(blind, 5)]
    return TableDenoiser((log_u + (1 + w) * (log_c - log_u)).log_softmax(-1), token_ids=LETTERS, vocab_size=8)


def to_fill(n: int, fixed: list[int] | None = None) -> Any:
    """Templates whose first letter, number 2, is given."""
    examples = keyed([{"input_ids": [6] * 4, "fixed": fixed or [1, 0, 0, 0]}] * n)
    layout = templates(examples, PAD, 4)
    layout.ids = layout.ids.masked_fill(layout.predicted, MASK)
    return prediction_batch(examples, layout, prompt_lengths=[0] * n, ends_at_eos=False)


def to_measure(model: TableDenoiser, *, n_given: int = 1) -> dict[str, Any]:
    """Every string that begins with letter 6, given its first letters."""
    ids = model.all_strings()
    ids = ids[ids[:, 0] == 6]
    predicted = torch.ones_like(ids, dtype=torch.bool)
    predicted[:, :n_given] = False
    keys = torch.arange(len(ids))
    where = {"attention_mask": None, "positions": None, "segments": None, "index": keys, "noise_key": keys}
    return {"input_ids": ids, "target_ids": ids, "predicted": predicted, "n_tokens": predicted.sum(1)} | where


def fillers(denoiser: Denoiser, batch: Any) -> list[Any]:
    """What each loop makes of a batch."""
    u = placed_uniforms(batch, REVEAL_STREAM)
    return [
        fill_by_plan(denoiser, batch, first_hitting_plan(u, batch["predicted"]), PLAIN, None),
        fill_by_rule(denoiser, batch, RevealRule("margin", gumbel=0.5), PLAIN, None),
        fill_by_remasking(denoiser, batch, step_times(5), Remasking("cap", 0.5), PLAIN, None),
    ]


def test_samples_follow_the_law_of_the_guided_conditionals():
    model, batch = inconsistent(), to_fill(20_000)
    plan = first_hitting_plan(placed_uniforms(batch, REVEAL_STREAM), batch["predicted"])
    ids, _ = fill_by_plan(Denoiser(model, TOKENIZER, guidance=W), batch, plan, PLAIN, None)
    start = [2, None, None, None]
    assert chi_square(model.count(ids), any_order_law(guided(model, W), start=start)) > 1e-3
    assert chi_square(model.count(ids), any_order_law(model, start=start)) < 1e-9


def test_every_loop_draws_what_the_guided_network_would_and_counts_two_calls_a_step():
    model, batch = inconsistent(), to_fill(200)
    with_guidance = fillers(Denoiser(model, TOKENIZER, guidance=W), batch)
    of_guided = fillers(Denoiser(guided(model, W), TOKENIZER), batch)
    for (ids, n_calls), (expected, n_steps) in zip(with_guidance, of_guided, strict=True):
        assert torch.equal(ids, expected)
        assert torch.equal(n_calls, 2 * n_steps)


@pytest.mark.parametrize("rule", [RevealRule("margin"), RevealRule("entropy", tokens_per_step=2)], ids=str)
def test_the_exact_likelihood_of_a_deterministic_order_is_that_of_the_guided_sampler(rule):
    model = inconsistent()
    batch = to_measure(model)
    found = in_order(Denoiser(model, TOKENIZER, guidance=W), batch, rule, TokenFilter())
    expected = in_order(Denoiser(guided(model, W), TOKENIZER), batch, rule, TokenFilter())
    torch.testing.assert_close(found["nll"], expected["nll"])
    assert found["n_calls"] == 2 * expected["n_calls"]
    assert float((-found["nll"].detach()).exp().sum()) == pytest.approx(1.0, abs=1e-9)


def test_the_bound_and_the_pseudo_likelihood_stay_those_of_the_network():
    model = inconsistent()
    plain, with_guidance = Denoiser(model, TOKENIZER), Denoiser(model, TOKENIZER, guidance=W)
    batch = to_measure(model)
    assert torch.equal(any_order(plain, batch, draws=2)["nll"], any_order(with_guidance, batch, draws=2)["nll"])
    assert torch.equal(pseudo(plain, batch)["nll"], pseudo(with_guidance, batch)["nll"])


def test_guidance_of_zero_changes_nothing_bit_for_bit_and_calls_once():
    model, batch = inconsistent(), to_fill(50)
    for left, right in zip(
        fillers(Denoiser(model, TOKENIZER), batch),
        fillers(Denoiser(model, TOKENIZER, guidance=0.0), batch),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_tokens_that_are_never_generated_stay_out_and_bf16_logits_are_combined_in_fp32():
    class InBf16(InconsistentDenoiser):
        def hidden(self, input_ids, attention_mask=None, **_):
            return super().hidden(input_ids).detach().bfloat16()

    model = InBf16(token_ids=LETTERS, vocab_size=8)
    model.head = model.head.bfloat16()
    denoiser, batch = Denoiser(model, TOKENIZER, guidance=W), to_fill(1)
    logits = denoiser.logits(denoiser.states(batch, batch["input_ids"], torch.ones(1))[0])
    assert logits.dtype == torch.float32
    assert logits[:, [0, 1, 2]].isneginf().all()
    log_c = model.head(model.hidden(batch["input_ids"]))[0].float()
    log_u = model.head(model.hidden(torch.full((1, 4), MASK)))[0].float()
    torch.testing.assert_close(logits[:, 4:], (log_u + (1 + W) * (log_c - log_u))[:, 4:])


@pytest.mark.parametrize("loop", ["plan", "rule", "remasking", "likelihood"])
def test_a_row_with_nothing_given_is_refused_before_any_call(loop):
    model = inconsistent()
    denoiser, batch = Denoiser(model, TOKENIZER, guidance=W), to_fill(2, [0] * 4)
    model.hidden = None  # a call would fail
    u = placed_uniforms(batch, REVEAL_STREAM)
    run: dict[str, Any] = {
        "plan": lambda: fill_by_plan(denoiser, batch, first_hitting_plan(u, batch["predicted"]), PLAIN, None),
        "rule": lambda: fill_by_rule(denoiser, batch, RevealRule(), PLAIN, None),
        "remasking": lambda: fill_by_remasking(denoiser, batch, step_times(5), Remasking(), PLAIN, None),
        "likelihood": lambda: in_order(denoiser, to_measure(model, n_given=0), RevealRule(), TokenFilter()),
    }
    with pytest.raises(UserError, match=r"no given token in predictor\.guidance \(1\.5\); fix: "):
        run[loop]()


def test_a_row_with_nothing_to_generate_needs_nothing_to_go_by():
    batch = to_fill(1, [1] * 4)
    batch["attention_mask"] = torch.zeros(1, 4, dtype=torch.bool)
    Denoiser(inconsistent(), TOKENIZER, guidance=W).check(batch)


@pytest.mark.parametrize("w", [-0.5, float("inf"), float("nan")])
def test_guidance_below_zero_is_refused(w):
    with pytest.raises(UserError, match=r"0 or more in predictor\.guidance"):
        Denoiser(inconsistent(), TOKENIZER, guidance=w)
