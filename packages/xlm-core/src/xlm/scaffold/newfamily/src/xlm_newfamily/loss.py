"""The training objective: the cross-entropy of hidden tokens."""

from __future__ import annotations

import torch
from xlm.likelihood import row_sums
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.protocols import Harness, LossDict, LossFunction, Model, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_newfamily.types import NewFamilyBatch


class NewFamilyLoss(LossFunction[NewFamilyBatch, LossDict]):
    """Mean cross-entropy of the hidden tokens, nats a hidden token; visible tokens cost nothing.

    Tokens that are never generated have probability 0. No likelihood is estimated here: that is the predictor's.
    """

    def __init__(self, *, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.suppressed = suppressed_ids(tokenizer)

    def configure(self, pl_module: Harness) -> None:
        """Move the constants to the device."""
        self.suppressed = self.suppressed.to(pl_module.device)

    def loss_fn(self, batch: NewFamilyBatch) -> LossDict:
        """The mean over the hidden tokens of the batch; 0 where none is."""
        states = self.model.hidden(
            batch["input_ids"], batch["attention_mask"], positions=batch["positions"], segments=batch["segments"]
        )
        rows = batch["rows"]
        total, cross_entropy = linear_cross_entropy(
            states.flatten(0, 1).index_select(0, rows),
            self.model.head.weight,
            batch["target_ids"].flatten().index_select(0, rows),
            suppressed=self.suppressed,
        )
        shape = (states.shape[0], states.shape[1])
        # YOUR IDEA: what is minimised. `row_weights=` above weighs hidden tokens; say in `loss_denominator` what the
        # sum was divided by, so that batches, ranks and accumulation give the gradient of one global mean.
        return {
            "loss": total / max(len(rows), 1),
            "loss_denominator": torch.tensor(len(rows), device=total.device),
            "masked_nll": row_sums(cross_entropy, rows, shape),
            "n_masked": row_sums(torch.ones_like(cross_entropy), rows, shape).long(),
        }
