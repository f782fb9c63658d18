from __future__ import annotations

from xlm.testing.contracts import OracleContract
from xlm_ilm import oracle_case


class TestILM(OracleContract):
    def case(self):
        return oracle_case.case()
