"""Filling in hidden tokens in any order, and what a text costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from xlm.errors import UserError
from xlm.protocols import Model, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.blocks import check_blocks
from xlm.unmasking.fill import Filled, fill_by_rule
from xlm.unmasking.likelihood import any_order, in_order, pseudo
from xlm.unmasking.rules import Order, RevealRule

from xlm_mlm.predictor.base import MLMSampler
from xlm_mlm.types import MLMBatch


class MLMPredictor(MLMSampler):
    """Reveals hidden positions, some a call, and draws their tokens independently of one another given what is visible.

    Law: with the options left as they are, the mean over all orders of the chain rule, of which ``log_likelihood`` is
    the bound. An order without randomness (not ``random``, ``gumbel=0``) is a function of the visible tokens, so the
    sampler has a law of its own, of which ``log_likelihood`` is exact, token filters, guidance and blocks included; it
    is infinite where a filter removes a true token. Otherwise, with a random order of several tokens a call or in
    blocks, token filters, guidance, or Gumbel noise, the law is another one than the bound's: that of the network.

    A row's draws come from its own ``noise_key``. N hidden tokens need at most N calls; rows in which nothing is hidden
    leave the batch.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        order: Which position is revealed first: any (``random``), or the most certain one by its ``top_probability``,
            by the ``margin`` of the most probable token over the second, or by the least ``entropy``; certainty is
            measured before the token filters, ties go to the first position.
        gumbel: Above 0, that many times standard Gumbel noise is added to the log of the certainty (log p of the most
            probable token, log of the margin, minus the entropy in nats), anew in each step.
        tokens_per_step: Positions revealed a call.
        threshold: Reveal instead all whose top probability exceeds this, at least one; in [0, 1].
        factor: Reveal instead the most probable k, for the largest k with (k + 1)(1 - p_k) below this, at least one
            (Fast-dLLM, Wu et al., 2025).
        block_length: Blocks of so many positions are filled from left to right, each by the options above. An answer
            that ends at EOS is done with the block in which EOS appears. Null: one block.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        min_new_tokens: EOS is not drawn at so many first places of an answer; templates and likelihoods know nothing
            of it.
        stop: A string, or several, that end an answer, but not a template: its text ends before it, ``ids`` after it.
        guidance: w of l_u + (1 + w)(l_c - l_u), 0 or more, where l_c are the network's logits and l_u those without the
            prompt or the given tokens; above 0 a step takes two calls, and certainty is that of the guided logits.
        likelihood: ``auto``: exact where the order has no randomness, otherwise the any-order bound. ``any_order``: the
            bound of the network, whatever the sampler. ``pseudo``: each token given all others, which is no likelihood
            and not to be had with guidance.
        trace: Record what is revealed when.
    """

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        order: Order = "random",
        gumbel: float = 0.0,
        tokens_per_step: int = 1,
        threshold: float | None = None,
        factor: float | None = None,
        block_length: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        guidance: float = 0.0,
        likelihood: Literal["auto", "any_order", "pseudo"] = "auto",
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
        self.rule = RevealRule(order, gumbel, tokens_per_step, threshold, factor, block_length)
        if guidance and likelihood == "pseudo":
            fix = "use auto or any_order, or predictor.guidance=0"
            raise UserError("is not of a guided network", where="predictor.likelihood", value=likelihood, fix=fix)
        self.likelihood = likelihood

    @property
    def law(self) -> str:
        """What is drawn with these options."""
        return self.rule.law

    def check(self, batch: MaskedPredictionBatch) -> None:
        """Refuse rows that the options do not fit, before any work."""
        super().check(batch)
        check_blocks(batch, self.rule.block_length)

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Reveal until nothing is hidden."""
        return fill_by_rule(self.denoiser, batch, self.rule, self.tokens, trace)

    @torch.no_grad()
    def log_likelihood(self, batch: MLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """-log p of the predicted tokens, by the estimator that ``likelihood`` names; inputs hold masks alone.

        The bound takes ``draws`` network calls a sequence, the others about one a token and draw nothing.
        """
        if self.likelihood == "pseudo":
            return pseudo(self.denoiser, batch)
        if self.likelihood == "auto" and self.rule.deterministic:
            return in_order(self.denoiser, batch, self.rule, self.tokens.filter)
        return any_order(self.denoiser, batch, draws=draws)
