from __future__ import annotations

import math
from statistics import stdev

import numpy as np
import pytest
import torch
from xlm.errors import UserError
from xlm.metrics import SampleStatistics

SAMPLES = [[1, 2, 3], [1, 2], [4, 4, 4, 4], [1], [3, 1, 2, 5, 1, 2]]


def statistics(samples: list[list[int]], **options: list[int]) -> dict[str, float]:
    metric = SampleStatistics(**options)
    for sample in samples:
        metric.update([{}], [{"ids": sample}])
    return metric.compute()


def leave_one_out(statistic, samples: list) -> float:
    """The jackknife by its definition."""
    values = [statistic(samples[:i] + samples[i + 1 :]) for i in range(len(samples))]
    mean = sum(values) / len(values)
    return math.sqrt((len(values) - 1) / len(values) * sum((value - mean) ** 2 for value in values))


def test_lengths_have_mean_deviation_and_extremes():
    values = statistics([[5] * 2, [5] * 4, [5] * 6])
    assert values["length_mean"] == 4
    assert values["length_mean_se"] == pytest.approx(math.sqrt((4 + 0 + 4) / 2 / 3))
    assert values["length_sd"] == pytest.approx(2)
    assert (values["length_min"], values["length_max"]) == (2, 6)


def test_a_sample_has_the_entropy_of_its_own_tokens_and_not_that_of_all_samples():
    values = statistics([[1, 1, 1, 1], [2, 2, 3, 3], [1, 2, 3, 4]])
    expected = [0, math.log(2), math.log(4)]
    assert values["sample_entropy"] == pytest.approx(math.log(2))
    assert values["sample_entropy_se"] == pytest.approx(stdev(expected) / math.sqrt(3))


def test_the_entropy_of_long_uniform_samples_is_that_of_their_source():
    samples = torch.randint(8, (20, 20_000), generator=torch.Generator().manual_seed(0)).tolist()
    assert statistics(samples)["sample_entropy"] == pytest.approx(math.log(8), abs=1e-3)


def test_repetition_is_the_share_of_ngrams_that_came_before_in_their_sample():
    values = statistics([[1, 2, 1, 2], [1, 2, 1, 2], [1, 2, 3, 4]], repetition=[1, 2])
    assert values["repetition_1"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert values["repetition_2"] == pytest.approx((1 / 3 + 1 / 3 + 0) / 3)
    assert values["repetition_2_se"] == pytest.approx(stdev([1 / 3, 1 / 3, 0]) / math.sqrt(3))


def test_distinct_counts_ngrams_of_all_samples_over_tokens():
    values = statistics([[1, 2, 3], [1, 2]], distinct=[1, 2])
    assert values["distinct_1"] == 3 / 5
    assert values["distinct_2"] == 2 / 5  # 12 and 23; no n-gram crosses from one sample to the next


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_error_of_distinct_is_the_jackknife(n):
    def distinct(samples):
        return len({tuple(s[i : i + n]) for s in samples for i in range(len(s) - n + 1)}) / sum(map(len, samples))

    values = statistics(SAMPLES, distinct=[n])
    assert values[f"distinct_{n}"] == distinct(SAMPLES)
    assert values[f"distinct_{n}_se"] == pytest.approx(leave_one_out(distinct, SAMPLES))


def test_the_error_of_the_deviation_is_the_jackknife():
    values = statistics(SAMPLES)
    lengths = list(map(len, SAMPLES))
    assert values["length_sd"] == pytest.approx(stdev(lengths))
    assert values["length_sd_se"] == pytest.approx(leave_one_out(stdev, lengths))


def test_errors_cover_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(0), {"length_mean": 0, "sample_entropy": 0}
    truth = {"length_mean": 5.5, "sample_entropy": np.mean([math.log(k) for k in range(1, 11)])}
    for _ in range(300):
        values = statistics([list(range(k)) for k in rng.integers(1, 11, 50)])
        for name in inside:
            inside[name] += abs(values[name] - truth[name]) < 1.96 * values[f"{name}_se"]
    assert all(0.91 < count / 300 < 0.98 for count in inside.values())


def test_samples_too_short_to_say_anything_are_left_out():
    values = statistics([[], [1, 1], [1, 2]], repetition=[2], distinct=[1])
    assert values["length_min"] == 0
    assert values["sample_entropy"] == pytest.approx(math.log(2) / 2)
    assert values["repetition_2"] == 0
    assert values["distinct_1"] == 2 / 4


def test_nothing_seen_has_no_numbers_and_one_sample_no_errors():
    assert all(math.isnan(value) for value in statistics([]).values())
    one = statistics([[1, 2, 3, 4, 5]])
    without = {name for name, value in one.items() if math.isnan(value)}
    assert without == {name for name in one if name.endswith("_se")} | {"length_sd"}


def test_the_order_of_samples_does_not_matter():
    assert statistics(SAMPLES) == pytest.approx(statistics(SAMPLES[::-1]))


def test_a_reset_forgets_samples():
    metric = SampleStatistics()
    metric.update([{}], [{"ids": [1]}])
    metric.reset()
    metric.update([{}], [{"ids": [1, 2, 3]}])
    assert metric.compute()["length_mean"] == 3


def test_ngrams_of_no_token_are_refused():
    for name in ("repetition", "distinct"):
        with pytest.raises(UserError, match=rf"metrics\.sample_statistics\.{name} \(\[1, 0\]\)"):
            SampleStatistics(**{name: [1, 0]})
