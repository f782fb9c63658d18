"""Deliberate faults that several oracle cases share: each turns the right function into a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def no_ids(_: Any) -> Callable[[Any], Tensor]:
    """Of ``suppressed_ids``: suppresses nothing."""
    return lambda tokenizer: torch.tensor([], dtype=torch.int64)


def frozen_head(of_head: Any) -> Any:
    """Of a function of states and the head's weight: the weight is a constant."""
    return lambda states, weight, *args, **options: of_head(states, weight.detach(), *args, **options)


def independent(_: Any) -> Any:
    """Of ``low_discrepancy_times``: times are drawn one by one."""
    return lambda positions, seed: torch.rand(
        positions.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def keyed_by_batch(uniforms: Any) -> Any:
    """Of ``uniforms``: the place in the batch takes the key's place."""
    return lambda keys, *args, **options: uniforms(torch.arange(len(keys)), *args, **options)


def less_than_p(keep_top_p: Any) -> Any:
    """The kept tokens stay below p, except where one alone reaches it."""

    def wrong(logits: Tensor, p: float) -> Tensor:
        kept: Tensor = keep_top_p(logits, p)
        n = (kept > -torch.inf).sum(-1, keepdim=True)
        last = kept == kept.masked_fill(kept == -torch.inf, torch.inf).amin(-1, keepdim=True)
        return kept.masked_fill(last & (n > 1), -torch.inf) if p < 1 else kept

    return wrong


def one_token_less(keep_top_k: Any) -> Any:
    """Of ``keep_top_k``: one token less is kept."""
    return lambda logits, k: keep_top_k(logits, None if k is None else k - 1)
