"""One optimizer step: what its micro-batches and ranks add up to, and whether that is finite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NOT_LOGGED = frozenset({"loss", "loss_denominator", "nll", "n_tokens", "masked_nll", "n_masked"})


class NonFiniteError(RuntimeError):
    """The loss or the gradient of a step was not finite; the weights are those of the step before."""


def extras(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """The further scalars of a loss dict, which are logged under their own names."""
    return {
        name: value.detach()
        for name, value in losses.items()
        if name not in NOT_LOGGED and isinstance(value, Tensor) and value.numel() == 1
    }


@dataclass
class MicroBatch:
    """What is kept of one micro-batch until the optimizer steps. Nothing here waits for the device."""

    loss: Float[Tensor, ""]
    denominator: Tensor
    tokens: Tensor
    extras: dict[str, Tensor]
    nll: Float[Tensor, " batch"] | None
    index: Any

    def suspects(self) -> list[int]:
        """Indices of the examples that may have made the loss infinite or NaN; all of them when it is not known."""
        indices = torch.as_tensor(self.index).tolist() if self.index is not None else []
        if self.nll is None or bool(self.nll.isfinite().all()):
            return indices
        return [index for index, finite in zip(indices, self.nll.isfinite().tolist(), strict=True) if not finite]


class Window:
    """The micro-batches of one optimizer step on this rank.

    A loss that gives ``loss_denominator`` is averaged over those denominators, any other one over micro-batches.
    """

    def __init__(self) -> None:
        self.micro_batches: list[MicroBatch] = []

    def add(self, losses: Mapping[str, Any], batch: Mapping[str, Any], *, parts: int) -> Tensor:
        """Note a micro-batch, and give what to differentiate.

        Args:
            losses: What the loss function returned.
            batch: Their ``index`` in the data set, for the error message, and ``n_tokens``, real tokens to count.
            parts: Micro-batches times ranks. With one part that is the loss; with several its sum, see ``scale``.
        """
        loss: Tensor = losses["loss"]
        denominator = torch.as_tensor(losses.get("loss_denominator", 1.0), device=loss.device).detach()
        nll = losses.get("nll")
        tokens = torch.as_tensor(batch["n_tokens"], device=loss.device).sum() if "n_tokens" in batch else denominator
        nll = None if nll is None else nll.detach()
        micro_batch = MicroBatch(loss.detach(), denominator, tokens, extras(losses), nll, batch.get("index"))
        self.micro_batches.append(micro_batch)
        if parts == 1:
            return loss
        return loss.to(torch.promote_types(loss.dtype, torch.float32)) * denominator  # bf16 counts only to 256

    def sums(self, *, stop: bool) -> Float[Tensor, " sums"]:
        """Of this rank: sums of loss times denominator, of denominators and of tokens, ``stop``, then of each extra."""
        weights = torch.stack([micro.denominator for micro in self.micro_batches]).to(self._dtype())
        columns = [torch.stack([micro.loss for micro in self.micro_batches])]
        columns += [torch.stack([micro.extras[name] for micro in self.micro_batches]) for name in self.names]
        loss, *rest = [(column.to(weights) * weights).sum() for column in columns]
        tokens = torch.stack([micro.tokens for micro in self.micro_batches]).to(weights).sum()
        return torch.stack([loss, weights.sum(), tokens, torch.full_like(loss, float(stop)), *rest])

    @property
    def names(self) -> list[str]:
        """The extras, in the order of ``sums``."""
        return sorted(self.micro_batches[0].extras)

    def _dtype(self) -> torch.dtype:
        """Token counts exceed float32's integers; Apple's GPUs know no float64."""
        return torch.float32 if self.micro_batches[0].loss.device.type == "mps" else torch.float64

    def suspects(self) -> list[int]:
        """Indices of the examples in the micro-batches whose loss is not finite; of all when every loss is finite."""
        bad = [micro for micro in self.micro_batches if not bool(micro.loss.isfinite())]
        return [index for micro in bad or self.micro_batches for index in micro.suspects()]

    def loss_is_finite(self) -> bool:
        """Whether every loss on this rank is finite."""
        return all(bool(micro.loss.isfinite()) for micro in self.micro_batches)


class Verdict:
    """The numbers of a step on their way to the host; ``read`` waits for them.

    Args:
        step: The optimizer step, from 1.
        window: Its micro-batches.
        norm: Norm of its gradient.
        sums: ``Window.sums`` over all ranks.
    """

    def __init__(self, step: int, window: Window, norm: Float[Tensor, ""], sums: Float[Tensor, " sums"]) -> None:
        self.step, self.window = step, window
        values = torch.cat([norm.to(sums)[None], sums])
        self.finite: Tensor = values[:2].isfinite().all()
        self._values = values.to("cpu", non_blocking=True)  # pinned, so the device is not waited for
        self._arrived = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        """(norm, *sums)."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._values.tolist()
        return values
