"""What must hold of ARLM, and faults that would break it: run by ``xlm verify`` and by the tests.

A table of the probabilities of all strings of four letters out of four is the model whose law is known beforehand; a
small transformer with random weights is one whose texts have any length, and whose cache and masks can be wrong.
"""

from __future__ import annotations

from xlm.testing.oracles import Oracle, OracleCase

from xlm_arlm.oracle_case import faults, likelihood, objective, reading, samplers


def case() -> OracleCase:
    """The oracles and mutations of ARLM."""
    sections = (samplers.measures(), likelihood.measures(), objective.measures(), reading.measures())
    measured = [
        Oracle(name, measure, name in samplers.SLOW) for section in sections for name, measure in section.items()
    ]
    return OracleCase(measured, faults.mutations())
