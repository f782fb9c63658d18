"""The network behind an unmasking sampler, called for the rows and positions that are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.nn.chunks import MAX_LOGITS
from xlm.protocols import Model, Tokenizer
from xlm.sampling import suppress, suppressed_ids
from xlm.unmasking.batch import given_tokens


@dataclass(frozen=True)
class Denoiser:
    """A network that predicts hidden tokens from visible ones; tokens that are never generated have probability 0.

    Args:
        model: Reads the mask token at hidden positions.
        tokenizer: Has a mask token.
        told_mask_rate: Whether ``model.hidden`` takes ``mask_rate``, the noise level of each row.
        guidance: w >= 0. Above 0 a row is read twice, as it is and with everything given (prompt, fixed tokens) masked
            out, and the logits are l_u + (1 + w)(l_c - l_u) (Ho and Salimans, 2022). The states of the two readings
            stand side by side, so whoever asks for states and then for logits need not know.
    """

    model: Model
    tokenizer: Tokenizer
    told_mask_rate: bool = False
    guidance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.guidance < math.inf:
            fix = "use 0 for the network as it is"
            raise UserError("must be 0 or more", where="predictor.guidance", value=self.guidance, fix=fix)

    @property
    def n_readings(self) -> int:
        """Network calls that one reading of a row takes."""
        return 2 if self.guidance else 1

    @property
    def unguided(self) -> Denoiser:
        """The network as it is."""
        return replace(self, guidance=0.0)

    def check(self, batch: Mapping[str, Any]) -> None:
        """Refuse rows that have nothing to be guided by.

        Raises:
            UserError: naming ``predictor.guidance``.
        """
        if self.guidance and (batch["predicted"].any(1) & ~given_tokens(batch).any(1)).any():
            fix = "use 0, or give each row a prompt or tokens of a template"
            what = "has nothing to go by: a row has no given token"
            raise UserError(what, where="predictor.guidance", value=self.guidance, fix=fix)

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
    ) -> Float[Tensor, "rows seq d_states"]:
        """States of some rows (None: of all), whose tokens are now ``ids``."""
        given = given_tokens(batch) if self.guidance else None
        chosen = [ids, batch["attention_mask"], batch["positions"], batch.get("segments"), given]
        if rows is not None and len(rows) < len(ids):
            chosen = [None if values is None else values[rows] for values in chosen]
        ids, attention_mask, positions, segments, given = chosen
        told = {"positions": positions, "segments": segments}
        told |= {"mask_rate": mask_rate} if self.told_mask_rate else {}
        states = self.model.hidden(ids, attention_mask, **told)
        if given is None:
            return states
        return torch.cat([states, self.model.hidden(self.hide(ids, given), attention_mask, **told)], -1)

    def logits(
        self, states: Float[Tensor, "rows d_states"], no_eos: Bool[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows vocab"]:
        """Logits without the tokens that are never generated, and without EOS in the rows of ``no_eos``."""
        logits = suppress(self._guided(states), self.suppressed.to(states.device))
        if no_eos is not None:
            logits[no_eos, self.tokenizer.eos_token_id] = -torch.inf
        return logits

    def _guided(self, states: Tensor) -> Tensor:
        head: Callable[[Tensor], Tensor] = self.model.head
        if not self.guidance:
            return head(states)
        conditional, unconditional = (head(part) for part in states.chunk(2, -1))
        precise = torch.promote_types(conditional.dtype, torch.float32)
        unconditional = unconditional.to(precise)
        return unconditional + (1 + self.guidance) * (conditional.to(precise) - unconditional)

    def parts(self, *values: Tensor | None) -> list[tuple[Any, ...]]:
        """Chunks of rows whose logits may exist at a time; an absent value stays absent."""
        size = max(1, MAX_LOGITS // (self.n_readings * int(self.model.head.weight.shape[0])))
        n = max([1, *(-(-len(value) // size) for value in values if value is not None)])
        columns = [[None] * n if value is None else torch.split(value, size) for value in values]
        return list(zip(*columns, strict=True))
