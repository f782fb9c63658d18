"""Masked discrete diffusion language models for xlm; see README.md."""
