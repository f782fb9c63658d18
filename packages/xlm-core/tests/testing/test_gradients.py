"""The check accepts right gradients and finds wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from xlm.testing.gradients import finite_difference_check, gradient_error

WEIGHT = nn.Parameter(torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
BIAS = nn.Parameter(torch.ones(3, dtype=torch.float64))


def test_a_right_gradient_passes_and_leaves_the_parameters_alone():
    before = WEIGHT.clone()
    finite_difference_check(lambda: (WEIGHT.sum(0) + BIAS).tanh().square().sum(), [WEIGHT, BIAS])
    assert torch.equal(WEIGHT, before)


def test_a_gradient_that_misses_a_term_fails():
    with pytest.raises(AssertionError, match="finite difference"):
        finite_difference_check(lambda: WEIGHT.square().sum() * BIAS.detach().sum(), [WEIGHT, BIAS])


def test_a_gradient_of_the_wrong_scale_fails():
    scaled = lambda: WEIGHT.square().sum() + (0.01 * (BIAS - BIAS.detach())).sum()  # noqa: E731
    with pytest.raises(AssertionError, match="gradient differs"):
        finite_difference_check(scaled, [WEIGHT, BIAS])


def test_fp32_parameters_are_refused():
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(AssertionError, match="float32"):
        finite_difference_check(lambda: weight.sum(), [weight])


def test_the_error_is_relative_to_the_largest_slope():
    wrong = lambda: BIAS.square().sum() + 0.1 * (BIAS - BIAS.detach()).sum()  # noqa: E731
    assert gradient_error(wrong, [BIAS]) == pytest.approx(0.1 / 2.0, rel=1e-6)
    assert gradient_error(lambda: BIAS.square().sum(), [BIAS]) < 1e-8
