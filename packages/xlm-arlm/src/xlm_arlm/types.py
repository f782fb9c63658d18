"""What the parts of ARLM hand one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from xlm.errors import UserError
from xlm.nn.attention import KVCache
from xlm.protocols import Tokenizer


class Keys(TypedDict):
    """What every batch carries for each row."""

    index: Int[Tensor, " batch"]
    noise_key: Int[Tensor, " batch"]


class Placement(TypedDict):
    """Where padding and positions are."""

    attention_mask: Bool[Tensor, "batch seq"] | None
    """False at padding; None where causality alone hides it, as it does without left padding."""
    positions: Int[Tensor, "batch seq"] | None
    """Place of each token in its own text, BOS at 0; None where that is its column."""


class ARLMBatch(Keys, Placement):
    """What the loss and ``log_likelihood`` read. Column j of ``input_ids`` predicts column j of ``target_ids``."""

    input_ids: Int[Tensor, "batch seq"]
    target_ids: Int[Tensor, "batch seq"]
    segments: Int[Tensor, "batch seq"] | None
    """Number of the document of a packed token; tokens see their own document only. None: one document a row."""
    predicted: Bool[Tensor, "batch seq"]
    """Tokens whose likelihood is measured, ``n_tokens`` a row."""
    rows: Int[Tensor, " rows"] | None
    """Tokens in the loss as row * seq + column, found on the CPU so that no step waits for the device; None: all."""
    n_tokens: Int[Tensor, " batch"]


class ARLMPromptBatch(Keys, Placement):
    """What ``predict`` reads: [BOS] prompt, left-padded."""

    input_ids: Int[Tensor, "batch seq"]


class ARLMLossDict(TypedDict):
    """``loss`` is the mean over ``rows``; ``nll`` and ``n_tokens`` are of ``predicted``, and exact. All in nats."""

    loss: Float[Tensor, ""]
    loss_denominator: Float[Tensor, ""]
    nll: Float[Tensor, " batch"]
    n_tokens: Int[Tensor, " batch"]


@runtime_checkable
class ARLMModel(Protocol):
    """A network whose state at a column depends on the columns up to it."""

    max_length: int
    if TYPE_CHECKING:  # a submodule, which isinstance does not see from Python 3.12 on
        head: nn.Linear

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        *,
        positions: Int[Tensor, "#batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States from which ``head`` predicts the next token; with a cache, of the tokens that follow what it holds."""
        ...

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Room for ``length`` tokens of ``batch`` rows."""
        ...


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """Id of the tokenizer's ``pad``, ``bos`` or ``eos`` token.

    Raises:
        UserError: there is none.
    """
    token_id: int | None = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise UserError(f"ARLM needs a {name} token and there is none", where="tokenizer", fix=f"add a {name} token")
    return token_id
