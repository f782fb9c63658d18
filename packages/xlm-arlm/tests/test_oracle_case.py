from __future__ import annotations

from xlm.testing.contracts import OracleContract
from xlm_arlm import oracle_case


class TestARLM(OracleContract):
    def case(self):
        return oracle_case.case()
