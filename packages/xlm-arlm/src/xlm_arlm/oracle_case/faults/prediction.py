"""Deliberate faults of the network and the predictor: from the right function to a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from xlm.sampling import TokenFilter, keep_greatest

# The network


def not_causal(forward: Any) -> Any:
    """Tokens see what comes after them."""
    return lambda self, x, rotary, mask=None, *, causal=False, cache=None: forward(self, x, rotary, mask, cache=cache)


def from_zero(rotary_table: Any) -> Any:
    """Each call counts positions from its own first one."""
    return lambda positions, head_dim: rotary_table(positions - positions[:, :1], head_dim)


# The predictor


def one_too_far(read: Any) -> Any:
    """The first token after the prompt leaves one position out."""

    def wrong(self: Any, model: Any, tokens: Tensor) -> Any:
        self.position = self.position + 1
        states = read(self, model, tokens)
        self.position = self.position - 1
        return states

    return wrong


def first_rows(keep: Any) -> Any:
    """As many rows stay in the cache as should, from the first on."""
    return lambda self, rows: keep(self, rows.sort(descending=True).values)


def probabilities(next_logits: Any) -> Any:
    """A softmax too many."""
    return lambda *args: next_logits(*args).softmax(-1)


def greedy_at_last(next_logits: Any) -> Any:
    """No draw at the fourth token."""

    def wrong(self: Any, states: Any, running: Any, step: int) -> Tensor:
        logits: Tensor = next_logits(self, states, running, step)
        return keep_greatest(logits) if step == 3 else logits

    return wrong


def one_step_ahead(next_logits: Any) -> Any:
    """The step's number is one too great."""
    return lambda self, states, running, step: next_logits(self, states, running, step + 1)


def one_number(uniforms: Any) -> Any:
    """A row's first random number serves for all of its tokens."""

    def wrong(*args: Any, **options: Any) -> Tensor:
        numbers: Tensor = uniforms(*args, **options)
        return numbers[:, :1].expand_as(numbers)

    return wrong


def counting_control(keep_top_k: Any) -> Any:
    """Pad, mask, begin and another one take places."""
    return lambda logits, k: keep_top_k(logits, None if k is None else max(1, k - 4))


def min_p_first(token_filter: Any) -> Any:
    """min-p looks at probabilities before the temperature."""

    def wrong(*, min_p: float, **options: Any) -> Any:
        first, then = TokenFilter(min_p=min_p), token_filter(**options)
        return lambda logits: then(first(logits))

    return wrong


def last_token_only(stopped: Any) -> Any:
    """A stop string of two tokens is never found."""
    return lambda self, ids: stopped(self, ids[:, -1:])


def multiplied(_: Any) -> Any:
    """Tokens with a positive logit become more likely instead."""

    def wrong(logits: Tensor, previous: Tensor, penalty: float, valid: Tensor) -> Tensor:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        for i, (ids, there) in enumerate(zip(previous, valid, strict=True)):
            seen[i, ids[there]] = True
        return torch.where(seen, logits * penalty, logits)

    return wrong


def heated_likelihood(log_likelihood: Any) -> Any:
    """The likelihood, too, divides logits by the temperature."""

    def wrong(self: Any, batch: Any, **options: Any) -> Any:
        weight = self.model.head.weight.data
        self.model.head.weight.data = weight / self.filter.temperature
        result = log_likelihood(self, batch, **options)
        self.model.head.weight.data = weight
        return result

    return wrong
