"""Estimators against enumeration on toy models; summaries against hand-worked numbers and a bootstrap."""

from __future__ import annotations

import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.likelihood import any_order_bound, deterministic_order, summarise
from xlm.noise import CosineSchedule, LinearSchedule, PolynomialSchedule, noise_keys
from xlm.sampling import TokenFilter, best_positions, top_probability_scores
from xlm.testing.laws import any_order_law
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, entropy, random_table

MASK, LETTERS, VOCAB, LENGTH = 1, [4, 5, 6, 7], 8, 4
TABLE = random_table()
EXACT = ExactDenoiser(TABLE, token_ids=LETTERS, vocab_size=VOCAB)
INCONSISTENT = InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB)
STRINGS = EXACT.all_strings()


def true_log_probabilities(model, ids, hidden, token_filter=None):
    with torch.no_grad():
        logits = model(ids.masked_fill(hidden, MASK))
    logits = logits if token_filter is None else token_filter(logits)
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


def cross_entropy(model, ids):
    """Of a time-free model: nats summed over the hidden positions."""
    return lambda hidden, u: -(true_log_probabilities(model, ids, hidden) * hidden).sum(-1)


def by_enumeration(model, ids):
    """sum over k of (1/k) E_{|S|=k} [cross-entropy with S hidden], every set S in turn."""
    total = torch.zeros(len(ids), dtype=torch.float64)
    for k in range(1, LENGTH + 1):
        subsets = list(combinations(range(LENGTH), k))
        for subset in subsets:
            hidden = torch.zeros(ids.shape, dtype=torch.bool)
            hidden[:, list(subset)] = True
            total += cross_entropy(model, ids)(hidden, None) / k / len(subsets)
    return total


def estimate(model, *, repeats, draws):
    """The bound of every string, ``repeats`` times with different keys: [repeats, strings] and its variances."""
    ids = STRINGS.repeat(repeats, 1)
    keys = noise_keys(0, 0, torch.arange(len(ids)))
    result = any_order_bound(cross_entropy(model, ids), torch.ones_like(ids, dtype=torch.bool), keys, draws=draws)
    return result["nll"].reshape(repeats, -1), result["mc_variance"].reshape(repeats, -1)


def test_bound_of_the_exact_posterior_is_the_entropy():
    assert_close(float(by_enumeration(EXACT, STRINGS) @ TABLE.flatten()), entropy(TABLE))
    nll, _ = estimate(EXACT, repeats=200, draws=2)
    error = float(nll.mean(0) @ TABLE.flatten()) - entropy(TABLE)
    standard_error = math.sqrt(float((nll.var(0) / 200) @ TABLE.flatten() ** 2))
    assert abs(error) < 3 * standard_error
    assert standard_error < 0.01 * entropy(TABLE)


def test_bound_of_an_inconsistent_model_is_the_mean_over_orders_and_above_its_own_likelihood():
    exact = by_enumeration(INCONSISTENT, STRINGS)
    nll, _ = estimate(INCONSISTENT, repeats=200, draws=3)
    z = (nll.mean(0) - exact) / (nll.std(0) / math.sqrt(200))
    assert abs(z.mean()) < 3 / math.sqrt(len(z))
    assert 0.8 < z.std() < 1.25
    assert (exact > -any_order_law(INCONSISTENT).log()).all()


@pytest.mark.parametrize("draws", [2, 4, 16])
def test_monte_carlo_variance_is_about_the_variance_over_keys(draws):
    nll, variance = estimate(INCONSISTENT, repeats=60, draws=draws)
    assert 0.8 < float(variance.mean() / nll.var(0).mean()) < 1.6


def test_draws_spread_over_all_numbers_of_hidden_positions():
    sizes = []
    any_order_bound(
        lambda hidden, u: sizes.append(hidden.sum(1)) or torch.zeros(50),
        torch.ones(50, LENGTH, dtype=torch.bool),
        noise_keys(0, 0, torch.arange(50)),
        draws=LENGTH,
    )
    assert torch.stack(sizes).tolist() == [[k + 1] * 50 for k in range(LENGTH)]


def test_a_network_conditioned_on_the_mask_rate_has_the_same_bound_in_both_forms():
    """CE = u a hidden token: the integral of (1/u) N u u over u is N/2; with u = k/N it would be (N + 1)/2."""
    n, rows = 6, 20_000
    seen = []

    def linear_in_u(hidden, u):
        seen.append((hidden.sum(1), u))
        return hidden.sum(1) * u

    keys = noise_keys(0, 0, torch.arange(rows))
    nll = any_order_bound(linear_in_u, torch.ones(rows, n, dtype=torch.bool), keys, draws=1)["nll"]
    assert abs(float(nll.mean()) - n / 2) < 3 * float(nll.std()) / math.sqrt(rows)
    (k, u), *_ = seen
    for size in range(1, n + 1):  # Beta(k, n - k + 1)
        of_size = u[k == size]
        mean, variance = size / (n + 1), size * (n + 1 - size) / ((n + 1) ** 2 * (n + 2))
        assert abs(of_size.mean() - mean) < 4 * math.sqrt(variance / len(of_size))
        assert_close(float(of_size.var()), variance, rtol=0.15, atol=0)


@pytest.mark.parametrize("schedule", [LinearSchedule(), CosineSchedule(), PolynomialSchedule(power=2.0)])
def test_the_integral_over_any_full_schedule_is_the_same_bound(schedule):
    """E_t w(t) sum over hidden of CE, by Gauss-Legendre quadrature and enumeration of what is hidden."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    t, weights = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    u, total = schedule.mask_rate(t), torch.zeros(len(STRINGS), dtype=torch.float64)
    for k in range(1, LENGTH + 1):
        for subset in combinations(range(LENGTH), k):
            hidden = torch.zeros(STRINGS.shape, dtype=torch.bool)
            hidden[:, list(subset)] = True
            chance = (weights * schedule.elbo_weight(t) * u**k * (1 - u) ** (LENGTH - k)).sum()
            total += chance * cross_entropy(INCONSISTENT, STRINGS)(hidden, None)
    assert_close(total, by_enumeration(INCONSISTENT, STRINGS), rtol=1e-8, atol=1e-8)


def test_only_predicted_positions_are_hidden_and_counted():
    predicted = torch.tensor([[True, False, True, True], [False] * 4])
    hidden_ever = torch.zeros(2, 4, dtype=torch.bool)

    def one_nat_each(hidden, u):
        hidden_ever.logical_or_(hidden)
        return hidden.sum(1).double()

    result = any_order_bound(one_nat_each, predicted, noise_keys(0, 0, torch.arange(2)), draws=5)
    assert hidden_ever.tolist() == predicted.tolist()
    assert result["n_tokens"].tolist() == [3, 0]
    assert_close(result["nll"].tolist(), [3.0, 0.0])  # N/k times k nats
    assert (result["kind"], result["n_calls"]) == ("bound", 5)


def test_a_row_of_the_bound_does_not_depend_on_its_batch_or_on_padding():
    ids, keys = STRINGS[:6], noise_keys(0, 0, torch.arange(6))
    full = torch.ones_like(ids, dtype=torch.bool)
    whole = any_order_bound(cross_entropy(EXACT, ids), full, keys, draws=3)["nll"]
    alone = any_order_bound(cross_entropy(EXACT, ids[4:5]), full[4:5], keys[4:5], draws=3)["nll"]
    wider = torch.nn.functional.pad(full, (0, 3))
    of_first_four = cross_entropy(EXACT, ids)
    padded = any_order_bound(lambda hidden, u: of_first_four(hidden[:, :4], u), wider, keys, draws=3)["nll"]
    assert_close(whole[4:5], alone)
    assert_close(whole, padded)


def test_one_draw_has_no_variance_and_none_is_refused():
    arguments = (lambda hidden, u: hidden.sum(1).double(), torch.ones(1, 2, dtype=torch.bool), torch.tensor([5]))
    assert "mc_variance" not in any_order_bound(*arguments, draws=1)
    with pytest.raises(UserError, match="likelihood_draws"):
        any_order_bound(*arguments, draws=0)


def top_probability_step(ids, *, width, token_filter, block=LENGTH):
    """One step of a sampler that reveals the ``width`` surest positions of the first block that has hidden ones."""

    def reveal(hidden):
        with torch.no_grad():
            logits = token_filter(INCONSISTENT(ids.masked_fill(hidden, MASK)))
        scores = top_probability_scores(logits.flatten(0, 1)).reshape(hidden.shape)
        in_block = torch.arange(LENGTH) // block == hidden.long().argmax(1, keepdim=True) // block
        n = torch.full((len(ids),), width)
        chosen = best_positions(scores.masked_fill(~(hidden & in_block), -math.inf), n)
        return chosen, true_log_probabilities(INCONSISTENT, ids, hidden, token_filter)

    return reveal


@pytest.mark.parametrize(
    ("settings", "n_calls"),
    [
        ({"width": 1, "token_filter": TokenFilter()}, 4),
        ({"width": 2, "token_filter": TokenFilter()}, 2),
        ({"width": 3, "token_filter": TokenFilter(top_p=0.8)}, 2),
        ({"width": 1, "token_filter": TokenFilter(temperature=0.0)}, 4),
        ({"width": 2, "token_filter": TokenFilter(), "block": 1}, 4),
    ],
)
def test_exact_likelihoods_of_a_deterministic_order_sum_to_1(settings, n_calls):
    result = deterministic_order(top_probability_step(STRINGS, **settings), torch.ones_like(STRINGS, dtype=torch.bool))
    assert_close(float(result["nll"].neg().exp().sum()), 1.0)
    assert (result["kind"], result["n_calls"]) == ("exact", n_calls)


def test_every_deterministic_order_of_the_exact_posterior_gives_p():
    def leftmost(hidden):
        first = hidden & (hidden.cumsum(1) == 1)
        return first, true_log_probabilities(EXACT, STRINGS, hidden)

    result = deterministic_order(leftmost, torch.ones_like(STRINGS, dtype=torch.bool))
    assert_close(result["nll"], -TABLE.flatten().log())


def test_rows_with_fewer_tokens_finish_earlier_and_given_tokens_cost_nothing():
    predicted = torch.tensor([[True, True, False, False], [False, False, False, True]])
    result = deterministic_order(
        lambda hidden: (hidden & (hidden.cumsum(1) == 1), torch.full(hidden.shape, -1.0)), predicted
    )
    assert result["nll"].tolist() == [2.0, 1.0]
    assert result["n_tokens"].tolist() == [2, 1]
    assert result["n_calls"] == 2


def test_a_sampler_that_stops_short_is_a_bug():
    with pytest.raises(AssertionError, match="revealed nothing"):
        deterministic_order(lambda hidden: (~hidden, hidden.double()), torch.ones(1, 2, dtype=torch.bool))


def summary(nll, n_tokens, n_bytes=None, **changes):
    settings = {"kind": "exact", "estimator": "chain_rule", "event_space": "open", "n_calls": 1, **changes}
    n_bytes = None if n_bytes is None else torch.tensor(n_bytes)
    return summarise(torch.tensor(nll, dtype=torch.float64), torch.tensor(n_tokens), n_bytes=n_bytes, **settings)


def test_summary_is_the_ratio_of_sums_with_its_delta_method_error():
    # 6 nats / 4 tokens; residuals +-0.5, so SE = sqrt(2/1 * 0.5) / 4. 6 nats / 8 bytes; residuals -1/4, 1/4
    result = summary([2.0, 4.0], [1, 3], [3, 5])
    assert_close(result.nats_per_token, 1.5)
    assert_close(result.nats_per_token_se, 0.25)
    assert_close(result.perplexity, math.exp(1.5))
    assert_close(result.perplexity_se, 0.25 * math.exp(1.5))
    assert_close(result.bits_per_byte, 0.75 / math.log(2))
    assert_close(result.bits_per_byte_se, math.sqrt(2 * 0.125) / 8 / math.log(2))
    assert (result.n_tokens, result.n_sequences, result.mc_se) == (4, 2, None)


def test_standard_error_agrees_with_a_bootstrap_over_sequences():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 50, 300)
    nll = sizes * rng.normal(2.0, 0.5, 300) + rng.normal(0, 3, 300)
    picks = rng.integers(0, 300, (4000, 300))
    bootstrap = (nll[picks].sum(1) / sizes[picks].sum(1)).std()
    assert_close(summary(nll.tolist(), sizes.tolist()).nats_per_token_se, float(bootstrap), rtol=0.08, atol=0)


def test_monte_carlo_error_is_given_separately():
    result = summary([2.0, 4.0], [1, 3], mc_variance=torch.tensor([0.04, 0.12], dtype=torch.float64))
    assert_close(result.mc_se, 0.1)  # sqrt(0.16) / 4
    assert_close(result.nats_per_token_se, 0.25)


def test_what_cannot_be_said_is_none():
    pseudo = summary([2.0, 4.0], [1, 3], [3, 5], kind="pseudo")
    assert (pseudo.perplexity, pseudo.perplexity_se, pseudo.bits_per_byte, pseudo.bits_per_byte_se) == (None,) * 4
    assert pseudo.nats_per_token == 1.5
    lossy = summary([2.0, 4.0], [1, 3])
    assert (lossy.bits_per_byte, lossy.bits_per_byte_se) == (None, None)
    one = summary([2.0], [1], [4])
    assert (one.nats_per_token_se, one.perplexity_se, one.bits_per_byte_se) == (None,) * 3


def test_impossible_text_has_infinite_perplexity():
    result = summary([math.inf, 1.0], [1, 1], [1, 1])
    assert (result.nats_per_token, result.perplexity, result.nats_per_token_se) == (math.inf, math.inf, None)
    assert summary([2000.0, 2000.0], [1, 1]).perplexity == math.inf  # would overflow


def test_a_data_set_without_tokens_is_the_users_mistake():
    with pytest.raises(UserError, match="no tokens"):
        summary([0.0], [0])


def test_a_summary_is_json():
    written = json.loads(json.dumps(summary([2.0, 4.0], [1, 3], [3, 5]).as_dict()))
    assert written["event_space"] == "open"
    assert written["nats_per_token"] == 1.5
