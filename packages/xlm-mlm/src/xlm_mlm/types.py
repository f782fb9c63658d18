"""What the four parts of MLM hand to one another."""

from __future__ import annotations

from typing import TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor


class MLMBatch(TypedDict):
    """Texts some of whose tokens are to be predicted: what the loss reads. Likelihoods read the clean texts."""

    input_ids: Int[Tensor, "batch seq"]
    """The texts; a chosen token is the mask token, or by choice a random one or itself."""
    target_ids: Int[Tensor, "batch seq"]
    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where nothing is padded."""
    positions: Int[Tensor, "batch seq"] | None
    """Place of each token in its row, left padding not counted; None for 0, 1, 2, ..."""
    segments: Int[Tensor, "batch seq"] | None
    """Number of the document a packed token belongs to; tokens see their own document only. None: one document."""
    predicted: Bool[Tensor, "batch seq"]
    """Positions that can be chosen: no prompt, no given token, no padding."""
    rows: Int[Tensor, " rows"]
    """Chosen positions as indices into the flattened batch."""
    ends_at_eos: Bool[Tensor, " batch"]
    """Whether a text ends at its first EOS: true of canvases, not of windows and templates."""
    mask_rate: Float[Tensor, " batch"]
    """Probability with which each predicted token, or word, was chosen."""
    n_tokens: Int[Tensor, " batch"]
    """Predicted real tokens, chosen or not: the denominator of likelihoods. On an open canvas L + 1."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]
