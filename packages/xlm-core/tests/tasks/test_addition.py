from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.addition import Addition, AdditionCheck
from xlm.tasks.splits import SPLITS, in_split


def numbers(row: dict[str, str]) -> tuple[int, int]:
    first, second = re.fullmatch(r"(0|[1-9]\d*)\+(0|[1-9]\d*)=", row["prompt"]).groups()
    return int(first), int(second)


@pytest.fixture(scope="module")
def rows():
    return Addition(split="train", n=2000, digits=3).rows()


def test_the_target_is_the_sum_of_the_prompts_numbers(rows):
    assert all(int(row["target"]) == sum(numbers(row)) for row in rows)
    assert all(row["target"] == str(int(row["target"])) for row in rows)


def test_a_reversed_target_has_the_same_digits_the_other_way_round(rows):
    reverse = Addition(split="train", n=2000, digits=3, reverse=True).rows()
    assert [(row["prompt"], row["target"][::-1]) for row in reverse] == [(row["prompt"], row["target"]) for row in rows]


def test_numbers_have_one_to_three_digits_equally_often():
    digits = [len(str(n)) for row in Addition(split="train", n=300, digits=3).rows() for n in numbers(row)]
    for length in (1, 2, 3):
        assert digits.count(length) == pytest.approx(200, abs=5 * 12)  # 5 standard deviations of binomial(600, 1/3)
    assert len(digits) == 600


def test_every_one_digit_sum_comes_up_and_shares_its_split_with_the_other_order():
    pairs = np.array(list(itertools.product(range(10), repeat=2)))
    found = []
    for split in SPLITS:
        mine = {tuple(pair) for pair in pairs[in_split(np.sort(pairs, axis=1), split)].tolist()}
        found.append({numbers(row) for row in Addition(split=split, n=len(mine), digits=1).rows()})
        assert found[-1] == mine == {(b, a) for a, b in mine}
    assert sum(map(len, found)) == 100


def test_no_pair_is_in_two_splits_in_either_order_and_with_any_seed():
    seen = {}
    for seed, split in enumerate(SPLITS):
        for row in Addition(split=split, n=300, digits=2, seed=seed).rows():
            assert seen.setdefault(frozenset(numbers(row)), split) == split


def test_the_infill_view_hides_the_sum_alone(rows):
    for row in rows[:50]:
        assert row["text"] == row["prompt"] + row["target"]
        assert row["fixed"] == "1" * len(row["prompt"]) + "0" * len(row["target"])


def test_fewer_sums_are_the_beginning_of_more_and_seeds_differ(rows):
    assert Addition(split="train", n=5, digits=3).rows() == rows[:5]
    assert Addition(split="train", n=5, digits=3, seed=1).rows() != rows[:5]
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_numbers_of_eighteen_digits_do_not_overflow():
    for row in Addition(split="test", n=200, digits=18).rows():
        assert int(row["target"]) == sum(numbers(row))


@pytest.mark.parametrize("digits", [0, 19])
def test_impossible_numbers_are_refused(digits):
    with pytest.raises(UserError, match=r"source\.digits"):
        Addition(split="train", digits=digits)


@pytest.mark.parametrize(
    ("answer", "plain", "reverse"),
    [
        ("101", True, True),
        ("12+89=101", True, True),
        ("0101", False, False),
        ("", False, False),
        (" 101", False, False),
    ],
)
def test_check_wants_the_digits_of_the_sum_and_nothing_else(answer, plain, reverse):
    example = {"prompt": "12+89=", "target": "never looked at"}
    assert AdditionCheck()(example, answer) is plain
    assert AdditionCheck(reverse=True)(example, answer) is reverse


def test_check_reads_the_digits_in_the_order_it_is_told():
    example = {"prompt": "12+345=", "target": "0"}
    assert AdditionCheck()(example, "357")
    assert not AdditionCheck()(example, "753")
    assert AdditionCheck(reverse=True)(example, "753")
    assert not AdditionCheck(reverse=True)(example, "357")
