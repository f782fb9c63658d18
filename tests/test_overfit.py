"""The three cheapest tasks of ``benchmarks/overfit_tasks.py``, each learnt by heart by three families."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[1] / "benchmarks" / "overfit_tasks.py"


@pytest.mark.slow
def test_three_families_learn_three_tasks_by_heart():
    tasks = ["addition", "n_queens", "sudoku_4x4"]
    done = subprocess.run(
        [sys.executable, str(COMMAND), "--tasks", *tasks], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "9 of 9 learnt" in done.stdout
