"""Autoregressive language models for xlm; see README.md."""
