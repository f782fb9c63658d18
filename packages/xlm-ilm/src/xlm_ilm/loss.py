"""The training objective of insertion language models (Patel et al., 2025), from one draw of dropped tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from xlm.errors import UserError
from xlm.nn.linear_logsumexp import chosen_logits, linear_logsumexp
from xlm.protocols import Harness, LossFunction, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_ilm.types import ILMBatch, ILMLossDict, ILMModel


class ILMLoss(LossFunction[ILMBatch, ILMLossDict]):
    """Sum over rows of (L + 1) x (insertion cross-entropy + stop loss), in nats per predicted real token.

    With the softmax over all open (gap, token) pairs of a row, a row that misses n > 0 tokens costs the mean over these
    of -log p(gap, token | kept); one that misses nothing costs no insertion. On texts and targets the stop head adds
    its binary cross-entropy, whose target is "nothing is missing". Where the end counts, EOS cannot be inserted.

    A text of L tokens shows one of the L + 1 numbers n that lead to it, hence its weight. With equal weights a network
    that is trained perfectly would draw texts in proportion to p / (L + 1): too many short ones.

    ``nll`` is an unbiased one-draw estimate of the bound on -log p of a sequence of L tokens, n uniform on {0..L}:

    - the end counts: (L + 1) [n > 0: CE_n - log(1 - p_stop); n = 0: -log p_stop] - log L!
    - otherwise: (L + 1) [n > 0: CE_n; n = 0: 0] - log L!

    Args:
        model: The network.
        tokenizer: Says which tokens are never inserted.
        stop_weight: Weight of rows that miss nothing in the stop loss; other than 1, p_stop is not a probability.
    """

    def __init__(self, *, model: ILMModel, tokenizer: Tokenizer, stop_weight: float = 1.0) -> None:
        if not 0 < stop_weight < float("inf"):
            raise UserError("must be greater than 0", where="loss.stop_weight", value=stop_weight, fix="use 1.0")
        self.model, self.tokenizer, self.stop_weight = model, tokenizer, stop_weight
        self.suppressed = suppressed_ids(tokenizer)
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.suppressed_with_end = torch.cat([self.suppressed, torch.tensor(end, dtype=torch.int64)])

    def configure(self, pl_module: Harness) -> None:
        """Move the constants to the device."""
        self.suppressed = self.suppressed.to(pl_module.device)
        self.suppressed_with_end = self.suppressed_with_end.to(pl_module.device)

    def loss_fn(self, batch: ILMBatch) -> ILMLossDict:
        """The loss a token, the bound a sequence, and the two parts of the loss."""
        states, stop_logit = self.model.read(batch["input_ids"], batch["attention_mask"])
        insertion = self._insertion_cross_entropy(states, batch)
        stop_logit, misses = stop_logit.to(insertion.dtype), batch["n_dropped"] > 0
        costs = torch.where(misses, F.softplus(stop_logit), self.stop_weight * F.softplus(-stop_logit))
        # Times 0 the stop head still takes part: every parameter has a gradient, on every rank.
        stop = float(batch["trains_stop"]) * costs
        n_tokens, weight = batch["n_tokens"].sum(), _length(batch) + 1
        insertion_part, stop_part = ((weight * cost).sum() / n_tokens.clamp(min=1) for cost in (insertion, stop))
        return {
            "loss": insertion_part + stop_part,
            "loss_denominator": n_tokens,
            "nll": self._bound(insertion.detach(), stop_logit.detach(), batch),
            "n_tokens": batch["n_tokens"],
            "insertion_cross_entropy": insertion_part.detach(),
            "stop_loss": stop_part.detach(),
        }

    def _insertion_cross_entropy(self, states: Tensor, batch: ILMBatch) -> Tensor:
        """Of every row: -log p(gap, token | kept), the mean over its dropped tokens; 0 where nothing is dropped."""
        weight, (n_rows, seq) = self.model.head.weight, batch["input_ids"].shape
        flat, rows, gap_rows = states.flatten(0, 1), batch["rows"], batch["gap_rows"]
        suppressed = self.suppressed_with_end if batch["counts_stop"] else self.suppressed
        of_gap = linear_logsumexp(flat.index_select(0, gap_rows), weight, suppressed=suppressed)
        misses = batch["n_dropped"] > 0
        # A row without gaps gets one of value 0, for the log-sum-exp of nothing is -inf and its gradient undefined.
        none = of_gap.new_full((n_rows, seq), -torch.inf)
        none[:, 0] = torch.where(misses, -torch.inf, 0.0)
        of_row = none.flatten().scatter(0, gap_rows, of_gap).view(n_rows, seq).logsumexp(1)
        logits = chosen_logits(flat.index_select(0, rows), weight, batch["tokens"])
        logits = logits.masked_fill(torch.isin(batch["tokens"], suppressed), -torch.inf)  # a text with one: p = 0
        total = of_row.new_zeros(n_rows).index_add(0, rows // seq, logits)
        return torch.where(misses, of_row - total / batch["n_dropped"].clamp(min=1), 0.0)

    def _bound(self, insertion: Tensor, stop_logit: Tensor, batch: ILMBatch) -> Tensor:
        """The one-draw estimate of ``nll``."""
        length, cost = _length(batch), insertion
        if batch["counts_stop"]:
            cost = cost + torch.where(batch["n_dropped"] > 0, F.softplus(stop_logit), F.softplus(-stop_logit))
        return (length + 1) * cost - torch.lgamma((length + 1).to(cost.dtype))


def _length(batch: ILMBatch) -> Tensor:
    """L of every row: tokens that can be missing."""
    return batch["n_tokens"] - int(batch["counts_stop"])
