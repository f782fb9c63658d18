"""Every oracle holds, and notices its fault."""

from __future__ import annotations

from xlm.testing.contracts import OracleContract

from xlm_newfamily import oracle_case


class TestOracleCase(OracleContract):
    def case(self):
        return oracle_case.case()
