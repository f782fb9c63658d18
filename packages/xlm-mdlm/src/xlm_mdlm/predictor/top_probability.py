"""Positions in an order (by certainty: MaskGIT, Chang et al., 2022; LLaDA, Nie et al., 2025), in blocks by choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from xlm.protocols import Model, SequenceLikelihood, Tokenizer
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.blocks import check_blocks
from xlm.unmasking.fill import Filled, fill_by_rule
from xlm.unmasking.likelihood import any_order, in_order
from xlm.unmasking.rules import Order, RevealRule

from xlm_mdlm.predictor.base import MDLMPredictor
from xlm_mdlm.types import MDLMBatch


class MDLMTopProbabilityPredictor(MDLMPredictor):
    """Reveals the positions of which the network is most certain: those whose best token is most probable, or so.

    Law: not that of the reverse process. Without randomness in the order (not ``random``, ``gumbel=0``) it is a law of
    its own, whose order is a function of the visible tokens (ties to the first position; certainty is measured before
    the token filters), so ``log_likelihood`` is exact, guidance and blocks included; it is infinite where a token
    filter removes a true token. Otherwise ``log_likelihood`` is the any-order bound of the network. ``temperature=0``
    is greedy. A network conditioned on the mask rate is told k / (N + 1) with k of N hidden, the mean of the mask rates
    at which the reverse process reveals the next.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        order: What is revealed first: the position with the greatest ``top_probability``, with the greatest ``margin``
            of the most probable token over the second (Kim et al., 2025), with the least ``entropy``, or a ``random``
            one.
        gumbel: Above 0, that many times standard Gumbel noise is added to the log of the certainty (log p of the most
            probable token, log of the margin, minus the entropy in nats), anew in each step.
        tokens_per_step: Positions revealed a call; tokens of one call are drawn independently.
        threshold: Reveal instead all whose top probability exceeds this, at least one; in [0, 1].
        factor: Reveal instead the most probable k, for the largest k with (k + 1)(1 - p_k) below this, at least one
            (Fast-dLLM, Wu et al., 2025).
        block_length: Blocks of so many positions are filled from left to right, each by the options above. An answer
            that ends at EOS is done with the block in which EOS appears. Null: one block.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        min_new_tokens: EOS is not drawn at so many first places of an answer.
        stop: A string, or several, that end an answer.
        guidance: w of l_u + (1 + w)(l_c - l_u), 0 or more, l_u without what is given; certainty is that of the guided
            logits.
        trace: Record what is revealed when.
    """

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        order: Order = "top_probability",
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
        trace: bool = False,
    ) -> None:
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        options |= {"min_new_tokens": min_new_tokens, "stop": stop, "guidance": guidance, "trace": trace}
        super().__init__(model=model, tokenizer=tokenizer, **options)
        self.rule = RevealRule(order, gumbel, tokens_per_step, threshold, factor, block_length)

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
    def log_likelihood(self, batch: MDLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """-log p of the predicted tokens: exact under this sampler, or the any-order bound if its order is random.

        The exact one draws nothing.
        """
        if self.rule.deterministic:
            return in_order(self.denoiser, batch, self.rule, self.tokens.filter)
        return any_order(self.denoiser, batch, draws=draws)
