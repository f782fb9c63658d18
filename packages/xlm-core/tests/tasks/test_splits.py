from __future__ import annotations

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, hash_rows, in_split


def test_every_row_belongs_to_exactly_one_split():
    codes = np.arange(6000).reshape(-1, 3)
    assert (sum(in_split(codes, split).astype(int) for split in SPLITS) == 1).all()


def test_shares_are_eight_tenths_and_twice_one_tenth():
    codes = np.arange(100_000)[:, None]
    shares = {split: in_split(codes, split).mean() for split in SPLITS}
    assert shares == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.005)  # 5 standard errors


def test_hash_of_one_zero_is_the_first_value_of_splitmix64():
    assert hash_rows(np.array([[0]])).tolist() == [0xE220A8397B1DCDAF]  # the published first output for seed 0


def test_hash_depends_on_the_order_of_the_numbers():
    first, second = hash_rows(np.array([[1, 2], [2, 1]]))
    assert first != second


def test_distinct_drops_repeats_and_keeps_the_order():
    draws = iter([[("a", "1"), ("b", "2")], [("a", "1"), ("c", "3")]])
    assert distinct(lambda: next(draws), 3, widen="key") == [("a", "1"), ("b", "2"), ("c", "3")]


def test_distinct_says_how_many_there_are_when_no_more_come():
    with pytest.raises(UserError, match=r"only 2 different examples.*source\.n \(3\).*source\.clues"):
        distinct(lambda: [("a", "1"), ("b", "2")], 3, widen="source.clues")


@pytest.mark.parametrize(("key", "value"), [("split", "dev"), ("n", 0), ("seed", -1)])
def test_impossible_sources_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=rf"source\.{key} \({value}\)"):
        check_source(**{"split": "train", "n": 1, "seed": 0, key: value})
