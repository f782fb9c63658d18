"""Filling in hidden tokens in random order, and what a text costs."""

from __future__ import annotations

from typing import Any

import torch
from xlm.protocols import Model, Predictions, Predictor, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter
from xlm.trace import Trace
from xlm.unmasking.answers import answer_rows, read_answers
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import TokenRule, fill_by_rule
from xlm.unmasking.likelihood import any_order
from xlm.unmasking.rules import RevealRule

from xlm_newfamily.types import NewFamilyBatch


class NewFamilyPredictor(Predictor[MaskedPredictionBatch, Predictions]):
    """One hidden position a call, in uniformly random order; its token is drawn given everything visible.

    Law: the mean over all orders of the chain rule, of which ``log_likelihood`` is a bound. A row's draws come from its
    own ``noise_key``, so an answer does not depend on its batch.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        guidance: Above 0: away from the logits without what is given; two calls a step.
        trace: Record what is revealed when.
    """

    noise_schedule = None

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 0.0,
        trace: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.trace = model, tokenizer, trace
        self.denoiser = Denoiser(model, tokenizer, guidance=guidance)
        self.tokens = TokenRule(TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
        # YOUR IDEA: which positions come next, and how many a call. The core's rules are `xlm.unmasking.rules`;
        # a loop of your own stands in `predict`. Then say in the oracle case what it draws from.
        self.rule = RevealRule(order="random", tokens_per_step=1)

    @torch.no_grad()
    def predict(self, batch: MaskedPredictionBatch) -> Predictions:
        """Reveal until nothing is hidden, and read off the answers."""
        trace = Trace() if self.trace else None
        ids, n_calls = fill_by_rule(self.denoiser, batch, self.rule, self.tokens, trace)
        return read_answers(self.tokenizer, batch, ids, n_calls, trace=trace)

    def to_dict(self, batch: MaskedPredictionBatch, preds: Predictions) -> list[dict[str, Any]]:
        """One JSON-ready row each; ``prompt`` is the prompt's text, or the template with its mask tokens."""
        return answer_rows(self.tokenizer, batch, preds)

    @torch.no_grad()
    def log_likelihood(self, batch: NewFamilyBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Any-order bound on -log p of the predicted tokens; ``draws`` network calls a sequence."""
        return any_order(self.denoiser, batch, draws=draws)
