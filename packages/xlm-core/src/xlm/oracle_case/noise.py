"""Schedules of noise, and times."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from xlm import noise
from xlm.protocols import NoiseSchedule
from xlm.testing import oracles
from xlm.testing.oracles import Measured

SCHEDULES: list[NoiseSchedule] = [
    noise.LinearSchedule(),
    noise.LogLinearSchedule(),
    noise.CosineSchedule(),
    noise.PolynomialSchedule(power=2.0),
    noise.GeometricSchedule(sigma_min=0.05),
]
WEIGHTS = {schedule: f"{type(schedule).__name__}: the weight is the slope of log mask rate" for schedule in SCHEDULES}
TIMES = "low-discrepancy times are uniform, and the same however they are split"
SPREAD = "low-discrepancy times are spread several times more evenly than independent ones"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    weights = {name: partial(_weight, schedule) for schedule, name in WEIGHTS.items()}
    return {
        **weights,
        TIMES: _times,
        SPREAD: _spread,
    }


def _weight(schedule: NoiseSchedule) -> Measured:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    ahead, behind = (schedule.mask_rate(t + step).log() for step in (1e-6, -1e-6))
    return oracles.equal(
        schedule.elbo_weight(t) / ((ahead - behind) / 2e-6), torch.ones_like(t), 1e-6, "relative error"
    )


def _times() -> Measured:
    places = torch.arange(4096)
    times = noise.low_discrepancy_times(places, seed=3)
    grid = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    apart = float((times.sort().values - grid).abs().max())  # Kolmogorov-Smirnov distance, up to half a step
    split = torch.cat([noise.low_discrepancy_times(places[rank::4], seed=3) for rank in range(4)])
    moved = float((split.reshape(4, -1).T.flatten() - times).abs().max())
    return Measured(max(apart, moved), 2e-3, "distance from uniform, and between ways to split")


def _spread() -> Measured:
    """Independent uniform times give 1."""
    means = noise.low_discrepancy_times(torch.arange(32 * 200), seed=0).reshape(200, 32).mean(1)
    return Measured(float(means.var()) * 12 * 32, 0.2, "variance of a batch's mean time / that of independent ones")
