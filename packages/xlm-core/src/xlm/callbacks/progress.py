"""Show how far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from xlm.harness import harness_of

SHOWN = {
    "train/loss": "loss {:.4f}",
    "train/grad_norm": "norm {:.3f}",
    "train/lr": "lr {:.2e}",
    "train/tokens_per_s": "{:,.0f} tokens/s",
}


class Progress(Callback):
    """Steps or batches done, time left and the newest numbers.

    Args:
        console: Where to show it.
        seconds: Between two plain lines about an evaluation.
    """

    def __init__(self, console: Console | None = None, seconds: float = 10.0) -> None:
        self.console, self.seconds = console or Console(stderr=True), seconds
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed = 0.0

    # Training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what begins."""
        if trainer.is_global_zero:
            self._print(f"{harness_of(trainer).n_parameters:,} parameters, {trainer.max_steps:,} steps")
            self._begin("train", trainer.max_steps, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by a step."""
        harness = harness_of(trainer)
        if not trainer.is_global_zero or not harness.between_steps:
            return
        numbers = ""
        if harness.is_log_step:
            numbers = _numbers({**harness.metrics, **harness.step_metrics()})
            if self._bar is None:
                self._print(f"step {trainer.global_step:,}/{trainer.max_steps:,}  {numbers}")
        self._move("train", trainer.global_step, numbers)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    # Evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the batches of a validation."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_evaluation(trainer, "validation", batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the batches of a test."""
        self._begin_evaluation(trainer, "test", trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the batches to predict."""
        self._begin_evaluation(trainer, "predict", trainer.num_predict_batches)

    def _begin_evaluation(self, trainer: pl.Trainer, name: str, batches: list[int | float]) -> None:
        self._done, self._total = 0, int(sum(batches))
        if trainer.is_global_zero:
            self._begin(name, self._total)

    def _evaluated(self, trainer: pl.Trainer, name: str) -> None:
        self._done += 1
        if not trainer.is_global_zero:
            return
        self._move(name, self._done)
        if self._bar is None and time.monotonic() - self._printed > self.seconds:
            self._print(f"{name} {self._done:,}/{self._total:,} batches")

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Move on by a batch."""
        self._evaluated(trainer, "validation")

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Move on by a batch."""
        self._evaluated(trainer, "test")

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Move on by a batch."""
        self._evaluated(trainer, "predict")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave only the bar of the training around it."""
        if "train" not in self._tasks:
            self._close()
        elif self._bar is not None:
            self._bar.remove_task(self._tasks.pop("validation"))

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._close()

    # Drawing

    def _begin(self, name: str, total: int, done: int = 0) -> None:
        self._printed = time.monotonic()
        if not self.console.is_terminal:
            return
        if self._bar is None:
            label, numbers = TextColumn("{task.description}"), TextColumn("{task.fields[numbers]}")
            columns = (label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), numbers)
            self._bar = Bar(*columns, console=self.console)
            self._bar.start()
        self._tasks[name] = self._bar.add_task(name, total=total, completed=done, numbers="")

    def _move(self, name: str, done: int, numbers: str = "") -> None:
        if self._bar is not None:
            fields: dict[str, Any] = {"numbers": numbers} if numbers else {}
            self._bar.update(self._tasks[name], completed=done, **fields)

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self.console.print(line, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        self._tasks.clear()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _numbers(metrics: Mapping[str, float | int]) -> str:
    return "  ".join(text.format(metrics[name]) for name, text in SHOWN.items() if name in metrics)
