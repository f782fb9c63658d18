"""The toys are what they say, and three ways to count the probability of a text agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from xlm.protocols import Model
from xlm.testing.insertion import (
    ExactInserter,
    InconsistentInserter,
    TableInserter,
    n_texts,
    random_text_table,
)
from xlm.testing.insertion_laws import (
    insertion_bound,
    insertion_law,
    insertion_steps,
    joint,
    order_log_probabilities,
)

BOS, LETTERS, VOCAB = 2, [5, 4, 7], 8  # not in the order of their ids
TABLE = random_text_table(n_letters=3, length=3)
EXACT = ExactInserter(TABLE, token_ids=LETTERS, vocab_size=VOCAB)
WINDOW_TABLE = torch.cat([torch.zeros(13, dtype=torch.float64), TABLE[13:] / TABLE[13:].sum()])
WINDOW = ExactInserter(WINDOW_TABLE, token_ids=LETTERS, vocab_size=VOCAB)
INCONSISTENT = InconsistentInserter(token_ids=LETTERS, vocab_size=VOCAB, length=3)
TEXTS = EXACT.texts()


def opened(model, room):
    return insertion_law(model, [BOS], span=[0], room=[room], free=True)


def steps(model, text, **options):
    return insertion_steps(model, [BOS, *text], span=[-1, *[0] * len(text)], **options)


def by_orders(model, text, *, counts_stop):
    return float(order_log_probabilities(steps(model, text), counts_stop=counts_stop).exp().sum())


def by_subsets(model, text):
    """Forward recursion over the sets of places that are there; the stop is counted."""
    all_steps = steps(model, text)
    places = sorted(all_steps, key=len, reverse=True)
    reached = dict.fromkeys(places, 0.0) | {places[0]: 1.0}
    for missing in places:
        for place, log_p in all_steps[missing].log_p.items():
            reached[missing - {place}] += reached[missing] * math.exp(log_p + all_steps[missing].log_continue)
    return reached[frozenset()] * math.exp(all_steps[frozenset()].log_stop)


def test_texts_are_numbered_as_a_tree():
    assert n_texts(3, 3) == len(TABLE) == len(TEXTS) == 40
    assert TEXTS[:6] == [[], [5], [4], [7], [5, 5], [5, 4]]
    samples, lengths = torch.tensor([[5, 4, 0], [7, 7, 7], [7, 7, 7], [0, 0, 0]]), torch.tensor([2, 3, 3, 0])
    assert EXACT.count(samples, lengths).nonzero().flatten().tolist() == [0, 5, 39]
    assert EXACT.count(samples, lengths)[39] == 2


def test_a_sample_with_a_foreign_token_is_refused():
    with pytest.raises(ValueError, match="no letter"):
        EXACT.count(torch.tensor([[5, 1]]), torch.tensor([2]))


def test_the_exact_network_knows_the_posterior_of_the_next_insertion():
    a, b = 0, 1  # letters 5 and 4
    table = torch.zeros(n_texts(2, 2), dtype=torch.float64)
    table[[1 + a, 2 * 1 + 1 + a, 2 * 1 + 1 + b]] = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)  # a, aa, ab
    model = ExactInserter(table, token_ids=LETTERS[:2], vocab_size=VOCAB)
    logits, stop = (values.detach() for values in model.read(torch.tensor([[BOS, 5]])))
    # "a" is met on the way to a (always), to aa (always) and to ab (in one of two orders)
    assert_close(float(stop.sigmoid()), 0.5 / (0.5 + 0.2 + 0.15))
    assert_close(float(logits[0].flatten().softmax(0).reshape(2, 8)[1, 4]), 0.15 / 0.35)
    assert_close(float(logits[0].flatten().softmax(0).reshape(2, 8)[0, 5]), 0.10 / 0.35)


@pytest.mark.parametrize("model", [EXACT, INCONSISTENT], ids=["exact", "inconsistent"])
def test_tokens_may_be_stored_in_any_order_and_padding_changes_nothing(model):
    assert isinstance(model, Model)
    straight, stop = model.read(torch.tensor([[BOS, 5, 4, 7]]))
    ids, positions = torch.tensor([[BOS, 4, 0, 7, 5]]), torch.tensor([[0, 2, 9, 3, 1]])
    stored, stored_stop = model.read(ids, torch.tensor([[1, 1, 0, 1, 1]]).bool(), positions=positions)
    assert_close(stored[0, [0, 4, 1, 3]], straight[0])
    assert_close(stored_stop, stop)
    assert_close(model(ids, positions=positions), model.hidden(ids, positions=positions))


def test_a_text_beyond_the_table_is_refused():
    with pytest.raises(IndexError):
        EXACT.read(torch.tensor([[BOS, 5, 5, 5, 5]]))


def test_the_exact_network_draws_from_its_table():
    law = opened(EXACT, room=4)
    assert_close(torch.tensor([law[BOS, *text] for text in TEXTS], dtype=torch.float64), TABLE)
    assert sum(p for ids, p in law.items() if len(ids) > 4) < 1e-12


def test_the_exact_network_of_windows_draws_from_its_table():
    law = insertion_law(WINDOW, [BOS], span=[0], room=[3], free=False)
    assert_close(torch.tensor([law[BOS, *text] for text in TEXTS[13:]], dtype=torch.float64), WINDOW_TABLE[13:])


@pytest.mark.parametrize("model", [EXACT, INCONSISTENT], ids=["exact", "inconsistent"])
def test_orders_subsets_and_the_recursion_over_texts_give_one_probability(model):
    law = opened(model, room=4)
    for text in TEXTS:
        expected = pytest.approx(law[BOS, *text], rel=1e-10)
        assert by_orders(model, text, counts_stop=True) == expected
        assert by_subsets(model, text) == expected


@pytest.mark.parametrize("model", [WINDOW, INCONSISTENT], ids=["exact", "inconsistent"])
def test_orders_and_the_recursion_agree_on_windows(model):
    law = insertion_law(model, [BOS], span=[0], room=[3], free=False)
    for text in TEXTS[13:]:
        assert by_orders(model, text, counts_stop=False) == pytest.approx(law[BOS, *text], rel=1e-10)
    assert sum(law.values()) == pytest.approx(1)


def test_texts_and_the_truncated_tail_have_mass_1():
    mass = sum(by_orders(INCONSISTENT, text, counts_stop=True) for text in TEXTS)
    tail = sum(p for ids, p in opened(INCONSISTENT, room=4).items() if len(ids) == 5)
    assert tail > 0.01
    assert mass + tail == pytest.approx(1, abs=1e-12)


def test_every_order_of_the_exact_network_is_as_probable_and_its_bound_tight():
    for text, p in zip(TEXTS, TABLE.tolist(), strict=True):
        orders = order_log_probabilities(steps(EXACT, text), counts_stop=True)
        assert_close(orders, torch.full_like(orders, math.log(p) - math.lgamma(len(text) + 1)))
        assert insertion_bound(steps(EXACT, text), counts_stop=True) == pytest.approx(-math.log(p))


@pytest.mark.parametrize("counts_stop", [True, False])
def test_the_bound_of_an_inconsistent_network_is_the_mean_over_orders_and_above_its_probability(counts_stop):
    for text in TEXTS:
        orders = order_log_probabilities(steps(INCONSISTENT, text), counts_stop=counts_stop)
        bound = insertion_bound(steps(INCONSISTENT, text), counts_stop=counts_stop)
        assert bound == pytest.approx(float(-orders.mean()) - math.lgamma(len(text) + 1))
        assert bound >= float(-orders.logsumexp(0)) - 1e-12
    assert bound > float(-orders.logsumexp(0)) + 1e-3


def test_in_a_template_spans_keep_their_room_and_given_tokens_stay():
    law = insertion_law(INCONSISTENT, [BOS, 5], span=[0, 1], room=[1, 1], free=False)
    assert sum(law.values()) == pytest.approx(1)
    assert set(law) == {(BOS, a, 5, b) for a in LETTERS for b in LETTERS}
    for ids, p in law.items():
        orders = order_log_probabilities(insertion_steps(INCONSISTENT, ids, span=[-1, 0, -1, 1]), counts_stop=False)
        assert float(orders.exp().sum()) == pytest.approx(p)


def test_after_a_prompt_only_the_target_is_inserted():
    law = insertion_law(INCONSISTENT, [BOS, 5, 4], span=[-1, -1, 0], room=[0, 0, 2], free=True)
    assert {ids[:3] for ids in law} == {(BOS, 5, 4)}
    assert sum(law.values()) == pytest.approx(1)
    target = insertion_steps(INCONSISTENT, [BOS, 5, 4, 7], span=[-1, -1, -1, 0])
    assert float(order_log_probabilities(target, counts_stop=True).exp().sum()) == pytest.approx(law[BOS, 5, 4, 7])


def test_tokens_that_are_never_inserted_have_no_share_of_the_softmax():
    law = insertion_law(INCONSISTENT, [BOS], span=[0], room=[2], free=False, never=[5])
    assert set(law) == {(BOS, a, b) for a in LETTERS[1:] for b in LETTERS[1:]}
    orders = order_log_probabilities(steps(INCONSISTENT, [4, 7], never=[5]), counts_stop=False)
    assert float(orders.exp().sum()) == pytest.approx(law[BOS, 4, 7])


def test_a_sampler_of_its_own_has_a_law_of_its_own():
    def greedy(logits):
        return torch.nn.functional.one_hot(logits.flatten().argmax(), logits.numel()).reshape(logits.shape).double()

    law = insertion_law(
        INCONSISTENT, [BOS], span=[0], room=[3], free=True, pairs=greedy, stops=lambda p: float(p >= 0.5)
    )
    assert list(law.values()) == [1.0]
    assert joint(torch.zeros(2, 3, dtype=torch.float64)).sum() == pytest.approx(1)


def test_a_table_needs_a_number_for_every_text():
    with pytest.raises(ValueError):
        ExactInserter(TABLE[:-1], token_ids=LETTERS, vocab_size=VOCAB)
    assert isinstance(EXACT, TableInserter)
