"""What must hold of ILM, and faults that would break it: run by ``xlm verify`` and by the tests.

An ``ExactInserter`` knows the posterior of a table of texts, so what is drawn from it must have the table's law; an
``InconsistentInserter`` has logits of no joint law, as a trained network does: recursion over rows and enumeration of
orders say what its texts cost.
"""

from __future__ import annotations

from xlm.testing.oracles import Oracle, OracleCase

from xlm_ilm.oracle_case import faults, likelihood, objective, reading, samplers


def case() -> OracleCase:
    """The oracles and mutations of ILM."""
    sections = (samplers.measures(), likelihood.measures(), objective.measures(), reading.measures())
    measured = [
        Oracle(name, measure, name in samplers.SLOW) for section in sections for name, measure in section.items()
    ]
    return OracleCase(measured, faults.mutations())
