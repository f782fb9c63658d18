"""Most certain position first (confidence order: MaskGIT, Chang et al., 2022; LLaDA, Nie et al., 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from xlm.errors import UserError
from xlm.likelihood import deterministic_order
from xlm.protocols import Model, SequenceLikelihood, Tokenizer
from xlm.sampling import best_positions, top_probability_scores
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch

from xlm_mdlm.predictor.base import TOKEN_STREAM, Filled, MDLMPredictor, placed_uniforms, places
from xlm_mdlm.types import MDLMBatch

MAX_LOGITS = 2**24


class MDLMTopProbabilityPredictor(MDLMPredictor):
    """Reveals the positions whose most probable token is most probable, ``tokens_per_step`` a call.

    Law: not that of the reverse process. It is a law of its own, whose order is a function of the visible tokens (ties
    to the first position; certainty is measured before the token filters), so ``log_likelihood`` is exact.
    ``temperature=0`` is greedy. A network conditioned on the mask rate is told k / (N + 1) with k of N hidden, the mean
    of the mask rates at which the reverse process reveals the next.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        tokens_per_step: Positions revealed a call; tokens of one call are drawn independently.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        trace: Record what is revealed when.
    """

    law = "its own: a deterministic order, neither exact nor approximate for the reverse process"

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        tokens_per_step: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        trace: bool = False,
    ) -> None:
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        super().__init__(model=model, tokenizer=tokenizer, trace=trace, **options)
        if tokens_per_step < 1:
            where = "predictor.tokens_per_step"
            raise UserError("must be 1 or more", where=where, value=tokens_per_step, fix="use 1 for the best quality")
        self.tokens_per_step = tokens_per_step

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Reveal until nothing is hidden."""
        hidden, place = batch["predicted"].clone(), places(batch)
        ids, token_u = self.hide(batch["input_ids"], hidden), placed_uniforms(batch, TOKEN_STREAM)
        n_calls = torch.zeros_like(batch["index"])
        step = 0
        while hidden.any():
            n_calls += hidden.any(1)
            row, column, states = self._next(batch, ids, hidden)
            tokens, probabilities = self.draw(states, token_u[row, column])
            ids[row, column] = tokens
            hidden[row, column] = False
            if trace is not None:
                trace.record(step, "reveal", row, place[row, column], tokens, probabilities)
            step += 1
        return ids, n_calls

    @torch.no_grad()
    def log_likelihood(self, batch: MDLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Exact -log p of the predicted tokens under this sampler, after the token filters. Nothing is drawn."""
        targets = batch["target_ids"]

        def reveal(hidden: Tensor) -> tuple[Tensor, Tensor]:
            row, column, states = self._next(batch, self.hide(targets, hidden), hidden)
            log_p = torch.zeros(hidden.shape, dtype=torch.float64, device=hidden.device)
            log_p[row, column] = self._log_probabilities(states, targets[row, column])
            revealed = torch.zeros_like(hidden)
            revealed[row, column] = True
            return revealed, log_p

        exact = deterministic_order(reveal, batch["predicted"])
        exact["n_tokens"] = batch["n_tokens"]
        return exact

    def _next(
        self, batch: Mapping[str, Any], ids: Int[Tensor, "batch seq"], hidden: Bool[Tensor, "batch seq"]
    ) -> tuple[Int[Tensor, " revealed"], Int[Tensor, " revealed"], Float[Tensor, "revealed d_model"]]:
        """Row, column and state of the positions to reveal next, in the rows where something is hidden."""
        rows = hidden.any(1).nonzero().squeeze(1)
        mask_rate = hidden.sum(1) / (batch["predicted"].sum(1) + 1)
        i, column = hidden[rows].nonzero(as_tuple=True)
        states = self.states(batch, ids, mask_rate[rows], rows)[i, column]
        certainty = torch.cat([top_probability_scores(self.logits(part)) for part in self._parts(states)])
        scores = certainty.new_full((len(rows), hidden.shape[1]), -torch.inf)
        scores[i, column] = certainty
        chosen = best_positions(scores, torch.full_like(rows, self.tokens_per_step))[i, column]
        return rows[i[chosen]], column[chosen], states[chosen]

    def _log_probabilities(
        self, states: Float[Tensor, "rows d_model"], tokens: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Of each token, after the token filters."""
        pairs = zip(self._parts(states), self._parts(tokens), strict=True)
        parts = [self.filter(self.logits(part)).log_softmax(-1).gather(1, token[:, None]) for part, token in pairs]
        return torch.cat(parts).squeeze(1).double()

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        """Chunks of rows whose logits may exist at a time."""
        return torch.split(values, max(1, MAX_LOGITS // int(self.model.head.weight.shape[0])))
