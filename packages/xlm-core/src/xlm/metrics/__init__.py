"""What is computed on predictions. A metric takes raw examples and prediction rows, and sums over ranks."""

from xlm.metrics.answers import ExactMatch, TokenAccuracy, Validity
from xlm.metrics.coverage import Coverage
from xlm.metrics.samples import SampleStatistics

__all__ = ["Coverage", "ExactMatch", "SampleStatistics", "TokenAccuracy", "Validity"]
