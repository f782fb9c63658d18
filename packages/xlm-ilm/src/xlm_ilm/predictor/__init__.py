"""Sampling by insertion, and the likelihood; ``law`` says which distribution a predictor draws from."""

from xlm_ilm.predictor.sampler import ILMPredictor

__all__ = ["ILMPredictor"]
