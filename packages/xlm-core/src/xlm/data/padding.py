"""Ragged rows to rectangles, and the three numbers that every example carries. Used by the families' collators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.protocols import Example

Side = Literal["left", "right"]


def pad(
    rows: Sequence[Sequence[int] | np.ndarray], value: int, *, side: Side = "right", length: int | None = None
) -> Int[Tensor, "batch seq"]:
    """Stack rows of unequal length, filled with ``value`` on ``side`` up to ``length`` (the longest row by default).

    Raises:
        UserError: a row is longer than ``length``.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    longest = int(lengths.max(initial=0))
    if length is not None and longest > length:
        raise UserError(
            f"a row has {longest} tokens, {length} fit",
            where="datamodule.max_length",
            fix="raise max_length, or let the dataset manager shorten it: on_too_long=truncate or split",
        )
    seq = longest if length is None else length
    if len(rows) and lengths.min() == seq:
        return torch.from_numpy(np.array(rows, dtype=np.int64).reshape(len(rows), seq))
    filled = np.full((len(rows), seq), value, dtype=np.int64)
    if longest:
        filled[_valid(lengths, seq, side)] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(filled)


def padding_mask(
    lengths: Sequence[int] | np.ndarray | Int[Tensor, " batch"], seq: int, side: Side = "right"
) -> Bool[Tensor, "batch seq"]:
    """True where a row of ``lengths`` tokens has a token, False where ``pad`` filled."""
    return torch.from_numpy(_valid(np.asarray(lengths, dtype=np.int64), seq, side))


def keys(examples: Sequence[Example]) -> dict[str, Int[Tensor, " batch"]]:
    """``index`` (data-set index) and ``noise_key`` of every example: what each batch must carry."""
    return {name: _column(examples, name) for name in ("index", "noise_key")}


def positions(examples: Sequence[Example]) -> Int[Tensor, " batch"]:
    """Place of every example in the global order; low-discrepancy times are a function of it."""
    return _column(examples, "position")


def flat_indices(chosen: Bool[Tensor, "batch seq"]) -> Int[Tensor, " chosen"]:
    """Chosen places as indices into the flattened array, ascending; on the CPU numpy takes half of torch's time."""
    flat = chosen.flatten()
    return torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero().squeeze(1)


def _valid(lengths: np.ndarray, seq: int, side: Side) -> np.ndarray:
    from_start = np.arange(seq)[None, :] if side == "right" else np.arange(seq)[None, ::-1]
    valid: np.ndarray = from_start < lengths[:, None]
    return valid


def _column(examples: Sequence[Example], name: str) -> Int[Tensor, " batch"]:
    return torch.from_numpy(np.array([example[name] for example in examples], dtype=np.int64))
