"""The training objective of BERT (Devlin et al., 2019) without the next-sentence task."""

from __future__ import annotations

import torch
from xlm.likelihood import row_sums
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.protocols import Harness, LossDict, LossFunction, Model, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_mlm.types import MLMBatch


class MLMLoss(LossFunction[MLMBatch, LossDict]):
    """Mean cross-entropy of the chosen tokens, nats a chosen token.

    Tokens that are never generated have probability 0; tokens that were not chosen cost nothing, and the head runs only
    at chosen ones. The loss depends on the mask rate and is no likelihood, nor is one estimated here: that is the
    predictor's.
    """

    def __init__(self, *, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.suppressed = suppressed_ids(tokenizer)

    def configure(self, pl_module: Harness) -> None:
        """Move the constants to the device."""
        self.suppressed = self.suppressed.to(pl_module.device)

    def loss_fn(self, batch: MLMBatch) -> LossDict:
        """The mean over the chosen tokens of the batch; 0 where none is."""
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
        return {
            "loss": total / max(len(rows), 1),
            "loss_denominator": torch.tensor(len(rows), device=total.device),
            "masked_nll": row_sums(cross_entropy, rows, shape),
            "n_masked": row_sums(torch.ones_like(cross_entropy), rows, shape).long(),
        }
