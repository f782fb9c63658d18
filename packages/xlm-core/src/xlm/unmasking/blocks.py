"""Semi-autoregressive generation: blocks of predicted positions are filled one after another, from left to right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.unmasking.batch import ends_at_eos


def check_blocks(batch: Mapping[str, Any], block_length: int | None) -> None:
    """Refuse a canvas that blocks do not fill; None is one block, which fills any.

    The last block of a template, or of a window, may be shorter.

    Raises:
        UserError: naming a block length that fits every canvas of the batch.
    """
    if block_length is None:
        return
    sizes = batch["predicted"].sum(1)[ends_at_eos(batch)].unique().tolist()
    unfilled = [size for size in sizes if size % block_length]
    if unfilled:
        common = math.gcd(*sizes)
        fits = min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: abs(n - block_length))
        what = f"does not divide a canvas of {unfilled[0]} positions"
        raise UserError(what, where="predictor.block_length", value=block_length, fix=f"use {fits}")


def in_first_block(
    hidden: Bool[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"], block_length: int
) -> Bool[Tensor, "batch seq"]:
    """Hidden positions of the first block of each row in which something is hidden."""
    block = _blocks(predicted, block_length)
    return hidden & (block == _first_open(block, hidden))


def after_the_end(
    batch: Mapping[str, Any],
    ids: Int[Tensor, "batch seq"],
    hidden: Bool[Tensor, "batch seq"],
    block_length: int,
    eos_id: int | None,
) -> Bool[Tensor, "batch seq"]:
    """Hidden positions of answers that have ended: those with EOS in a block of which nothing is hidden any more."""
    if eos_id is None:
        return torch.zeros_like(hidden)
    predicted = batch["predicted"]
    block = _blocks(predicted, block_length)
    done = predicted & (block < _first_open(block, hidden))
    ended = (done & (ids == eos_id)).any(1) & ends_at_eos(batch)
    rest: Tensor = hidden & ended[:, None]
    return rest


def _blocks(predicted: Bool[Tensor, "batch seq"], block_length: int) -> Int[Tensor, "batch seq"]:
    """The k-th predicted position of a row belongs to block k // block_length, and so does what is given after it."""
    return (predicted.cumsum(1) - 1).clamp_min(0) // block_length


def _first_open(block: Int[Tensor, "batch seq"], hidden: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch 1"]:
    """Number of the first block with something hidden; that of no block where nothing is."""
    return block.masked_fill(~hidden, block.shape[1]).amin(1, keepdim=True)
