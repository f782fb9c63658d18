"""Configuration: composed from the options of every installed package, checked before any work, kept beside a run."""

from xlm.config.composition import compose
from xlm.config.validation import validate

__all__ = ["compose", "validate"]
