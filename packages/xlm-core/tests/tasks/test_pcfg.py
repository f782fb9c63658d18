from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.pcfg import PCFG, PCFGCheck, balanced
from xlm.tasks.splits import SPLITS

SMALL = {"split": "test", "most_pairs": 3, "kinds": 2, "branch": 0.3}


def words(pairs: int, kinds: int) -> list[str]:
    """Every balanced text: all strings of brackets, from which matching pairs are struck out until none is left."""
    found = []
    for symbols in itertools.product("()[]"[: 2 * kinds], repeat=2 * pairs):
        rest = "".join(symbols)
        for _ in range(pairs):
            rest = rest.replace("()", "").replace("[]", "")
        if not rest:
            found.append("".join(symbols))
    return found


def derivation(text: str) -> float:
    """Probability of an S becoming ``text`` under the grammar's rules, by trying every way to cut it."""
    if not text:
        return 1 - 0.3
    total = 0.0
    for end in range(1, len(text), 2):
        if text[0] + text[end] in ("()", "[]"):
            inside, after = text[1:end], text[end + 1 :]
            if balanced(inside) and balanced(after):
                total += 0.3 / 2 * derivation(inside) * derivation(after)
    return total


@pytest.fixture(scope="module")
def texts():
    return [text for pairs in (1, 2, 3) for text in words(pairs, 2)]


def test_there_are_catalan_times_kinds_to_the_pairs_texts(texts):
    assert len(texts) == 1 * 2 + 2 * 4 + 5 * 8


def test_probability_and_entropy_agree_with_brute_force_over_texts_and_derivations(texts):
    p = np.array([derivation(text) for text in texts])
    p /= p.sum()
    pcfg = PCFG(**SMALL)
    assert [math.exp(pcfg.log_prob(text)) for text in texts] == pytest.approx(p.tolist())
    assert pcfg.entropy() == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
    tokens = (p * [len(text) + 1 for text in texts]).sum()
    assert pcfg.optimum() == pytest.approx(pcfg.entropy() / tokens, rel=1e-12)


def test_entropy_without_a_longest_text_is_that_of_the_rules_times_their_expected_number():
    rule = -(0.3 * math.log(0.3 / 2) + 0.7 * math.log(0.7))
    expected = math.log(2) + 2 * rule / (1 - 2 * 0.3)  # a kind, and two S of 1/(1-2b) rules each
    assert PCFG(split="test", most_pairs=200, branch=0.3).entropy() == pytest.approx(expected)


@pytest.mark.parametrize("kinds", [1, 3])
def test_each_kind_of_bracket_is_used_and_costs_its_choice(kinds):
    pcfg = PCFG(split="test", n=300, kinds=kinds)
    assert set("".join(row["text"] for row in pcfg.rows())) == set("()[]{}"[: 2 * kinds])
    with_two = PCFG(split="test", kinds=2).log_prob("()()")
    assert pcfg.log_prob("()()") == pytest.approx(with_two - 2 * math.log(kinds / 2))


def test_texts_that_the_grammar_does_not_give_have_no_probability():
    pcfg = PCFG(**SMALL)
    for text in ("", "(", "(]", ")(", "(a)", "()()()()", "<>"):
        assert pcfg.log_prob(text) == -math.inf


def test_texts_cost_their_entropy_on_average():
    pcfg = PCFG(split="train", n=5000)
    costs = np.array([-pcfg.log_prob(row["text"]) for row in pcfg.rows()])
    assert costs.mean() == pytest.approx(pcfg.entropy(), abs=5 * costs.std() / 5000**0.5)


def test_texts_come_as_often_as_their_probability_says(texts):
    pcfg = PCFG(**SMALL, n=20_000)
    drawn = [row["text"] for row in pcfg.rows()]
    assert set(drawn) <= set(texts)
    for text in texts:
        p = math.exp(pcfg.log_prob(text))
        assert drawn.count(text) == pytest.approx(20_000 * p, abs=5 * math.sqrt(20_000 * p))


def test_fewer_texts_are_the_beginning_of_more_and_splits_and_seeds_differ():
    long = PCFG(split="train", n=50).rows()
    assert PCFG(split="train", n=5).rows() == long[:5]
    others = [PCFG(split=split, n=50).rows() for split in SPLITS[1:]]
    assert all(long != other for other in [*others, PCFG(split="train", n=50, seed=1).rows()])


@pytest.mark.parametrize(
    ("key", "value"), [("most_pairs", 0), ("kinds", 0), ("kinds", 5), ("branch", 0.0), ("branch", 0.6)]
)
def test_impossible_grammars_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        PCFG(**{"split": "train", key: value})


@pytest.mark.parametrize(("text", "valid"), [("([])()", True), ("", False), ("([)]", False), ("{}", False)])
def test_check_accepts_balanced_texts_of_the_kinds_that_there_are(text, valid):
    assert PCFGCheck(kinds=2)({}, text) is valid
    assert PCFGCheck(kinds=3)({}, "{}")
