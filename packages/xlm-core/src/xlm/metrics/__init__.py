"""What is computed on predictions. A metric takes raw examples and prediction rows, and sums over ranks."""

from xlm.metrics.answers import ExactMatch, TokenAccuracy, Validity

__all__ = ["ExactMatch", "TokenAccuracy", "Validity"]
