"""The training objective of autoregressive models: next-token cross-entropy."""

from __future__ import annotations

import torch
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.protocols import Harness, Kind, LossFunction, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_arlm.types import ARLMBatch, ARLMLossDict, ARLMModel


class ARLMLoss(LossFunction[ARLMBatch, ARLMLossDict]):
    """-log p(x) by the chain rule, exact, in nats; ``loss`` is its mean over the tokens in the loss.

    Tokens that are never generated are no part of the softmax. The head runs only at tokens in the loss.

    Args:
        model: The network.
        tokenizer: Says which tokens are never generated.
    """

    nll_kind: Kind = "exact"

    def __init__(self, *, model: ARLMModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.suppressed = suppressed_ids(tokenizer)

    def configure(self, pl_module: Harness) -> None:
        """Move the constants to the device."""
        self.suppressed = self.suppressed.to(pl_module.device)

    def loss_fn(self, batch: ARLMBatch) -> ARLMLossDict:
        """Loss in nats a token, and -log p of each row; a batch that predicts nothing has loss 0 and gradient 0."""
        states = self.model.hidden(
            batch["input_ids"], batch["attention_mask"], positions=batch["positions"], segments=batch["segments"]
        ).flatten(0, 1)
        targets, rows = batch["target_ids"].flatten(), batch["rows"]
        if rows is not None:
            states, targets = states.index_select(0, rows), targets.index_select(0, rows)
        total, costs = linear_cross_entropy(states, self.model.head.weight, targets, suppressed=self.suppressed)
        if rows is not None:
            costs = costs.new_zeros(batch["target_ids"].numel()).scatter(0, rows, costs)
        return {
            "loss": total / max(len(targets), 1),
            "loss_denominator": total.new_full((), len(targets)),
            "nll": torch.where(batch["predicted"], costs.view_as(batch["predicted"]), 0.0).sum(1),
            "n_tokens": batch["n_tokens"],
        }
