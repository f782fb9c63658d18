"""Deliberate faults of what every family shares: where each goes, and which oracle notices it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from xlm.oracle_case import evaluation, networks, noise, sampling
from xlm.sampling import keep_greatest, keep_min_p, keep_top_k, keep_top_p
from xlm.testing.faults import independent
from xlm.testing.oracles import Mutation


def mutations() -> list[Mutation]:
    """Faults of what every family shares."""
    weight, cosine = "xlm.noise.CosineSchedule.elbo_weight", noise.WEIGHTS[noise.SCHEDULES[2]]
    cross_entropy = "xlm.nn.linear_cross_entropy"
    return [
        Mutation("the weight is the mask rate's slope", {weight: _slope}, cosine),
        Mutation("times are independent", {"xlm.noise.low_discrepancy_times": independent}, noise.SPREAD),
        Mutation("every rank counts for itself", {"xlm.noise.low_discrepancy_times": _ranked}, noise.TIMES),
        Mutation("draws are shifted by one token", {"xlm.sampling.draw": _shifted}, sampling.DRAWN),
        Mutation("draws sum in the logits' type", {"xlm.sampling.draw": _coarse}, sampling.LOW),
        Mutation("top-p drops the token that crosses p", {"xlm.sampling.keep_top_p": _stricter}, sampling.TOP_P),
        Mutation("top-k is applied after top-p", {"xlm.sampling.TokenFilter.__call__": _reordered}, sampling.FILTERS),
        Mutation(
            "control tokens stay in the softmax", {f"{cross_entropy}._softmax_": _all_tokens}, networks.CROSS_ENTROPY
        ),
        Mutation(
            "the head learns from one chunk",
            {f"{cross_entropy}.add_product_": _last_chunk},
            networks.HEAD_GRADIENT,
        ),
        Mutation(
            "log-sum-exp keeps control tokens", {"xlm.nn.linear_logsumexp._without": _kept_all}, networks.LOGSUMEXP
        ),
        Mutation("positions start at 0 in every call", {"xlm.nn.rotary.rotary_table": _from_zero}, networks.CACHE),
        Mutation("attention sees what follows", {"xlm.nn.attention._attend": _uncausal}, networks.LLAMA),
        Mutation(
            "the average is not applied", {"xlm.callbacks.ema.EMA.on_train_batch_end": _nothing}, evaluation.AVERAGE
        ),
        Mutation("nats a token are a mean of means", {"xlm.likelihood._ratio": _mean_of_means}, evaluation.RATIO),
        Mutation("perplexity is a power of two", {"xlm.likelihood.math": _base_two}, evaluation.UNITS),
    ]


def _slope(_: Any) -> Any:
    return lambda self, t: self.mask_rate_derivative(t)


def _ranked(times: Any) -> Any:
    return lambda positions, seed: times(torch.arange(len(positions)), seed)


def _shifted(draw: Any) -> Any:
    return lambda logits, u: (draw(logits, u) + 1) % logits.shape[-1]


def _coarse(_: Any) -> Any:
    def wrong(logits: Tensor, u: Tensor) -> Tensor:
        sums = logits.softmax(-1).cumsum(-1)
        return torch.searchsorted(sums, u[:, None].to(sums)).squeeze(1).clamp_max(logits.shape[-1] - 1)

    return wrong


def _stricter(_: Any) -> Any:
    def wrong(logits: Tensor, p: float) -> Tensor:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, probabilities.cumsum(-1) > p + 1e-9)
        return logits.masked_fill(drop, -math.inf)

    return wrong


def _reordered(_: Any) -> Any:
    def wrong(self: Any, logits: Tensor) -> Tensor:
        if self.temperature == 0:
            return keep_greatest(logits)
        kept = keep_top_p(logits / self.temperature, self.top_p)
        return keep_min_p(keep_top_k(kept, self.top_k), self.min_p)

    return wrong


def _all_tokens(softmax: Any) -> Any:
    return lambda logits, targets, suppressed, *args: softmax(logits, targets, None, *args)


def _last_chunk(_: Any) -> Any:
    return lambda total, a, b: total.copy_(a @ b)


def _kept_all(_: Any) -> Any:
    return lambda suppressed, logits: logits


def _from_zero(table: Any) -> Any:
    return lambda positions, *args, **options: table(
        torch.arange(positions.shape[1])[None].expand_as(positions), *args, **options
    )


def _uncausal(attend: Any) -> Any:
    return lambda q, k, v, mask, causal: attend(q, k, v, mask, False)


def _nothing(_: Any) -> Any:
    return lambda *args: None


def _mean_of_means(_: Any) -> Any:
    def wrong(values: Tensor, sizes: Tensor) -> tuple[float, float]:
        ratios = values / sizes
        return float(ratios.mean()), float(ratios.std()) / len(values) ** 0.5

    return wrong


def _base_two(right: Any) -> Any:
    return SimpleNamespace(**{**vars(right), "exp": lambda x: 2.0**x})
