"""The training objective of masked diffusion: the bound on -log p of Sahoo et al. (2024) from one draw of noise."""

from __future__ import annotations

import torch
from torch import Tensor
from xlm.likelihood import row_sums
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.protocols import Harness, LossFunction, Model, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_mdlm.types import MDLMBatch, MDLMLossDict


class MDLMLoss(LossFunction[MDLMBatch, MDLMLossDict]):
    """One-draw estimate of the bound on -log p, w(t) x the sum over hidden tokens of their cross-entropy, in nats.

    ``loss`` is per predicted real token, hidden or not: on an open canvas the text and one EOS, in seq2seq those of the
    target. SUBS: tokens that are never generated have probability 0, visible tokens are copied and so cost nothing; the
    head runs only at hidden positions. The estimate is unbiased for schedules that run over the whole of (0, 1] and
    collators with ``t_min=0``; otherwise it falls short of the bound.
    """

    def __init__(self, *, model: Model, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.suppressed = suppressed_ids(tokenizer)

    def configure(self, pl_module: Harness) -> None:
        """Move the constants to the device."""
        self.suppressed = self.suppressed.to(pl_module.device)

    def loss_fn(self, batch: MDLMBatch) -> MDLMLossDict:
        """Bound in nats a token, and per sequence; beside it what the hidden tokens cost, unweighted."""
        states = self.model.hidden(
            batch["input_ids"],
            batch["attention_mask"],
            positions=batch["positions"],
            segments=batch["segments"],
            mask_rate=batch["mask_rate"],
        )
        rows = self._hidden_rows(batch)
        weight = batch["elbo_weight"].index_select(0, rows // states.shape[1])
        total, cross_entropy = linear_cross_entropy(
            states.flatten(0, 1).index_select(0, rows),
            self.model.head.weight,
            batch["target_ids"].flatten().index_select(0, rows),
            row_weights=weight,
            suppressed=self.suppressed,
        )
        shape = (states.shape[0], states.shape[1])
        masked_nll = row_sums(cross_entropy, rows, shape)
        n_tokens = batch["n_tokens"].sum()
        return {
            "loss": total / n_tokens.clamp(min=1),
            "loss_denominator": n_tokens,
            "nll": batch["elbo_weight"] * masked_nll,
            "n_tokens": batch["n_tokens"],
            "masked_nll": masked_nll,
            "n_masked": row_sums(torch.ones_like(cross_entropy), rows, shape).long(),
            "masked_cross_entropy": cross_entropy.sum() / max(len(rows), 1),
            "masked_fraction": len(rows) / batch["predicted"].sum().clamp(min=1),
        }

    def _hidden_rows(self, batch: MDLMBatch) -> Tensor:
        """Hidden positions of the flattened batch."""
        if batch["rows"] is not None:
            return batch["rows"]
        hidden = (batch["input_ids"] == self.tokenizer.mask_token_id) & batch["predicted"]
        return torch.nonzero(hidden.flatten()).squeeze(1)
