"""The batch that samplers of masked networks read, and where its random numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from xlm.noise import Stream, uniforms

REVEAL_STREAM, TOKEN_STREAM, ORDER_STREAM = ((Stream.SAMPLE << 32) + use for use in range(3))
"""Of a row's key: when its positions are revealed, which tokens are drawn there, and the noise of an order's step i
(``ORDER_STREAM + i``) or of a step with remasking (``ORDER_STREAM + 3 i``, and the two that follow)."""


class MaskedPredictionBatch(TypedDict):
    """Texts to complete."""

    input_ids: Int[Tensor, "batch seq"]
    """Prompts and templates, with the mask token at every position to generate."""
    predicted: Bool[Tensor, "batch seq"]
    """Positions to generate."""
    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where nothing is padded."""
    positions: Int[Tensor, "batch seq"] | None
    """Place of each token in its row, left padding not counted; None for 0, 1, 2, ..."""
    prompt_lengths: Int[Tensor, " batch"]
    """Tokens of the prompt, which the answer does not repeat; 0 for templates and without a prompt."""
    ends_at_eos: Bool[Tensor, " batch"]
    """Whether the answer stops before its first EOS; a template is returned whole."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]


def real_tokens(batch: Mapping[str, Any]) -> Bool[Tensor, "batch seq"]:
    """True where no padding stands."""
    mask: Tensor | None = batch["attention_mask"]
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask


def places(batch: Mapping[str, Any]) -> Int[Tensor, "batch seq"]:
    """Place of each token in its row, left padding not counted."""
    ids: Tensor = batch["input_ids"]
    positions: Tensor | None = batch["positions"]
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if positions is None else positions


def given_tokens(batch: Mapping[str, Any]) -> Bool[Tensor, "batch seq"]:
    """True at prompts and at the given tokens of templates."""
    predicted: Tensor = batch["predicted"]
    return real_tokens(batch) & ~predicted


def ends_at_eos(batch: Mapping[str, Any]) -> Bool[Tensor, " batch"]:
    """Whether each row is a canvas, whose text ends before EOS; windows and templates say nothing or no."""
    ends: Tensor | None = batch.get("ends_at_eos")
    return torch.zeros_like(batch["predicted"][:, 0]) if ends is None else ends


def placed_uniforms(batch: MaskedPredictionBatch, stream: int) -> Float64[Tensor, "batch seq"]:
    """One uniform number a position, a function of the row's key and the position's place."""
    u = uniforms(batch["noise_key"], batch["input_ids"].shape[1], stream=stream, dtype=torch.float64)
    return u.gather(1, places(batch))
