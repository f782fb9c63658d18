"""How fast a run is."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from xlm.harness import harness_of


class Throughput(Callback):
    """Logs ``train/tokens_per_s`` (real tokens of all ranks: the loss's denominators) and ``train/seconds_per_step``.

    Validation does not count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds of training in this process."""
        self.tokens = 0.0
        """Tokens trained on in this process."""
        self.steps = 0
        """Optimizer steps of this process."""
        self._since = 0.0
        self._logged = (0.0, 0.0, 0)
        self._first = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()
        self._first = (float(harness_of(trainer).tokens), trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == TrainerFn.FITTING:
            self.seconds += time.perf_counter() - self._since

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate since the last log step."""
        harness = harness_of(trainer)
        if not harness.is_log_step:
            return
        self._read_clock(trainer)
        seconds, tokens, steps = self._logged
        seconds, tokens, steps = self.seconds - seconds, self.tokens - tokens, self.steps - steps
        self._logged = (self.seconds, self.tokens, self.steps)
        harness.record({"train/tokens_per_s": tokens / seconds, "train/seconds_per_step": seconds / steps})

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the last numbers."""
        self._read_clock(trainer)

    def _read_clock(self, trainer: pl.Trainer) -> None:
        self.tokens = float(harness_of(trainer).tokens) - self._first[0]  # waits for the device
        self.steps = trainer.global_step - self._first[1]
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def summary(self) -> dict[str, float]:
        """Of this process: seconds of training, steps, tokens, tokens a second, and the GPU's peak memory in bytes."""
        rate = {"tokens_per_s": self.tokens / self.seconds} if self.seconds else {}
        peak = {"peak_memory": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
        return {"seconds": self.seconds, "steps": self.steps, "tokens": self.tokens, **rate, **peak}
