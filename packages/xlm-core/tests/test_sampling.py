"""Filters against hand-worked cases, draws and position rules against their laws."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.noise import noise_keys, uniforms
from xlm.sampling import (
    TokenFilter,
    best_positions,
    draw,
    entropy_scores,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    margin_scores,
    penalise_repetition,
    random_scores,
    suppress,
    suppressed_ids,
    top_probability_scores,
)
from xlm.testing.factories import tiny_tokenizer
from xlm.testing.laws import chi_square

INF = math.inf
PROBABILITIES = torch.tensor([[0.5, 0.1, 0.3, 0.1]], dtype=torch.float64)
LOGITS = PROBABILITIES.log()
RANDOM = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)) * 3


def kept(logits):
    return (logits[0] > -INF).nonzero().flatten().tolist()


def n_uniforms(n):
    return uniforms(noise_keys(0, 0, torch.arange(1)), n, dtype=torch.float64)[0]


def test_top_p_keeps_the_token_that_crosses_p():
    assert kept(keep_top_p(LOGITS, 0.4)) == [0]
    assert kept(keep_top_p(LOGITS, 0.5)) == [0]
    assert kept(keep_top_p(LOGITS, 0.6)) == [0, 2]
    assert kept(keep_top_p(LOGITS, 0.85)) == [0, 1, 2]
    assert kept(keep_top_p(LOGITS, 0.95)) == [0, 1, 2, 3]


def test_top_k_keeps_exactly_k_and_prefers_the_lowest_index_among_equals():
    assert kept(keep_top_k(LOGITS, 2)) == [0, 2]
    assert kept(keep_top_k(LOGITS, 3)) == [0, 1, 2]
    assert kept(keep_top_k(torch.zeros(1, 6), 2)) == [0, 1]


def test_min_p_is_relative_to_the_most_probable_token():
    assert kept(keep_min_p(LOGITS, 0.19)) == [0, 1, 2, 3]
    assert kept(keep_min_p(LOGITS, 0.21)) == [0, 2]
    assert kept(keep_min_p(LOGITS, 0.61)) == [0]


def test_kept_logits_are_unchanged():
    for filtered in (keep_top_p(RANDOM, 0.7), keep_top_k(RANDOM, 3), keep_min_p(RANDOM, 0.1)):
        where = filtered > -INF
        assert 0 < where.sum() < where.numel()
        assert torch.equal(filtered[where], RANDOM[where])


@pytest.mark.parametrize(
    "settings", [{}, {"top_p": 1.0}, {"top_k": 50}, {"top_k": 1000}, {"min_p": 0.0}, {"temperature": 1.0}]
)
def test_settings_that_should_do_nothing_leave_the_logits_unchanged(settings):
    assert torch.equal(TokenFilter(**settings)(RANDOM), RANDOM)


def test_filters_are_applied_one_after_another_to_what_is_left():
    # Among the two that top-k leaves, the first has 0.5 / 0.8 of the mass: enough for p = 0.6, not without top-k
    assert kept(TokenFilter(top_k=2, top_p=0.6)(LOGITS)) == [0]
    assert kept(TokenFilter(top_p=0.6)(LOGITS)) == [0, 2]
    # temperature first: squared probabilities are 25, 1, 9, 1 of 36
    assert kept(TokenFilter(temperature=0.5, top_p=0.69)(LOGITS)) == [0]
    assert kept(TokenFilter(temperature=0.5, min_p=0.3)(LOGITS)) == [0, 2]


def test_temperature_0_is_greedy_with_ties_to_the_lowest_index():
    filtered = TokenFilter(temperature=0.0)(torch.tensor([[1.0, 2.0, 0.0, 2.0]]))
    assert kept(filtered) == [1]
    assert draw(filtered.expand(100, -1), n_uniforms(100)).unique().tolist() == [1]


def test_a_temperature_divides_the_logits():
    assert_close(TokenFilter(temperature=2.0)(RANDOM), RANDOM / 2)


def test_filters_work_in_fp32_or_better():
    for dtype, expected in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert TokenFilter(top_p=0.9)(RANDOM.to(dtype)).dtype == expected


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"temperature": -1.0}, "predictor.temperature"),
        ({"temperature": math.nan}, "predictor.temperature"),
        ({"top_k": 0}, "predictor.top_k"),
        ({"top_p": 0.0}, "predictor.top_p"),
        ({"top_p": 1.5}, "predictor.top_p"),
        ({"min_p": -0.1}, "predictor.min_p"),
        ({"min_p": 1.1}, "predictor.min_p"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings, key):
    with pytest.raises(UserError) as error:
        TokenFilter(**settings)
    assert error.value.where == key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_draws_have_the_law_that_the_logits_state_whatever_their_type(dtype):
    logits = (torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2).bfloat16()
    drawn = draw(logits.to(dtype).expand(20_000, -1), n_uniforms(20_000))
    assert chi_square(torch.bincount(drawn, minlength=60), logits.double().softmax(0)) > 1e-3


def test_draws_after_filters_have_the_renormalised_law():
    filtered = TokenFilter(temperature=0.7, top_k=20, top_p=0.9)(RANDOM[0])
    drawn = draw(filtered.expand(20_000, -1), n_uniforms(20_000))
    assert chi_square(torch.bincount(drawn, minlength=50), filtered.double().softmax(0)) > 1e-3


def test_draw_is_the_inverse_of_the_cumulative_distribution():
    u = torch.tensor([0.0, 0.4999, 0.5001, 0.5999, 0.6001, 0.8999, 0.9001, 1 - 2**-53], dtype=torch.float64)
    assert draw(LOGITS.expand(8, -1), u).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_token_of_probability_0_is_never_drawn_even_at_the_ends():
    logits = torch.tensor([[-INF, 0.0, -INF, 0.0, -INF]]).expand(3, -1)
    u = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, u).tolist() == [1, 3, 3]


def test_rare_tokens_are_drawn_at_their_rate():
    """A million tokens share 1 % of the mass: in fp32 sums, each would be lost in rounding."""
    rare = torch.full((1_000_000,), math.log(0.01 / 1_000_000))
    logits = torch.cat([torch.tensor([math.log(0.99)]), rare])[None]
    u = torch.tensor([0.9949999], dtype=torch.float64)  # (0.9949999 - 0.99) / 1e-8 = 499,990 rare ones before it
    assert abs(int(draw(logits, u)) - 499_991) <= 1


def test_repeated_tokens_lose_whatever_the_sign_of_their_logits():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    previous, valid = torch.tensor([[0, 1, 1, 2]]), torch.tensor([[True, True, True, False]])
    assert penalise_repetition(logits, previous, 2.0, valid).tolist() == [[1.0, -4.0, 2.0, -2.0]]
    assert torch.equal(penalise_repetition(logits, previous, 1.0, valid), logits)


def test_suppressed_tokens_leave_the_softmax():
    probabilities = suppress(LOGITS, torch.tensor([0, 3])).softmax(-1)
    assert_close(probabilities, torch.tensor([[0.0, 0.25, 0.75, 0.0]], dtype=torch.float64))


def test_suppressed_ids_are_the_control_tokens_except_the_end_of_text():
    tokenizer = tiny_tokenizer()
    assert suppressed_ids(tokenizer).tolist() == [0, 1, 2]
    tokenizer.bos_token = tokenizer.eos_token  # as in GPT-2
    assert suppressed_ids(tokenizer).tolist() == [0, 1]
    tokenizer.pad_token, tokenizer.cls_token, tokenizer.mask_token = None, "a", "[MASK]"
    assert suppressed_ids(tokenizer).tolist() == [1, 4]


def test_position_scores_are_probability_margin_and_negative_entropy():
    logits = torch.cat([LOGITS, torch.zeros_like(LOGITS)])
    logits[1, 2:] = -INF
    assert_close(top_probability_scores(logits).tolist(), [0.5, 0.5])
    assert_close(margin_scores(logits).tolist(), [0.2, 0.0])
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.1))
    assert_close(entropy_scores(logits).tolist(), [-entropy, -math.log(2)])


def test_random_scores_make_every_order_equally_likely():
    scores = random_scores(n_uniforms(18_000)).reshape(-1, 3)
    order = scores.argsort(descending=True)
    counts = torch.bincount(order[:, 0] * 2 + (order[:, 1] > order[:, 2]), minlength=6)
    assert chi_square(counts, torch.full((6,), 1 / 6)) > 1e-3


def test_best_positions_go_to_the_lowest_index_among_equals_and_skip_what_is_not_eligible():
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.5], [-INF, 1.0, -INF, -INF], [-INF, -INF, -INF, -INF]])
    chosen = best_positions(scores, torch.tensor([2, 2, 1]))
    assert chosen.tolist() == [[True, True, False, False], [False, True, False, False], [False] * 4]
