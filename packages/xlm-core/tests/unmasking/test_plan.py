from __future__ import annotations

import math

import torch
from xlm.unmasking.plan import ancestral_plan, first_hitting_plan


def test_first_hitting_reveals_where_the_falling_mask_rate_hits_first():
    u = torch.tensor([[0.2, 0.9, 0.5, 0.7]])
    plan = first_hitting_plan(u, torch.tensor([[True, True, False, True]]))
    assert plan.step.tolist() == [[2, 0, -1, 1]]
    torch.testing.assert_close(plan.mask_rate[:, :3], torch.tensor([[0.9, 0.7, 0.2]]))


def test_ancestral_reveals_in_the_step_in_which_the_mask_rate_falls_below_the_number():
    plan = ancestral_plan(
        torch.tensor([[0.95, 0.8, 0.75, 0.3, 0.0]]), torch.ones(1, 5, dtype=torch.bool), torch.tensor([1.0, 0.8, 0.5])
    )
    assert plan.step.tolist() == [[0, 0, 1, 2, 2]]
    torch.testing.assert_close(plan.mask_rate, torch.tensor([[1.0, 0.8, 0.5]]))


def test_ancestral_reveals_from_rate_v_to_w_with_chance_one_minus_w_over_v_even_if_the_first_rate_is_below_one():
    rates = torch.tensor([0.8, 0.6, 0.2])
    u = ((torch.arange(30_000) + 0.5) / 30_000)[None]
    step = ancestral_plan(u, torch.ones_like(u, dtype=torch.bool), rates).step
    shares = [(step == i).double().mean().item() for i in range(3)]
    first, second = 1 - 0.6 / 0.8, 1 - 0.2 / 0.6
    expected = [first, (1 - first) * second, (1 - first) * (1 - second)]
    assert all(math.isclose(share, chance, abs_tol=1e-4) for share, chance in zip(shares, expected, strict=True))
