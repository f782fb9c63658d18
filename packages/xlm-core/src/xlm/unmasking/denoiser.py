"""The network behind an unmasking sampler, called for the rows and positions that are needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.protocols import Model, Tokenizer
from xlm.sampling import suppress, suppressed_ids

MAX_LOGITS = 2**24
"""Logits that may exist at a time."""


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts hidden tokens from visible ones; tokens that are never generated have probability 0.

    Args:
        model: Reads the mask token at hidden positions.
        tokenizer: Has a mask token.
        told_mask_rate: Whether ``model.hidden`` takes ``mask_rate``, the noise level of each row.
    """

    model: Model
    tokenizer: Tokenizer
    told_mask_rate: bool = False

    @cached_property
    def suppressed(self) -> Int[Tensor, " n"]:
        """Tokens that are never generated."""
        return suppressed_ids(self.tokenizer)

    def hide(self, ids: Int[Tensor, "batch seq"], hidden: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
        """The mask token at hidden positions."""
        assert self.tokenizer.mask_token_id is not None
        return ids.masked_fill(hidden, self.tokenizer.mask_token_id)

    def states(
        self,
        batch: Mapping[str, Any],
        ids: Int[Tensor, "batch seq"],
        mask_rate: Float[Tensor, " rows"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows seq d_model"]:
        """States of some rows (None: of all), whose tokens are now ``ids``."""
        chosen = [ids, batch["attention_mask"], batch["positions"], batch.get("segments")]
        if rows is not None and len(rows) < len(ids):
            chosen = [None if values is None else values[rows] for values in chosen]
        ids, attention_mask, positions, segments = chosen
        told = {"mask_rate": mask_rate} if self.told_mask_rate else {}
        return self.model.hidden(ids, attention_mask, positions=positions, segments=segments, **told)

    def logits(
        self, states: Float[Tensor, "rows d_model"], no_eos: Bool[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows vocab"]:
        """Logits without the tokens that are never generated, and without EOS in the rows of ``no_eos``."""
        logits = suppress(self.model.head(states), self.suppressed.to(states.device))
        if no_eos is not None:
            logits[no_eos, self.tokenizer.eos_token_id] = -torch.inf
        return logits

    def parts(self, *values: Tensor | None) -> list[tuple[Any, ...]]:
        """Chunks of rows whose logits may exist at a time; an absent value stays absent."""
        size = max(1, MAX_LOGITS // int(self.model.head.weight.shape[0]))
        n = max([1, *(-(-len(value) // size) for value in values if value is not None)])
        columns = [[None] * n if value is None else torch.split(value, size) for value in values]
        return list(zip(*columns, strict=True))
