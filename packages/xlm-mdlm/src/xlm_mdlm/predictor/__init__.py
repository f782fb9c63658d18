"""Samplers of masked diffusion, one class each; ``law`` says which distribution a sampler draws from."""

from xlm_mdlm.predictor.ancestral import MDLMAncestralPredictor
from xlm_mdlm.predictor.base import MDLMPredictor
from xlm_mdlm.predictor.first_hitting import MDLMFirstHittingPredictor
from xlm_mdlm.predictor.remdm import MDLMReMDMPredictor
from xlm_mdlm.predictor.top_probability import MDLMTopProbabilityPredictor

__all__ = [
    "MDLMAncestralPredictor",
    "MDLMFirstHittingPredictor",
    "MDLMPredictor",
    "MDLMReMDMPredictor",
    "MDLMTopProbabilityPredictor",
]
