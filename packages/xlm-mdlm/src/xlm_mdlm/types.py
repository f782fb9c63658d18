"""What the four parts of MDLM hand to one another."""

from __future__ import annotations

from typing import TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor
from xlm.protocols import LossDict


class MDLMBatch(TypedDict):
    """Texts with tokens hidden at a rate u: what the loss reads."""

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
    rows: Int[Tensor, " rows"] | None
    """Hidden positions as indices into the flattened batch, found on the CPU so that no step waits for an accelerator;
    None: not known."""
    mask_rate: Float[Tensor, " batch"]
    """u, the probability with which each predicted token was hidden."""
    elbo_weight: Float[Tensor, " batch"]
    """Weight of a hidden token's cross-entropy in the bound."""
    ends_at_eos: Bool[Tensor, " batch"]
    """Whether a text ends at its first EOS: true of canvases, not of windows and templates."""
    n_tokens: Int[Tensor, " batch"]
    """Predicted real tokens: the denominator. On an open canvas L + 1, the fill is not counted."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]


class MDLMLossDict(LossDict):
    """The loss, its denominators, and what is logged beside it."""

    masked_cross_entropy: Float[Tensor, ""]
    """Mean cross-entropy of the hidden tokens, nats a hidden token, unweighted."""
    masked_fraction: Float[Tensor, ""]
    """Hidden positions / predicted positions."""
