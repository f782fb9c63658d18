"""Randomness against published words and statistical tests; schedules against autograd and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.noise import (
    GAMMA,
    CosineSchedule,
    GeometricSchedule,
    LinearSchedule,
    LogLinearSchedule,
    PolynomialSchedule,
    Stream,
    low_discrepancy_times,
    mix64,
    noise_key,
    noise_keys,
    permutation,
    uniforms,
)
from xlm.protocols import NoiseSchedule
from xlm.testing.laws import chi_square

# The first words of SplitMix64 for two seeds, from the authors' C code (https://prng.di.unimi.it/splitmix64.c)
PUBLISHED = {
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC],
    1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431],
}
SCHEDULES = [
    LinearSchedule(),
    LogLinearSchedule(),
    LogLinearSchedule(eps=0.0),
    CosineSchedule(),
    PolynomialSchedule(power=3.0),
    GeometricSchedule(),
]


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return noise_keys(seed, Stream.TRAIN, torch.arange(n))


def unsigned(words: torch.Tensor) -> list[int]:
    return [word % 2**64 for word in words.tolist()]


@pytest.mark.parametrize("seed", PUBLISHED)
def test_words_are_those_of_splitmix64(seed):
    counters = torch.arange(1, 5) * (GAMMA - 2**64)
    assert unsigned(mix64(seed + counters)) == PUBLISHED[seed]


@pytest.mark.parametrize("seed", PUBLISHED)
def test_uniforms_are_the_top_bits_of_the_words(seed):
    u32, u64 = (uniforms(torch.tensor([seed]), 4, dtype=dtype)[0] for dtype in (torch.float32, torch.float64))
    assert u32.tolist() == [(word >> 40) / 2**24 for word in PUBLISHED[seed]]
    assert u64.tolist() == [(word >> 11) / 2**53 for word in PUBLISHED[seed]]
    assert (u32.dtype, u64.dtype) == (torch.float32, torch.float64)


def test_mix64_reads_its_argument_only():
    words = torch.arange(8)
    mix64(words)
    assert words.tolist() == list(range(8))


def test_keys_one_by_one_and_together_are_equal_and_never_negative():
    ns = torch.tensor([0, 1, 2, 10**6, 2**62, 2**63 - 1])
    for seed, stream in ((0, Stream.TRAIN), (2**32 + 5, Stream.EVAL), (-1, Stream.SAMPLE)):
        together = noise_keys(seed, stream, ns)
        assert together.tolist() == [noise_key(seed, stream, n) for n in ns.tolist()]
        assert (together >= 0).all()


def test_keys_of_seeds_streams_and_numbers_are_all_different():
    made = {noise_key(seed, stream, n) for seed in range(10) for stream in Stream for n in range(100)}
    assert len(made) == 10 * len(Stream) * 100


def test_every_bit_of_a_key_is_set_half_of_the_time():
    bits = (keys(10_000)[:, None] >> torch.arange(63)) & 1
    assert ((bits.double().mean(0) - 0.5).abs() < 5 * 0.5 / 100).all()


def test_a_row_does_not_depend_on_its_length_or_its_batch():
    rows = uniforms(keys(8), 32)
    assert torch.equal(uniforms(keys(8)[5:6], 7)[0], rows[5, :7])


def test_uniforms_are_uniform():
    u = uniforms(keys(1000), 500)
    counts = torch.bincount((u * 1000).long().flatten(), minlength=1000)
    assert chi_square(counts, torch.full((1000,), 1 / 1000)) > 1e-3
    pairs = (u * 30).long()
    counts = torch.bincount((30 * pairs[:, ::2] + pairs[:, 1::2]).flatten(), minlength=900)
    assert chi_square(counts, torch.full((900,), 1 / 900)) > 1e-3
    assert u.min() >= 0
    assert u.max() < 1


def correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    """In standard errors."""
    left, right = left.double().flatten() - 0.5, right.double().flatten() - 0.5
    return float((left * right).mean() * 12 * math.sqrt(left.numel()))


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 64])
def test_rows_positions_streams_and_seeds_are_uncorrelated(lag):
    u = uniforms(keys(1000), 256)
    pairs = {
        "rows": (u[lag:], u[:-lag]),
        "positions": (u[:, lag:], u[:, :-lag]),
        "diagonals": (u[lag:, lag:], u[:-lag, :-lag]),
        "streams": (u, uniforms(keys(1000), 256, stream=lag)),
        "seeds": (u, uniforms(keys(1000, seed=lag), 256)),
        "purposes": (u, uniforms(noise_keys(0, lag, torch.arange(1000)), 256)),
    }
    for name, (left, right) in pairs.items():
        assert abs(correlation(left, right)) < 4.5, name


def test_keys_in_sequence_do_not_give_shifted_copies():
    u = uniforms(torch.arange(64), 64, dtype=torch.float64)  # not even well-mixed keys
    assert len(u.flatten().unique()) == 64 * 64


def test_times_are_the_golden_sequence_shifted_by_the_seed():
    ns = torch.arange(1000)
    times = low_discrepancy_times(ns, seed=3)
    golden = (math.sqrt(5) - 1) / 2
    assert times.dtype == torch.float64
    distance = (times - times[0] - ns.double() * golden) % 1
    assert torch.minimum(distance, 1 - distance).max() < 1e-10


def test_times_stay_exact_at_huge_positions():
    step = low_discrepancy_times(torch.tensor([10**15, 10**15 + 1]), seed=0).diff() % 1
    assert_close(step.item(), (math.sqrt(5) - 1) / 2, rtol=0, atol=1e-12)


def test_a_single_time_is_uniform_over_seeds():
    times = torch.cat([low_discrepancy_times(torch.tensor([17]), seed) for seed in range(5000)])
    counts = torch.bincount((times * 50).long(), minlength=50)
    assert chi_square(counts, torch.full((50,), 0.02)) > 1e-3


@pytest.mark.parametrize("world", [1, 2, 4])
def test_means_over_a_batch_vary_less_than_iid_and_equally_on_any_number_of_ranks(world):
    """Of t itself and of the ELBO weight clipped at t = 0.05, whose mean is log(1/0.05)."""
    n_batches, size = 2000, 64
    shards = torch.arange(n_batches * size).reshape(n_batches, world, size // world)
    times = torch.stack([low_discrepancy_times(shards[:, r].flatten(), seed=1) for r in range(world)])
    batches = times.reshape(world, n_batches, -1).transpose(0, 1).flatten(1)
    assert torch.equal(batches.flatten(), low_discrepancy_times(torch.arange(n_batches * size), seed=1))
    for values in (batches, (0.05 + 0.95 * batches).reciprocal()):
        assert values.mean(1).var() * 5 < values.var() / size
    within = times.reshape(world, n_batches, -1)[0]  # what one rank sees of a batch
    assert within.mean(1).var() * 5 < (1 / 12) / (size // world)


def test_a_permutation_has_every_element_once_and_depends_on_seed_and_epoch():
    orders = [permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert order.dtype == np.int64
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[0], permutation(0, 0, 1000))


def test_all_permutations_are_equally_likely():
    orders = np.stack([permutation(0, epoch, 4) for epoch in range(12_000)])
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert chi_square(torch.from_numpy(counts), torch.full((24,), 1 / 24)) > 1e-3


T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_derivative_and_weight_are_those_of_the_mask_rate(schedule):
    assert isinstance(schedule, NoiseSchedule)
    t = T.clone().requires_grad_()
    rate = schedule.mask_rate(t)
    (derivative,) = torch.autograd.grad(rate.sum(), t)
    assert_close(schedule.mask_rate_derivative(T), derivative)
    assert_close(schedule.elbo_weight(T), derivative / rate.detach())
    assert (rate.diff() > 0).all()


def test_mask_rates_and_weights_are_the_closed_forms():
    half_pi = math.pi / 2
    sigma = 1e-4 ** (1 - T) * 20**T
    for schedule, alpha, weight in (
        (LinearSchedule(), 1 - T, 1 / T),
        (LogLinearSchedule(eps=0.01), 1 - 0.99 * T, 1 / T),
        (PolynomialSchedule(power=3.0), 1 - T**3, 3 / T),
        (CosineSchedule(), 1 - torch.cos(half_pi * (1 - T)), half_pi * torch.tan(half_pi * (1 - T))),
        (GeometricSchedule(), torch.exp(-sigma), sigma * math.log(20 / 1e-4) / (torch.exp(sigma) - 1)),
    ):
        assert_close(schedule.mask_rate(T), 1 - alpha)
        assert_close(schedule.elbo_weight(T), weight)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_full_range_says_whether_every_mask_rate_from_0_to_1_occurs(schedule):
    ends = schedule.mask_rate(torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert schedule.full_range == (ends.tolist() == [0.0, 1.0])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_weights_in_fp32_are_right_near_t_0(schedule):
    t = torch.tensor([1e-6, 1e-4, 1e-2], dtype=torch.float64)
    assert_close(schedule.elbo_weight(t.float()).double(), schedule.elbo_weight(t), rtol=1e-5, atol=0)
    assert_close(schedule.mask_rate(t.float()).double(), schedule.mask_rate(t), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: LogLinearSchedule(eps=1.0), "noise_schedule.eps"),
        (lambda: LogLinearSchedule(eps=-0.1), "noise_schedule.eps"),
        (lambda: PolynomialSchedule(power=0.0), "noise_schedule.power"),
        (lambda: PolynomialSchedule(power=math.nan), "noise_schedule.power"),
        (lambda: GeometricSchedule(sigma_min=0.0), "noise_schedule.sigma_min"),
        (lambda: GeometricSchedule(sigma_min=2.0, sigma_max=1.0), "noise_schedule.sigma_max"),
    ],
)
def test_values_out_of_range_are_refused_by_key(make, key):
    with pytest.raises(UserError) as error:
        make()
    assert error.value.where == key
