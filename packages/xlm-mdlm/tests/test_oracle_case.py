from __future__ import annotations

from xlm.testing.contracts import OracleContract
from xlm_mdlm import oracle_case


class TestMDLM(OracleContract):
    def case(self):
        return oracle_case.case()
