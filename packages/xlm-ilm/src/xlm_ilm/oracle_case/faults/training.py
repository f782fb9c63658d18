"""Deliberate faults of the loss and the collators: from the right function to a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

# The loss


def mean_over_rows(loss_fn: Any) -> Any:
    """Short texts count as much as long ones."""

    def wrong(self: Any, batch: Any) -> Any:
        out = loss_fn(self, batch)
        return {**out, "loss": (out["nll"] / batch["n_tokens"].clamp(min=1)).mean()}

    return wrong


def divided_by_missing(loss_fn: Any) -> Any:
    """The denominator counts missing tokens only."""

    def wrong(self: Any, batch: Any) -> Any:
        out = loss_fn(self, batch)
        return {**out, "loss": out["loss"] * out["loss_denominator"] / batch["n_dropped"].sum()}

    return wrong


def opposite_stop(loss_fn: Any) -> Any:
    """The stop head learns that something is missing."""

    def wrong(self: Any, batch: Any) -> Any:
        def read(*args: Any) -> Any:
            states, stop_logit = model.read(*args)
            return states, -stop_logit

        model = self.model
        self.model = SimpleNamespace(read=read, head=model.head)
        out = loss_fn(self, batch)
        self.model = model
        return out

    return wrong


def one_less(of_batch: Any) -> Any:
    """L instead of L + 1."""
    return lambda batch: of_batch(batch) - 1


def orders(times: int) -> Callable[[Any], Any]:
    """log L! is subtracted so many times."""

    def fault(bound: Any) -> Any:
        def wrong(self: Any, insertion: Tensor, stop_logit: Tensor, batch: Any) -> Any:
            length = batch["n_tokens"] - int(batch["counts_stop"])
            return bound(self, insertion, stop_logit, batch) + (1 - times) * torch.lgamma(length.double() + 1)

        return wrong

    return fault


def without_continue(bound: Any) -> Any:
    """Going on costs nothing."""

    def wrong(self: Any, insertion: Tensor, stop_logit: Tensor, batch: Any) -> Any:
        return bound(self, insertion, stop_logit.masked_fill(batch["n_dropped"] > 0, -1e4), batch)

    return wrong


# The collators


def seen(drop: Any) -> Any:
    """In place of the token before a gap stands the last one that the gap misses."""

    def wrong(*args: Any) -> Any:
        kept = drop(*args)
        return replace(kept, input_ids=kept.input_ids.flatten().scatter(0, kept.rows, kept.tokens).view_as(kept.gaps))

    return wrong


def next_gap(drop: Any) -> Any:
    """A missing token belongs to the gap after its own, where that is open."""

    def wrong(*args: Any) -> Any:
        kept = drop(*args)
        after = (kept.rows + 1).clamp_max(kept.gaps.numel() - 1)
        return replace(kept, rows=torch.where(torch.isin(after, kept.gap_rows), after, kept.rows))

    return wrong


def all_open(gap_spans: Any) -> Any:
    """Every gap is open, those between given tokens included."""

    def wrong(span: Tensor, dropped: Tensor) -> Any:
        of_gap, _ = gap_spans(span, dropped)
        return of_gap, torch.ones_like(of_gap)

    return wrong


def leaning(uniforms: Any) -> Any:
    """Tokens at a row's end go sooner."""
    return lambda keys, length, **options: uniforms(keys, length, **options) / torch.arange(1, length + 1)


def squared(times: Any) -> Any:
    """Few missing tokens are more frequent than many."""
    return lambda *args: times(*args).square()


def with_answer(prediction_collator: Any) -> Any:
    """The answer stands behind the prompt already."""

    def wrong(self: Any, examples: Any) -> Any:
        longer = [{**row, "prompt_ids": [*row["prompt_ids"], *row.get("target_ids", [])]} for row in examples]
        return prediction_collator(self, longer)

    return wrong
