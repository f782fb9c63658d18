"""What must hold of the parts that every family shares, and faults that would break it."""

from __future__ import annotations

from xlm.oracle_case import evaluation, faults, networks, noise, sampling
from xlm.testing.oracles import Oracle, OracleCase


def case() -> OracleCase:
    """The oracles and mutations of the core."""
    sections = (noise.measures(), sampling.measures(), networks.measures(), evaluation.measures())
    measured = [Oracle(name, measure) for section in sections for name, measure in section.items()]
    return OracleCase(measured, faults.mutations())
