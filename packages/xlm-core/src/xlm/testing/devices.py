"""What must hold of a family on a GPU as on a CPU, through the commands that a person types.

```python
from xlm.testing.devices import DeviceContract, sudoku


class TestDevices(DeviceContract):
    overrides = sudoku("mine")
```
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
import torch

FP32 = "trainer.precision=32-true"


def sudoku(family: str) -> list[str]:
    """Overrides of a small training of any family that has ``model_type`` and the shared names of sizes."""
    sizes = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "datamodule.global_batch_size=8"]
    limits = ["trainer.max_steps=4", "trainer.limit_val_batches=2", "trainer.limit_test_batches=2"]
    return [f"model_type={family}", "datamodule=sudoku_4x4", *sizes, *limits]


def nats_per_token(folder: Path, *words: str) -> float:
    """Run a command of xlm whose run directory is this folder; the likelihood of its first test set."""
    command = [sys.executable, "-m", "xlm.cli", *words, f"run_dir={folder}", "trainer.enable_progress_bar=false"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    results = json.loads(next(folder.glob("**/results.json")).read_text())
    found = [entry["nats_per_token"] for key, entry in results.items() if key.startswith("test.") if "kind" in entry]
    return float(found[0])


class DeviceContract:
    """A family whose networks, losses and samplers run where the data is."""

    overrides: ClassVar[Sequence[str]]
    """Overrides of a short training."""

    device: ClassVar[str] = "gpu"
    """The accelerator that is compared with the CPU."""

    @pytest.fixture(autouse=True)
    def _device_is_here(self) -> None:
        """Skip where there is none, unless the machine is said to have one."""
        if not torch.cuda.is_available() and os.environ.get("XLM_REQUIRE_GPU") != "1":
            pytest.skip("no CUDA device")

    @pytest.mark.gpu
    def test_a_likelihood_is_the_same_on_both_devices(self, tmp_path: Path) -> None:
        """Of one network, trained on the GPU in fp32; sums may be ordered otherwise."""
        there, run = f"trainer.accelerator={self.device}", tmp_path / "run"
        trained = nats_per_token(run, "train", *self.overrides, there, FP32)
        here = nats_per_token(tmp_path / "cpu", "eval", f"checkpoint={run}", "trainer.accelerator=cpu", FP32)
        assert math.isclose(trained, here, rel_tol=1e-3), f"{trained} nats per token there, {here} on the CPU"

    @pytest.mark.gpu
    def test_training_in_bf16_stays_finite(self, tmp_path: Path) -> None:
        """Autocast reaches what the CPU's tests of fp32 do not."""
        words = [*self.overrides, f"trainer.accelerator={self.device}", "trainer.precision=bf16-mixed"]
        assert math.isfinite(nats_per_token(tmp_path / "run", "train", *words))
