"""What must hold of MDLM, and faults that would break it: run by ``xlm verify`` and by the tests.

What holds of every masked family is measured by ``xlm.testing.masked``.
"""

from __future__ import annotations

from xlm.testing.masked import masked_oracles
from xlm.testing.oracles import Oracle, OracleCase

from xlm_mdlm.oracle_case import faults, objective, samplers
from xlm_mdlm.oracle_case.parts import mdlm_parts


def case() -> OracleCase:
    """The oracles and mutations of MDLM."""
    sections = (samplers.measures(), objective.measures())
    own = [Oracle(name, measure) for section in sections for name, measure in section.items()]
    return OracleCase([*masked_oracles(mdlm_parts(), samplers.claims()), *own], faults.mutations())
