"""How fast a run is."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from xlm.harness import harness_of

SUMS = ("seconds", "tokens", "steps")


class Throughput(Callback):
    """Logs ``train/tokens_per_s`` (real tokens of all ranks) and ``train/seconds_per_step``.

    Validation does not count. A resumed run goes on counting: its checkpoint holds the sums.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        """Seconds of training."""
        self.tokens = 0.0
        """Tokens trained on."""
        self.steps = 0
        """Optimizer steps."""
        self._since: float | None = None
        self._logged = (0.0, 0.0, 0)
        self._first = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()
        self._first = (float(harness_of(trainer).tokens) - self.tokens, trainer.global_step - self.steps)
        self._logged = (self.seconds, self.tokens, self.steps)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._read_clock(trainer)
            self._since = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        if trainer.state.fn == TrainerFn.FITTING:
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
        self._since = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the sums."""
        self._read_clock(trainer)
        checkpoint["callbacks"][self.state_key] = {name: getattr(self, name) for name in SUMS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        for name in SUMS:
            setattr(self, name, state_dict[name])

    def _read_clock(self, trainer: pl.Trainer) -> None:
        if self._since is None:
            return
        self.tokens = float(harness_of(trainer).tokens) - self._first[0]  # waits for the device
        self.steps = trainer.global_step - self._first[1]
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def summary(self) -> dict[str, float]:
        """Seconds of training, steps, tokens, tokens a second, and the GPU's peak memory in this process in bytes."""
        rate = {"tokens_per_s": self.tokens / self.seconds} if self.seconds else {}
        peak = {"peak_memory": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
        return {"seconds": self.seconds, "steps": self.steps, "tokens": self.tokens, **rate, **peak}
