"""What the parts of NewFamily hand to one another."""

from __future__ import annotations

from typing import TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor


class NewFamilyBatch(TypedDict):
    """Texts some of whose tokens are hidden: what the loss reads. Likelihoods read the clean texts."""

    input_ids: Int[Tensor, "batch seq"]
    """The texts with the mask token at hidden positions."""
    target_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where nothing is padded."""
    positions: Int[Tensor, "batch seq"] | None
    """Place of each token in its row, left padding not counted; None for 0, 1, 2, ..."""
    segments: Int[Tensor, "batch seq"] | None
    """Number of the document a packed token belongs to; tokens see their own document only. None: one document."""
    predicted: Bool[Tensor, "batch seq"]
    """Positions that can be hidden: no prompt, no given token, no padding."""
    rows: Int[Tensor, " rows"]
    """Hidden positions as indices into the flattened batch."""
    mask_rate: Float[Tensor, " batch"]
    """Probability with which each predicted token was hidden."""
    n_tokens: Int[Tensor, " batch"]
    """Predicted real tokens, hidden or not: the denominator of likelihoods."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]
