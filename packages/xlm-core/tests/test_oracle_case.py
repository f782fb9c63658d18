from __future__ import annotations

from xlm import oracle_case
from xlm.testing.contracts import OracleContract


class TestCore(OracleContract):
    def case(self):
        return oracle_case.case()
