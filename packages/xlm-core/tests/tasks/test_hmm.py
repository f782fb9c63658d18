from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.hmm import HMM
from xlm.tasks.splits import SPLITS

SMALL = {"split": "test", "window": 4, "n_symbols": 3, "stay": 0.7, "noise": 0.2}


def by_all_state_paths(text: str, n_symbols: int, stay: float, noise: float) -> float:
    """p(text) as the sum over every sequence of states: no recursion."""
    total = 0.0
    for path in itertools.product(range(n_symbols), repeat=len(text)):
        p = 1 / n_symbols
        for before, after in itertools.pairwise(path):
            p *= stay if before == after else (1 - stay) / (n_symbols - 1)
        for state, symbol in zip(path, text, strict=True):
            p *= 1 - noise if "abc"[state] == symbol else noise / (n_symbols - 1)
        total += p
    return total


def windows(hmm: HMM) -> list[str]:
    (row,) = hmm.rows()
    return [row["text"][i : i + hmm.window] for i in range(0, len(row["text"]), hmm.window)]


def test_probability_and_entropy_agree_with_brute_force_over_strings_and_state_paths():
    strings = ["".join(symbols) for symbols in itertools.product("abc", repeat=4)]
    p = {text: by_all_state_paths(text, 3, 0.7, 0.2) for text in strings}
    assert sum(p.values()) == pytest.approx(1)
    hmm = HMM(**SMALL)
    assert [math.exp(hmm.log_prob(text)) for text in strings] == pytest.approx(list(p.values()))
    assert hmm.entropy() == pytest.approx(-sum(q * math.log(q) for q in p.values()), rel=1e-12)


def test_entropy_without_noise_is_that_of_the_markov_chain():
    change = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1 / 3))
    assert HMM(split="test", noise=0.0).entropy() == pytest.approx(math.log(4) + 9 * change)


def test_a_state_that_knows_nothing_of_the_last_one_gives_uniform_strings():
    assert HMM(split="test", stay=0.25).entropy() == pytest.approx(10 * math.log(4))


def test_a_state_that_never_changes_and_shows_itself_costs_one_symbol():
    hmm = HMM(split="test", stay=1.0, noise=0.0)
    assert hmm.entropy() == pytest.approx(math.log(4))
    assert hmm.optimum() == pytest.approx(math.log(4) / 10)
    assert hmm.log_prob("ab") == -math.inf
    assert all(len(set(text)) == 1 for text in windows(hmm))


def test_windows_cost_their_entropy_on_average():
    hmm = HMM(split="train", n=4000)
    costs = np.array([-hmm.log_prob(text) for text in windows(hmm)])
    assert costs.mean() == pytest.approx(hmm.entropy(), abs=5 * costs.std() / 4000**0.5)


def test_strings_come_as_often_as_their_probability_says():
    hmm = HMM(**{**SMALL, "window": 3, "n": 20_000})
    texts = windows(hmm)
    for symbols in itertools.product("abc", repeat=3):
        p = math.exp(hmm.log_prob(text := "".join(symbols)))
        assert texts.count(text) == pytest.approx(20_000 * p, abs=5 * math.sqrt(20_000 * p))


def test_one_text_holds_all_windows():
    (row,) = HMM(split="val", n=7, window=5).rows()
    assert len(row["text"]) == 35
    assert set(row["text"]) <= set("abcd")


def test_fewer_windows_are_the_beginning_of_more_and_splits_and_seeds_differ():
    long = HMM(split="train", n=50).rows()[0]["text"]
    assert HMM(split="train", n=5).rows()[0]["text"] == long[:50]
    others = [HMM(split=split, n=50).rows()[0]["text"] for split in SPLITS[1:]]
    assert len({long, *others, HMM(split="train", n=50, seed=1).rows()[0]["text"]}) == 4


def test_an_entropy_of_too_many_strings_is_refused_and_their_windows_are_not():
    hmm = HMM(split="test", n=1, window=12)
    assert len(hmm.rows()[0]["text"]) == 12
    assert hmm.optimum() is None
    with pytest.raises(UserError, match=r"source\.window \(12\)"):
        hmm.entropy()


@pytest.mark.parametrize(("key", "value"), [("window", 0), ("n_symbols", 1), ("stay", 1.1), ("noise", -0.1)])
def test_impossible_laws_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        HMM(**{"split": "train", key: value})
