"""What the four parts of ILM hand to one another.

Gap g of a row lies right after its column g; column 0 is BOS. BOS comes on top of a text's ``max_length`` tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from xlm.protocols import LossDict


class ILMBatch(TypedDict):
    """Texts with n tokens taken out: what the loss reads."""

    input_ids: Int[Tensor, "batch seq"]
    """BOS, the prompt and the kept tokens, right-padded."""
    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where nothing is padded."""
    gaps: Bool[Tensor, "batch seq"]
    """Gaps where insertion is allowed: their span misses a token. False at padding."""
    gap_rows: Int[Tensor, " gaps"]
    """Those gaps as indices into the flattened batch, found on the CPU so that no step waits for an accelerator."""
    rows: Int[Tensor, " dropped"]
    """Gap of each dropped token as an index into the flattened batch, row * seq + column, in row-major order."""
    tokens: Int[Tensor, " dropped"]
    """The dropped token that belongs to each of ``rows``."""
    n_dropped: Int[Tensor, " batch"]
    full_ids: Int[Tensor, "batch full"]
    """The whole rows, BOS first, right-padded: what ``log_likelihood`` drops from anew."""
    full_mask: Bool[Tensor, "batch full"] | None
    """False at padding of ``full_ids``; None where nothing is padded."""
    span: Int[Tensor, "batch full"]
    """Number of the run of droppable tokens that a token belongs to; -1: given (BOS, prompt, fixed, padding)."""
    predicted: Bool[Tensor, "batch full"]
    """Tokens that can be dropped: those of a span."""
    counts_stop: bool
    """The event space is open: the decisions to continue and to stop belong to p(x, end), EOS is never inserted."""
    trains_stop: bool
    """The stop head learns from these rows: texts and targets, not templates."""
    n_tokens: Int[Tensor, " batch"]
    """Predicted tokens, the denominator: L + 1 where ``counts_stop``, otherwise L."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]


class ILMPredictionBatch(TypedDict):
    """Rows that the predictor inserts tokens into."""

    input_ids: Int[Tensor, "batch seq"]
    """BOS and the prompt, or BOS and the template's fixed tokens, right-padded."""
    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where nothing is padded."""
    room: Int[Tensor, "batch seq"]
    """Tokens that can still be inserted in the span of the gap right after this column; 0: none."""
    span: Int[Tensor, "batch seq"]
    """Number of that span, -1: none. A token inserted in a gap has the gap's span."""
    free: Bool[Tensor, " batch"]
    """The length is free and the stop head decides; otherwise a row ends when no room is left."""
    prompt_lengths: Int[Tensor, " batch"]
    """Prompt tokens that the answer does not repeat, BOS not counted; 0 for templates."""
    whole: Bool[Tensor, " batch"]
    """The answer is the whole filled row, as for templates."""
    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]


class ILMLossDict(LossDict):
    """The loss, its denominators, and what is logged beside it."""

    insertion_cross_entropy: Float[Tensor, ""]
    """The part of ``loss`` from -log p(gap, token), nats per predicted real token."""
    stop_loss: Float[Tensor, ""]
    """The part from the stop head's binary cross-entropy, nats per predicted real token; 0 where it does not learn."""


@runtime_checkable
class ILMModel(Protocol):
    """A network whose state at a column belongs to the gap right after that column's token."""

    max_length: int
    """Most tokens of a text; BOS comes on top."""
    if TYPE_CHECKING:  # a submodule, which isinstance does not see from Python 3.12 on
        head: nn.Linear

    def read(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, " batch"]]:
        """States of the gaps, and the logit of nothing being missing. ``positions``: the tokens' places, BOS at 0."""
        ...
