"""What must hold of MLM, and faults that would break it: run by ``xlm verify`` and by the tests.

What holds of every masked family is measured by ``xlm.testing.masked``.
"""

from __future__ import annotations

from xlm.testing.masked import masked_oracles
from xlm.testing.oracles import Oracle, OracleCase

from xlm_mlm.oracle_case import faults, likelihood, objective, samplers
from xlm_mlm.oracle_case.parts import mlm_parts


def case() -> OracleCase:
    """The oracles and mutations of MLM."""
    sections = (objective.measures(), likelihood.measures())
    own = [Oracle(name, measure) for section in sections for name, measure in section.items()]
    return OracleCase([*masked_oracles(mlm_parts(), samplers.claims()), *own], faults.mutations())
