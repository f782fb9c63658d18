from __future__ import annotations

import math

import pytest
from xlm.errors import UserError
from xlm.metrics import ExactMatch, TokenAccuracy, Validity


def targets(*texts, **columns):
    return [{"target": text, **columns} for text in texts]


def predictions(*texts):
    return [{"prediction": text} for text in texts]


def test_exact_match_is_the_share_of_equal_texts_with_a_wilson_error():
    metric = ExactMatch()
    metric.update(targets("ab", "cd", "ef", "gh"), predictions("ab", "cd", "ef", "hg"))
    expected_se = math.sqrt(0.75 * 0.25 / 4 + 1 / 64) / 1.25  # = 0.2
    assert metric.compute() == pytest.approx({"exact_match": 0.75, "exact_match_se": expected_se})


def test_spaces_count_in_exact_match():
    metric = ExactMatch()
    metric.update(targets("1 2"), predictions("1 2 "))
    assert metric.compute()["exact_match"] == 0


def test_error_is_binomial_for_many_answers():
    metric = ExactMatch()
    metric.update(targets(*["a"] * 10_000), predictions(*["a"] * 3000 + ["b"] * 7000))
    assert metric.compute()["exact_match_se"] == pytest.approx(math.sqrt(0.3 * 0.7 / 10_000), rel=1e-3)


def test_error_is_not_zero_when_every_answer_is_right():
    metric = ExactMatch()
    metric.update(targets(*["a"] * 99), predictions(*["a"] * 99))
    assert metric.compute() == pytest.approx({"exact_match": 1.0, "exact_match_se": 1 / 200})


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_gives_nan():
    assert all(math.isnan(value) for value in ExactMatch().compute().values())
    assert all(math.isnan(value) for value in TokenAccuracy().compute().values())


def test_answers_and_examples_must_match_in_number():
    with pytest.raises(ValueError, match="zip"):
        ExactMatch().update(targets("a", "b"), predictions("a"))


def test_validity_asks_the_check_with_the_example_and_the_text():
    metric = Validity(check=lambda example, prediction: prediction in example["allowed"])
    metric.update([{"allowed": "ab"}, {"allowed": "ab"}], predictions("b", "c"))
    assert metric.compute() == pytest.approx({"validity": 0.5, "validity_se": math.sqrt(1 / 8 + 1 / 16) / 1.5})


def test_token_accuracy_divides_right_characters_by_the_targets():
    metric = TokenAccuracy()
    metric.update(targets("abcd", "ab"), predictions("abxx", "ab"))  # 2 of 4 and 2 of 2
    residuals = (2 - 4 * 2 / 3) ** 2 + (2 - 2 * 2 / 3) ** 2
    expected = {"token_accuracy": 4 / 6, "token_accuracy_se": math.sqrt(residuals * 2 / 1) / 6}
    assert metric.compute() == pytest.approx(expected)


def test_missing_characters_are_wrong_and_further_ones_are_not_looked_at():
    metric = TokenAccuracy()
    metric.update(targets("abcd", "ab"), predictions("ab", "abzz"))
    assert metric.compute()["token_accuracy"] == pytest.approx(4 / 6)


def test_given_cells_are_not_counted():
    metric = TokenAccuracy()
    metric.update(targets("1234", fixed="1100"), predictions("1239"))
    assert metric.compute()["token_accuracy"] == 0.5


def test_a_mask_for_another_text_than_the_target_is_ignored():
    metric = TokenAccuracy()
    metric.update(targets("34", fixed="1100"), predictions("39"))
    assert metric.compute()["token_accuracy"] == 0.5


def test_words_are_compared_as_wholes_and_shifts_count():
    metric = TokenAccuracy(unit="word")
    metric.update(targets("10 11 12", "1 2"), predictions("10 1 12", "0 1 2"))
    assert metric.compute()["token_accuracy"] == pytest.approx(2 / 5)


def test_given_words_are_not_counted():
    metric = TokenAccuracy(unit="word")
    metric.update(targets("10 11 12", fixed="111" + "000" + "00"), predictions("99 11 0"))
    assert metric.compute()["token_accuracy"] == 0.5


def test_unknown_unit_is_refused():
    with pytest.raises(UserError, match="character, word"):
        TokenAccuracy(unit="token")


@pytest.mark.parametrize("make", [ExactMatch, TokenAccuracy])
def test_two_ranks_added_give_what_one_would(make):
    examples, rows = targets("ab", "cd", "abc"), predictions("ab", "cx", "ab")
    whole, first, second = make(), make(), make()
    whole.update(examples, rows)
    first.update(examples[:1], rows[:1])
    second.update(examples[1:], rows[1:])
    for state, reduce in first._reductions.items():  # what torchmetrics does after gathering
        assert reduce.__name__ == "dim_zero_sum"
        setattr(first, state, getattr(first, state) + getattr(second, state))
    first._computed = None
    assert first.compute() == pytest.approx(whole.compute())


def test_reset_forgets():
    metric = ExactMatch()
    metric.update(targets("a"), predictions("b"))
    metric.reset()
    metric.update(targets("a"), predictions("a"))
    assert metric.compute()["exact_match"] == 1
