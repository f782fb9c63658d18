"""Laws by transition matrices against laws by brute force; the chi-square test against scipy and its own null."""

from __future__ import annotations

from itertools import pairwise, permutations, product

import pytest
import torch
from scipy import stats
from torch.testing import assert_close
from xlm.noise import LinearSchedule
from xlm.testing.laws import ancestral_law, any_order_law, chi_square, one_token_law, remasking_law
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, random_table

MASK, LETTERS, VOCAB = 1, [4, 5, 6], 8
TABLE = random_table(n_letters=3, length=3)
EXACT = ExactDenoiser(TABLE, token_ids=LETTERS, vocab_size=VOCAB)
INCONSISTENT = InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB, length=3)


def revealed_together(groups):
    """Probability of each string when these groups of positions are revealed one after another."""
    ids, law = torch.full((27, 3), MASK), torch.ones(27, dtype=torch.float64)
    for group in map(list, groups):
        probabilities = INCONSISTENT(ids).softmax(-1).detach()
        strings = INCONSISTENT.all_strings()
        law *= probabilities.gather(-1, strings[..., None])[:, group, 0].prod(1)
        ids[:, group] = strings[:, group]
    return law


def test_any_order_law_is_the_mean_over_orders():
    orders = [revealed_together([[i] for i in order]) for order in permutations(range(3))]
    assert_close(any_order_law(INCONSISTENT), torch.stack(orders).mean(0))
    assert_close(any_order_law(EXACT), TABLE.flatten())


def test_one_ancestral_step_draws_every_position_independently():
    assert_close(ancestral_law(INCONSISTENT, [1.0, 0.0]), revealed_together([[0, 1, 2]]))


def test_ancestral_steps_reveal_each_position_in_a_step_of_its_own_chance():
    """From 1 to 0.4 to 0: each position is revealed in the first step with probability 0.6."""
    law = torch.zeros(27, dtype=torch.float64)
    for steps in product([0, 1], repeat=3):
        groups = [[i for i in range(3) if steps[i] == step] for step in (0, 1)]
        law += 0.6 ** len(groups[0]) * 0.4 ** len(groups[1]) * revealed_together(filter(None, groups))
    assert_close(ancestral_law(INCONSISTENT, [1.0, 0.4, 0.0]), law)


def test_many_ancestral_steps_approach_the_any_order_law_as_1_over_t():
    target = any_order_law(INCONSISTENT)
    distances = []
    for n_steps in (32, 64):
        grid = LinearSchedule().mask_rate(torch.linspace(1, 0, n_steps + 1, dtype=torch.float64)).tolist()
        distances.append(float((ancestral_law(INCONSISTENT, grid) - target).abs().sum()))
    assert distances[0] < 0.05
    assert 1.8 < distances[0] / distances[1] < 2.2


def test_an_order_within_blocks_is_the_mean_over_orders_that_keep_to_them():
    orders = [revealed_together([[i] for i in order]) for order in ([0, 1, 2], [1, 0, 2])]
    assert_close(any_order_law(INCONSISTENT, block_length=2), torch.stack(orders).mean(0))
    assert_close(any_order_law(INCONSISTENT, block_length=1), orders[0])
    assert_close(any_order_law(INCONSISTENT, block_length=3), any_order_law(INCONSISTENT))


def test_positions_are_chosen_in_proportion_to_their_weights():
    """Weights 1, 2 and 3: an order (i, j, k) has the probability w_i / 6 x w_j / (w_j + w_k)."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    law = sum(
        weights[i] / 6 * weights[j] / (weights[j] + weights[k]) * revealed_together([[i], [j], [k]])
        for i, j, k in permutations(range(3))
    )
    assert_close(one_token_law(INCONSISTENT, weights.expand(64, 3)), law)


def test_given_letters_stay_and_the_rest_is_drawn_given_them():
    """The middle letter is the third one."""
    law = torch.zeros(3, 3, 3, dtype=torch.float64)
    for first, second in ((0, 2), (2, 0)):
        ids = torch.full((9, 3), MASK)
        ids[:, 1] = LETTERS[2]
        letters, p = torch.cartesian_prod(torch.tensor(LETTERS), torch.tensor(LETTERS)), torch.ones(9)
        for at, column in ((first, 0), (second, 1)):
            p = p * INCONSISTENT(ids).softmax(-1).detach()[range(9), at, letters[:, column]]
            ids[:, at] = letters[:, column]
        law[:, 2] += 0.5 * (p.view(3, 3) if first == 0 else p.view(3, 3).T)
    assert_close(any_order_law(INCONSISTENT, start=[None, 2, None]), law.flatten())
    blocked = any_order_law(INCONSISTENT, block_length=1, start=[None, 2, None])
    assert not torch.allclose(blocked, law.flatten())
    assert_close(float(blocked.sum()), 1.0)


def remasked_by_walking(rates, sigmas):
    """The law of the process with remasking by a walk over all patterns, position by position."""
    states = {(MASK,) * 3: 1.0}
    for (u, v), sigma in zip(pairwise(rates), sigmas, strict=True):
        after: dict[tuple[int, ...], float] = {}
        for state, p in states.items():
            letters = INCONSISTENT(torch.tensor([state]))[0].softmax(-1).detach()
            options = []
            for i, token in enumerate(state):
                if token == MASK:
                    reveal = ((1 - v) - (1 - sigma) * (1 - u)) / u
                    drawn = [(letter, reveal * float(letters[i, letter])) for letter in LETTERS]
                    options.append([(MASK, 1 - reveal), *drawn])
                else:
                    options.append([(token, 1 - sigma), (MASK, sigma)])
            for choice in product(*options):
                chance = p * choice[0][1] * choice[1][1] * choice[2][1]
                key = tuple(token for token, _ in choice)
                after[key] = after.get(key, 0.0) + chance
        states = after
    return torch.tensor([states.get(tuple(string), 0.0) for string in INCONSISTENT.all_strings().tolist()]).double()


def test_remasking_hides_revealed_letters_again_and_reveals_as_many_more():
    rates, sigmas = [1.0, 0.7, 0.4, 0.0], [0.3, 0.5, 0.0]
    law = remasking_law(INCONSISTENT, rates, sigmas)
    assert_close(law, remasked_by_walking(rates, sigmas))
    assert not torch.allclose(law, ancestral_law(INCONSISTENT, rates))
    assert_close(remasking_law(INCONSISTENT, rates, [0.0] * 3), ancestral_law(INCONSISTENT, rates))


def test_remasking_can_differ_from_pattern_to_pattern_and_never_hides_what_is_given():
    rates, everywhere = [1.0, 0.7, 0.4, 0.0], torch.full((64, 3), 0.5)
    assert_close(
        remasking_law(INCONSISTENT, rates, [0.0, everywhere, 0.0]), remasking_law(INCONSISTENT, rates, [0.0, 0.5, 0.0])
    )
    law = remasking_law(INCONSISTENT, rates, [0.0, 0.5, 0.0], start=[None, 2, None])
    assert_close(float(law.view(3, 3, 3)[:, 2].sum()), 1.0)


def test_chi_square_agrees_with_scipy_where_nothing_is_pooled():
    counts, probabilities = torch.tensor([30, 50, 20]), torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)
    assert_close(chi_square(counts, probabilities), float(stats.chisquare([30, 50, 20], [25, 50, 25]).pvalue))


def test_rare_outcomes_are_pooled_until_five_are_expected():
    probabilities = torch.tensor([0.5, 0.02, 0.42, 0.02, 0.04], dtype=torch.float64)
    counts = torch.tensor([50, 5, 40, 2, 3])
    pooled = stats.chisquare([10, 50, 40], [8, 50, 42])  # 2 + 2 + 4 expected: the least that reaches 5
    assert_close(chi_square(counts, probabilities), float(pooled.pvalue))


def test_an_impossible_outcome_settles_it():
    assert chi_square(torch.tensor([99, 1]), torch.tensor([1.0, 0.0])) == 0.0
    assert_close(chi_square(torch.tensor([60, 40, 0]), torch.tensor([0.6, 0.4, 0.0]).double()), 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n_samples", [500, 20_000])
def test_p_values_of_true_samples_are_uniform(n_samples):
    generator = torch.Generator().manual_seed(0)
    p_values = []
    for _ in range(300):
        samples = torch.multinomial(TABLE.flatten(), n_samples, replacement=True, generator=generator)
        p_values.append(chi_square(torch.bincount(samples, minlength=27), TABLE.flatten()))
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def test_a_wrong_law_is_found():
    samples = torch.multinomial(TABLE.flatten(), 20_000, replacement=True, generator=torch.Generator().manual_seed(0))
    tilted = TABLE.flatten() ** 1.1
    assert chi_square(torch.bincount(samples, minlength=27), tilted / tilted.sum()) < 1e-3
