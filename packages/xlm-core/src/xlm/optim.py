"""AdamW with its decay groups, learning-rate schedules, and the norm of a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from xlm.errors import UserError

FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}
"""Devices for which torch has AdamW in one kernel; on others it complains at the first step only."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, which decay; and embeddings (a head tied to one too), norms and biases, which do not."""
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in embeddings]
    others = [parameter for parameter in trained if parameter.ndim <= 1 or id(parameter) in embeddings]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def adamw(
    model: nn.Module,
    lr: float = 3e-4,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> AdamW:
    """AdamW (Loshchilov and Hutter, 2019) in one kernel a step where the device has it.

    Examples:
        >>> [group["weight_decay"] for group in adamw(nn.Linear(2, 2), weight_decay=0.1).param_groups]
        [0.1, 0.0]
    """
    _require(lr >= 0, "must not be negative", "optimizer.lr", lr, "use a rate such as 3e-4")
    _require(weight_decay >= 0, "must not be negative", "optimizer.weight_decay", weight_decay, "use 0 for no decay")
    beta1, beta2 = betas
    in_range = 0 <= beta1 < 1 and 0 <= beta2 < 1
    _require(in_range, "must both lie in [0, 1)", "optimizer.betas", list(betas), "use [0.9, 0.95]")
    fused = all(parameter.device.type in FUSED_DEVICES for parameter in model.parameters())
    return AdamW(parameter_groups(model, weight_decay), lr=lr, betas=(beta1, beta2), eps=eps, fused=fused)


class JointOptimizer(Optimizer):
    """Several optimizers that step as one: one schedule scales their rates, one state is saved.

    Args:
        parts: Optimizers of different parameters.

    Examples:
        >>> model, critic = nn.Linear(2, 2), nn.Linear(2, 1)
        >>> joint = JointOptimizer([adamw(model, lr=1e-3), torch.optim.SGD(critic.parameters(), lr=0.1)])
        >>> [group["lr"] for group in joint.param_groups]
        [0.001, 0.001, 0.1]
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})  # the same dictionaries
        for part in self.parts:
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        """Have the parts work on the groups and the state of the whole."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore groups and states of all parts."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part, after the closure. ``found_inf``, where a fused step is told of it, reaches all."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for part in self.parts:
            if hasattr(self, "found_inf"):
                part.found_inf = self.found_inf  # type: ignore[attr-defined]  # torch's own door for scalers
            part.step()
        return loss


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule:
    """The full learning rate after ``warmup_steps`` steps of linear growth; the first step already moves."""

    warmup_steps: int = 0

    def __post_init__(self) -> None:
        ok = self.warmup_steps >= 0
        _require(ok, "must not be negative", "lr_scheduler.warmup_steps", self.warmup_steps, "use 0 for no warm-up")

    def __call__(self, optimizer: Optimizer, total_steps: int) -> LambdaLR:
        """Schedule an optimizer over a run of ``total_steps`` steps."""
        return LambdaLR(optimizer, lambda step: self.factor(step, total_steps))

    def factor(self, step: int, total_steps: int) -> float:
        """Learning rate of the step after ``step`` steps, as a fraction of the full one."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.decay(min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)))

    def decay(self, progress: float) -> float:
        """The fraction at ``progress`` in [0, 1] between warm-up and the end."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class LinearSchedule(ConstantSchedule):
    """Warm-up, then a line down to ``min_ratio`` of the full rate."""

    min_ratio: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 <= self.min_ratio <= 1
        _require(ok, "must lie in [0, 1]", "lr_scheduler.min_ratio", self.min_ratio, "use 0.1 to end at a tenth")

    def decay(self, progress: float) -> float:
        """From 1 to ``min_ratio``."""
        return 1 - (1 - self.min_ratio) * progress


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(LinearSchedule):
    """Warm-up, then half a cosine down to ``min_ratio`` of the full rate (Loshchilov and Hutter, 2017)."""

    def decay(self, progress: float) -> float:
        """From 1 to ``min_ratio``."""
        return super().decay((1 - math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True, kw_only=True)
class WSDSchedule(LinearSchedule):
    """Warm-up, stable, then a line down to ``min_ratio`` in the last ``decay_fraction`` of the later steps."""

    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        ok = 0 < self.decay_fraction <= 1
        _require(ok, "must lie in (0, 1]", "lr_scheduler.decay_fraction", self.decay_fraction, "use 0.2 for a fifth")

    def decay(self, progress: float) -> float:
        """1 at first, in the end from 1 to ``min_ratio``."""
        return super().decay(max(0.0, 1 - (1 - progress) / self.decay_fraction))


def global_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """Euclidean norm of all gradients together, on their device: nothing waits for its value."""
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def _require(condition: bool, what: str, where: str, value: object, fix: str) -> None:
    if not condition:
        raise UserError(what, where=where, value=value, fix=fix)
