"""What every MDLM sampler shares: its options, the reading of answers, the any-order bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from xlm.protocols import Model, NoiseSchedule, Predictions, Predictor, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter
from xlm.stopping import stop_strings
from xlm.trace import Trace
from xlm.unmasking.answers import answer_rows, read_answers
from xlm.unmasking.batch import REVEAL_STREAM, MaskedPredictionBatch, placed_uniforms
from xlm.unmasking.denoiser import Denoiser
from xlm.unmasking.fill import Filled, TokenRule, fill_by_plan
from xlm.unmasking.likelihood import any_order
from xlm.unmasking.plan import RevealPlan

from xlm_mdlm.types import MDLMBatch


class MDLMPredictor(Predictor[MaskedPredictionBatch, Predictions], ABC):
    """Fills in hidden positions. What is visible stays, and tokens that are never generated have probability 0 (SUBS).

    Each position takes its random numbers from the row's ``noise_key`` and its own place in the row, so an answer does
    not depend on the rest of the batch. Rows leave the batch when nothing in them is hidden.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        noise_schedule: Of the reverse process, for samplers that follow one.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        min_new_tokens: EOS is not drawn at so many first places of an answer; templates and likelihoods know nothing
            of it.
        stop: A string, or several, that end an answer, but not a template: its text ends before it, ``ids`` after it.
        guidance: w of l_u + (1 + w)(l_c - l_u), 0 or more, where l_c are the network's logits and l_u those without the
            prompt or the given tokens; above 0 a step takes two calls.
        trace: Record what is revealed when.
    """

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        guidance: float = 0.0,
        trace: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.trace = model, tokenizer, trace
        self._noise_schedule = noise_schedule
        self.denoiser = Denoiser(model, tokenizer, told_mask_rate=True, guidance=guidance)
        token_filter = TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        self.tokens, self.stop = TokenRule(token_filter, min_new_tokens), stop_strings(stop)

    @property
    @abstractmethod
    def law(self) -> str:
        """Which distribution ``predict`` draws from, in words: ``exact``, ``exact for T steps`` or ``approximate``.

        It is of the network after token filters and guidance.
        """

    @property
    def noise_schedule(self) -> NoiseSchedule | None:
        """The schedule of the reverse process."""
        return self._noise_schedule

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

    @torch.no_grad()
    def log_likelihood(self, batch: MDLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Any-order bound on -log p of the predicted tokens under the model, whatever token filters and guidance.

        ``draws`` network calls a sequence; a network conditioned on the mask rate is told the one that fits.
        """
        return any_order(self.denoiser, batch, draws=draws)


class PlannedPredictor(MDLMPredictor):
    """A sampler whose positions are revealed by a plan that no token changes."""

    @abstractmethod
    def plan(self, u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> RevealPlan:
        """When each predicted position is revealed, from one uniform number a position."""

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Call the network for the rows that reveal something in a step, and its head where they do."""
        plan = self.plan(placed_uniforms(batch, REVEAL_STREAM), batch["predicted"])
        return fill_by_plan(self.denoiser, batch, plan, self.tokens, trace)
