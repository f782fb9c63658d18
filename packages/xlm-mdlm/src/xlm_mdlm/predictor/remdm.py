"""Reverse process with remasking (ReMDM, Wang et al., 2025, arXiv:2503.00307)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlm.protocols import Model, NoiseSchedule, Tokenizer
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch
from xlm.unmasking.fill import Filled
from xlm.unmasking.plan import step_times
from xlm.unmasking.remask import Remasking, Strategy, fill_by_remasking

from xlm_mdlm.predictor.base import MDLMPredictor


class MDLMReMDMPredictor(MDLMPredictor):
    """The reverse process in T steps, in which revealed tokens may be hidden and drawn again: mistakes can be mended.

    Law: ``cap`` and ``rescale`` are exact for a T-step process with the mask rates of the reverse process; its texts
    have another law than those of ``mdlm_ancestral``, whose draws are those of ``eta=0``. ``confidence`` is
    approximate. ``log_likelihood`` is the any-order bound of the network. Prompts and given tokens are never hidden.
    The network is called only for rows that reveal something in a step: at most T calls, and more steps mean more.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        noise_schedule: Mask rate at each step.
        steps: T; more give more chances to mend.
        strategy: How probable it is that a token is hidden again, with sigma_max the most that keeps the mask rates:
            ``cap``: ``eta``, at most sigma_max. ``rescale``: ``eta`` sigma_max. ``confidence``: ``eta`` sigma_max
            shared out over a row, more to tokens that were improbable when drawn.
        eta: In [0, 1]; 0 hides nothing again. With ``confidence`` the paper has 1.
        temperature: As the options below, it acts on p(x0 | xt), never on whether a position is revealed or hidden.
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
        noise_schedule: NoiseSchedule,
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
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
        options |= {"min_new_tokens": min_new_tokens, "stop": stop, "guidance": guidance, "trace": trace}
        super().__init__(model=model, tokenizer=tokenizer, noise_schedule=noise_schedule, **options)
        self.mask_rates = noise_schedule.mask_rate(step_times(steps))
        self.remasking = Remasking(strategy, eta)

    @property
    def law(self) -> str:
        """What is drawn with these options."""
        return self.remasking.law

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Reveal and hide for T steps; in the last one everything is revealed."""
        return fill_by_remasking(self.denoiser, batch, self.mask_rates, self.remasking, self.tokens, trace)
