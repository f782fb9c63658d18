from __future__ import annotations

import math

import pytest
from xlm.metrics import Coverage

ANSWERS = {"p": {"a", "b", "c", "d"}, "q": {"a"}}


def coverage(*pairs: tuple[str, str]) -> Coverage:
    metric = Coverage(answers=lambda example: ANSWERS[example["prompt"]])
    metric.update([{"prompt": prompt} for prompt, _ in pairs], [{"prediction": answer} for _, answer in pairs])
    return metric


def test_coverage_is_the_different_answers_found_over_all_that_exist():
    values = coverage(("p", "a"), ("p", "a"), ("p", "b"), ("p", "wrong"), ("q", "a")).compute()
    residuals = (2 - 0.6 * 4) ** 2 + (1 - 0.6 * 1) ** 2  # of the two prompts
    assert values == pytest.approx({"coverage": 3 / 5, "coverage_se": math.sqrt(residuals * 2 / 1) / 5})


def test_a_prompt_without_a_right_answer_counts_in_the_denominator():
    assert coverage(("p", "x"), ("q", "a")).compute()["coverage"] == 1 / 5


def test_an_answer_of_another_prompt_finds_nothing():
    assert coverage(("q", "b")).compute()["coverage"] == 0


def test_the_prompt_may_stand_before_the_answer():
    assert coverage(("p", "p a"), ("p", "a")).compute()["coverage"] == 1 / 4


def test_one_prompt_has_no_standard_error_and_nothing_asked_no_share():
    assert math.isnan(coverage(("p", "a")).compute()["coverage_se"])
    assert all(math.isnan(value) for value in coverage().compute().values())


def test_an_answer_found_in_two_batches_or_on_two_ranks_counts_once(monkeypatch: pytest.MonkeyPatch):
    metric = coverage(("p", "a"), ("q", "a"))
    other = coverage(("p", "a"), ("p", "b"))
    merged = coverage()
    monkeypatch.setattr("xlm.metrics.gathered.gather", lambda notes: [metric.notes, [], other.notes])
    together = merged.compute()
    monkeypatch.undo()
    metric.update([{"prompt": "p"}] * 2, [{"prediction": "a"}, {"prediction": "b"}])
    assert metric.compute() == together
    assert metric.compute()["coverage"] == 3 / 5


def test_a_reset_forgets_what_was_asked():
    metric = coverage(("p", "a"))
    metric.reset()
    metric.update([{"prompt": "q"}], [{"prediction": "x"}])
    assert metric.compute()["coverage"] == 0
