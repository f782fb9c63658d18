"""Rows that grow by insertion: a new token is stored behind the others, and ``positions`` say where it belongs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.errors import UserError

from xlm_ilm.types import ILMModel, ILMPredictionBatch


class Rows:
    """A batch while it grows. Nothing but ``positions`` of the tokens behind a gap changes when the gap is filled.

    Args:
        batch: Where the rows start; it is only read.
        max_length: Most tokens of a row, BOS not counted.
        max_new_tokens: Most tokens inserted where the length is free; None: as many as there is room for.

    Raises:
        UserError: a row, or a row with its gaps of fixed size filled, has more tokens than ``max_length``.
    """

    ids: Int[Tensor, "batch width"]
    positions: Int[Tensor, "batch width"]
    """Place of each token in its row, BOS at 0."""
    lengths: Int[Tensor, " batch"]
    """Columns in use."""
    budget: Int[Tensor, " batch"]
    """Tokens that may still be inserted, as far as the spans have room."""
    inserted: Int[Tensor, " batch"]

    def __init__(self, batch: ILMPredictionBatch, *, max_length: int, max_new_tokens: int | None) -> None:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        n_rows, seq = ids.shape
        self.lengths = torch.full((n_rows,), seq, device=ids.device) if mask is None else mask.sum(1)
        self.free = batch["free"]
        self.inserted = torch.zeros_like(self.lengths)
        left = max_length + 1 - self.lengths
        needed = torch.where(self.free, 0, batch["room"].sum(1))  # every span of given size is one gap at the start
        if (needed > left).any():
            longest = int((self.lengths - 1 + needed).max())
            what, fix = f"is too small for a row of {longest} tokens", f"use at least {longest}, or shorter rows"
            raise UserError(what, where="datamodule.max_length", value=max_length, fix=fix)
        most = left if max_new_tokens is None else left.clamp_max(max_new_tokens)
        self.budget = torch.where(self.free, most, needed)
        extra = max(0, int((self.lengths + self.budget).max()) - seq) if n_rows else 0
        self.ids = F.pad(ids, (0, extra))
        self.positions = torch.arange(seq + extra, device=ids.device).repeat(n_rows, 1)
        self.span = F.pad(batch["span"], (0, extra), value=-1)
        self.room = F.pad(batch["room"], (0, extra))

    def read(
        self, model: ILMModel, rows: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows seq d_model"], Float[Tensor, " rows"]]:
        """What the network says about some rows."""
        lengths = self.lengths[rows]
        seq = int(lengths.max())
        mask = torch.arange(seq, device=rows.device) < lengths[:, None]
        mask_or_none = None if bool((lengths == seq).all()) else mask
        return model.read(self.ids[rows, :seq], mask_or_none, positions=self.positions[rows, :seq])

    def insert(
        self, rows: Int[Tensor, " rows"], gaps: Int[Tensor, " rows"], tokens: Int[Tensor, " rows"]
    ) -> Int[Tensor, " rows"]:
        """Insert a token right after column ``gaps`` of each of ``rows``, and return where it stands."""
        at, span, new = self.positions[rows, gaps] + 1, self.span[rows, gaps], self.lengths[rows]
        self.positions[rows] += self.positions[rows] >= at[:, None]
        self.room[rows] -= (self.span[rows] == span[:, None]).long()
        for values, value in ((self.ids, tokens), (self.positions, at), (self.span, span)):
            values[rows, new] = value
        self.room[rows, new] = self.room[rows, gaps]
        self.lengths[rows] += 1
        self.inserted[rows] += 1
        self.budget[rows] -= 1
        return at

    def gaps(self, rows: Int[Tensor, " rows"], seq: int) -> Bool[Tensor, "rows seq"]:
        """The gaps, among the first ``seq`` columns, that still take a token."""
        return (self.room[rows, :seq] > 0) & (self.budget[rows, None] > 0)

    def unfinished(self, rows: Int[Tensor, " rows"]) -> Int[Tensor, " unfinished"]:
        """Those of ``rows`` that still take a token."""
        return rows[self.gaps(rows, self.room.shape[1]).any(1)]

    def in_order(self, pad_id: int) -> Int[Tensor, "batch longest"]:
        """The rows as one reads them."""
        used = torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]
        row = used.nonzero()[:, 0]
        ids = self.ids.new_full((len(self.ids), int(self.lengths.max())), pad_id)
        ids[row, self.positions[used]] = self.ids[used]
        return ids
