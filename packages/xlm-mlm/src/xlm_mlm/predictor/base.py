"""What every MLM sampler shares: filling in rows and reading off their answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from xlm.protocols import Model, Predictions, Predictor, Tokenizer
from xlm.sampling import TokenFilter
from xlm.stopping import stop_strings
from xlm.trace import Trace
from xlm.unmasking.answers import answer_rows, read_answers
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import Filled, TokenRule


class MLMSampler(Predictor[MaskedPredictionBatch, Predictions], ABC):
    """Fills in hidden positions; the subclass says in which way. A row's draws come from its own ``noise_key``."""

    noise_schedule = None

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        token_filter: TokenFilter,
        min_new_tokens: int,
        stop: str | Sequence[str],
        guidance: float,
        trace: bool,
    ) -> None:
        self.model, self.tokenizer, self.trace = model, tokenizer, trace
        self.denoiser = Denoiser(model, tokenizer, guidance=guidance)
        self.tokens, self.stop = TokenRule(token_filter, min_new_tokens), stop_strings(stop)

    @property
    @abstractmethod
    def law(self) -> str:
        """Which distribution ``predict`` draws from, in words: ``exact``, ``exact for T steps`` or ``approximate``.

        It is of the network after token filters and guidance.
        """

    @abstractmethod
    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Whole rows with every predicted position filled in, and the network calls of each row."""

    def check(self, batch: MaskedPredictionBatch) -> None:
        """Refuse rows that the options do not fit, before any work."""
        self.denoiser.check(batch)

    @torch.no_grad()
    def predict(self, batch: MaskedPredictionBatch) -> Predictions:
        """Fill in the rows and read off their answers."""
        trace = Trace() if self.trace else None
        ids, n_calls = self.fill(batch, trace)
        return read_answers(self.tokenizer, batch, ids, n_calls, stop=self.stop, trace=trace)

    def to_dict(self, batch: MaskedPredictionBatch, preds: Predictions) -> list[dict[str, Any]]:
        """One JSON-ready row each; ``prompt`` is the prompt's text, or the template with its mask tokens."""
        return answer_rows(self.tokenizer, batch, preds, stop=self.stop)
