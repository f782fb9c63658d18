"""Gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def finite_difference_check(
    loss_fn: Callable[[], Float[Tensor, ""]],
    parameters: Iterable[nn.Parameter],
    *,
    step: float = 1e-5,
    tolerance: float = 1e-6,
) -> None:
    """Compare the gradient with central differences, along one random direction a parameter.

    Args:
        loss_fn: A function of the parameters alone; the same value for the same parameters.
        parameters: In fp64, or rounding hides the gradient.
        step: Length of the step along a direction of unit norm.
        tolerance: Largest difference allowed, relative to the largest directional derivative.

    Raises:
        AssertionError: the gradient differs, for some parameter.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = torch.autograd.grad(loss_fn(), parameters, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    derivatives, differences = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.dtype == torch.float64, f"a parameter of shape {tuple(parameter.shape)} is {parameter.dtype}"
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        derivatives.append(float((gradient * direction).sum()))
        differences.append(_central_difference(loss_fn, parameter, step * direction) / step)
    allowed = tolerance * max(map(abs, differences))
    for parameter, derivative, difference in zip(parameters, derivatives, differences, strict=True):
        message = f"shape {tuple(parameter.shape)}: gradient {derivative}, finite difference {difference}"
        assert abs(derivative - difference) <= allowed, message


@torch.no_grad()
def _central_difference(loss_fn: Callable[[], Tensor], parameter: nn.Parameter, move: Tensor) -> float:
    before = parameter.clone()
    parameter.copy_(before + move)
    ahead = float(loss_fn())
    parameter.copy_(before - move)
    behind = float(loss_fn())
    parameter.copy_(before)
    return (ahead - behind) / 2
