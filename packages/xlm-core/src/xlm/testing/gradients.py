"""Gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def gradient_error(
    loss_fn: Callable[[], Float[Tensor, ""]], parameters: Iterable[nn.Parameter], *, step: float = 1e-5
) -> float:
    """Largest difference of the gradient from central differences, along one random direction a parameter.

    Args:
        loss_fn: A function of the parameters alone; the same value for the same parameters.
        parameters: In fp64, or rounding hides the gradient.
        step: Length of the step along a direction of unit norm.

    Returns:
        The difference relative to the largest directional derivative.

    Raises:
        AssertionError: a parameter is not in fp64.
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
    apart = [abs(derivative - difference) for derivative, difference in zip(derivatives, differences, strict=True)]
    largest = max(map(abs, differences))
    return max(apart) / largest if largest else max(apart)


def finite_difference_check(
    loss_fn: Callable[[], Float[Tensor, ""]],
    parameters: Iterable[nn.Parameter],
    *,
    step: float = 1e-5,
    tolerance: float = 1e-6,
) -> None:
    """Compare the gradient with central differences, as ``gradient_error`` does.

    Raises:
        AssertionError: the gradient differs by more than ``tolerance``, or a parameter is not in fp64.
    """
    error = gradient_error(loss_fn, parameters, step=step)
    assert error <= tolerance, f"the gradient differs from finite differences by {error:.2g} of the largest one"


@torch.no_grad()
def _central_difference(loss_fn: Callable[[], Tensor], parameter: nn.Parameter, move: Tensor) -> float:
    before = parameter.clone()
    parameter.copy_(before + move)
    ahead = float(loss_fn())
    parameter.copy_(before - move)
    behind = float(loss_fn())
    parameter.copy_(before)
    return (ahead - behind) / 2
