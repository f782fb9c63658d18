"""First-hitting sampler (Zheng et al., 2024, arXiv:2409.02908)."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor
from xlm.unmasking.plan import RevealPlan, first_hitting_plan

from xlm_mdlm.predictor.base import PlannedPredictor


class MDLMFirstHittingPredictor(PlannedPredictor):
    """One position a call, in uniformly random order, at the times at which the continuous process would reveal them.

    Law: that of the reverse process with infinitely many steps, without discretisation error. For a time-free network
    it is the mean over orders of the chain rule, of which ``log_likelihood`` is the bound. N calls for N positions.
    """

    law = "exact: the reverse process in continuous time"

    def plan(self, u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> RevealPlan:
        """The order of the uniform numbers, falling."""
        return first_hitting_plan(u, predicted)
