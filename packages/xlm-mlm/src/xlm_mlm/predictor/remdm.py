"""Reverse process with remasking (ReMDM, Wang et al., 2025, arXiv:2503.00307), for networks that fill in masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from xlm.protocols import Model, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.fill import Filled
from xlm.unmasking.likelihood import any_order
from xlm.unmasking.plan import step_times
from xlm.unmasking.remask import Remasking, Strategy, fill_by_remasking

from xlm_mlm.predictor.base import MLMSampler
from xlm_mlm.types import MLMBatch


class MLMReMDMPredictor(MLMSampler):
    """The reverse process of masked diffusion in T steps, in which revealed tokens may be hidden and drawn again.

    Mask rates fall evenly, from 1 to 0; ``eta=0`` is ancestral sampling. Law: ``cap`` and ``rescale`` are exact for a
    T-step process with these mask rates; ``confidence`` is approximate. ``log_likelihood`` is the any-order bound of
    the network. Prompts and given tokens are never hidden. The network is called only for rows that reveal something in
    a step: at most T calls, and more steps mean more.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        steps: T; more give more chances to mend.
        strategy: How probable it is that a token is hidden again, with sigma_max the most that keeps the mask rates:
            ``cap``: ``eta``, at most sigma_max. ``rescale``: ``eta`` sigma_max. ``confidence``: ``eta`` sigma_max
            shared out over a row, more to tokens that were improbable when drawn.
        eta: In [0, 1]; 0 hides nothing again. With ``confidence`` the paper has 1.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        min_new_tokens: EOS is not drawn at so many first places of an answer.
        stop: A string, or several, that end an answer.
        guidance: w of l_u + (1 + w)(l_c - l_u), 0 or more, l_u without what is given.
        trace: Record what is revealed and hidden when.
    """

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        steps: int = 128,
        strategy: Strategy = "cap",
        eta: float = 0.02,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        guidance: float = 0.0,
        trace: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            tokenizer=tokenizer,
            token_filter=TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
            min_new_tokens=min_new_tokens,
            stop=stop,
            guidance=guidance,
            trace=trace,
        )
        self.mask_rates = step_times(steps)
        self.remasking = Remasking(strategy, eta)

    @property
    def law(self) -> str:
        """What is drawn with these options."""
        return self.remasking.law

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Reveal and hide for T steps; in the last one everything is revealed."""
        return fill_by_remasking(self.denoiser, batch, self.mask_rates, self.remasking, self.tokens, trace)

    @torch.no_grad()
    def log_likelihood(self, batch: MLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Any-order bound on -log p of the predicted tokens under the network, by ``draws`` calls a sequence."""
        return any_order(self.denoiser, batch, draws=draws)
