"""Samplers of masked language models, one class each; ``law`` says which distribution a sampler draws from."""

from xlm_mlm.predictor.order import MLMPredictor
from xlm_mlm.predictor.remdm import MLMReMDMPredictor

__all__ = ["MLMPredictor", "MLMReMDMPredictor"]
