"""When positions are revealed by samplers that decide so without looking at tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from xlm.errors import UserError


class RevealPlan(NamedTuple):
    """When each position is revealed."""

    step: Int[Tensor, "batch seq"]
    """Number of the step in which a position is revealed; -1 where nothing is to be generated."""
    mask_rate: Float[Tensor, "batch steps"]
    """u of the state that each step starts from."""


def step_times(steps: int) -> Float64[Tensor, " steps"]:
    """t at the start of each of T even steps: 1, 1 - 1/T, ..., 1/T.

    Raises:
        UserError: less than one step.
    """
    if steps < 1:
        raise UserError("must be 1 or more", where="predictor.steps", value=steps, fix="use 128")
    return 1 - torch.arange(steps, dtype=torch.float64) / steps


def first_hitting_plan(u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> RevealPlan:
    """One position a step, in the order in which the falling mask rate hits them (Zheng et al., 2024).

    Position i is hidden while the mask rate exceeds ``u[i]``. So the order is uniformly random, and with k positions
    hidden of N the next is revealed at a mask rate drawn from Beta(k, N - k + 1).
    """
    mask_rate, order = u.masked_fill(~predicted, -1.0).sort(dim=1, descending=True, stable=True)
    step = order.argsort(dim=1).masked_fill(~predicted, -1)
    return RevealPlan(step, mask_rate.clamp_min(0.0))


def ancestral_plan(
    u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"], mask_rates: Float[Tensor, " steps"]
) -> RevealPlan:
    """The T-step reverse process: a hidden position is revealed from mask rate v to w with probability (v - w) / v.

    One uniform a position replaces a Bernoulli draw a position and step, with the same law: position i is hidden while
    the mask rate exceeds ``u[i]`` times the first one. The last step reveals what is left.

    Args:
        u: One uniform number in [0, 1) a position.
        predicted: Positions to generate, all hidden at the start.
        mask_rates: u at the start of each of the T steps, falling.
    """
    ends = mask_rates[1:].flip(0).contiguous()
    not_before = torch.searchsorted(ends, u * mask_rates[0], right=True)
    step = (len(ends) - not_before).masked_fill(~predicted, -1)
    return RevealPlan(step, mask_rates.expand(len(u), -1))
