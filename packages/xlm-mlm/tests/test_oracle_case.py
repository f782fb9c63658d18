from __future__ import annotations

from xlm.testing.contracts import OracleContract
from xlm_mlm import oracle_case


class TestMLM(OracleContract):
    def case(self):
        return oracle_case.case()
