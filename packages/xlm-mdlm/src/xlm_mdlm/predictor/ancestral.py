"""Ancestral sampler of MDLM (Sahoo et al., 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor
from xlm.protocols import Model, NoiseSchedule, Tokenizer
from xlm.unmasking.plan import RevealPlan, ancestral_plan, step_times

from xlm_mdlm.predictor.base import PlannedPredictor


class MDLMAncestralPredictor(PlannedPredictor):
    """The reverse process in T steps, t = 1, 1 - 1/T, ..., 1/T: each hidden position is revealed at random.

    Law: exact for the T-step process, whose tokens of one step are independent given what was visible before; it is
    O(1/T) from that of the first-hitting sampler. Whether a position is revealed is drawn first, so the network is
    called only for rows that reveal something, and its head only there: at most min(T, N) calls. That is the cached
    sampler: for a network that is not told the mask rate a prediction holds until a token changes, so the steps between
    would only repeat it, and T can be as large as one likes.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        noise_schedule: Mask rate at each step.
        steps: T; more is closer to the continuous process.
        temperature: As the options below, it acts on p(x0 | xt), never on whether a position is revealed.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        min_new_tokens: EOS is not drawn at so many first places of an answer.
        stop: A string, or several, that end an answer.
        guidance: w of l_u + (1 + w)(l_c - l_u), 0 or more, l_u without what is given.
        trace: Record what is revealed when.
    """

    law = "exact for T steps: the reverse process; O(1/T) from the continuous one"

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule,
        steps: int = 128,
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

    def plan(self, u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> RevealPlan:
        """The step in which the mask rate falls below each position's number."""
        return ancestral_plan(u, predicted, self.mask_rates.to(u.device))
