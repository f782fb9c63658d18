"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from xlm.errors import UserError
from xlm.harness import Harness, harness_of

PARTS = {
    "data": "read, collate, move to the device",
    "forward": "the network up to its last states",
    "head and loss": "with the head's gradients where they are computed at once",
    "backward": "gradients; with several processes their exchange",
    "optimizer": "clipping, finiteness, the update",
    "other": "callbacks, loggers, loops",
}
"""What a step consists of, and what is counted where."""

ACTIONS = {
    "train_dataloader_next": "data",
    "batch_to_device": "data",
    "training_step": "head and loss",  # without what the network takes
    "backward": "backward",
    "optimizer_step": "optimizer",  # without the loss and its gradient, which Lightning computes inside
}
"""The part that each of Lightning's profiled actions belongs to."""


class Profile(Callback):
    """Prints a table at the end of training: mean milliseconds of each part of a step, and its share.

    A step is all micro-batches of one optimizer step, with its callbacks: checkpoints are of it, validations are not.
    A GPU is waited for at every border between parts, so that each is charged for its own work: steps are slower than
    without, the more so the smaller they are. A compiled loss is one part with the network.

    Args:
        warmup: First steps that are left out.
        console: Where to print.
    """

    def __init__(self, warmup: int = 10, console: Console | None = None) -> None:
        where = "callbacks.profile.warmup"
        if warmup < 0:
            raise UserError("must not be negative", where=where, value=warmup, fix="use 10")
        self.warmup, self.console = warmup, console or Console()
        self.watch = Stopwatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen to what Lightning does."""
        if stage == "fit":
            if 0 <= trainer.max_steps <= self.warmup:
                what, fix = f"leaves none of trainer.max_steps = {trainer.max_steps}", "train for more steps"
                raise UserError(what, where="callbacks.profile.warmup", value=self.warmup, fix=fix)
            trainer.profiler = self.watch  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the network's time from the loss's."""
        self.watch.begin(harness_of(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table."""
        self.watch.end()
        self._print()

    @property
    def milliseconds(self) -> dict[str, float]:
        """Mean of each part over the steps after the warm-up."""
        steps = self.watch.steps[self.warmup :]
        names = dict.fromkeys(name for step in steps for name in step)
        return {name: 1000 * sum(step[name] for step in steps) / len(steps) for name in names}

    @rank_zero_only
    def _print(self) -> None:
        mean, n = self.milliseconds, len(self.watch.steps) - self.warmup
        if not mean:
            return  # stopped before the warm-up was over
        title = f"a training step: mean of {n:,} after {self.warmup:,} of warm-up"
        table = Table("part", "ms", "share", "what", title=title, title_justify="left")
        whole = sum(mean.values())
        for name, part in mean.items():
            table.add_row(name, f"{part:.3g}", f"{part / whole:.1%}", PARTS.get(name, ""))
        table.add_section()
        table.add_row("step", f"{whole:.3g}", "100.0%", "")
        self.console.print(table)


class Stopwatch(Profiler):
    """Charges every moment of a step to one part: the innermost that has begun and not ended, or else ``other``."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        """Seconds by part of every optimizer step."""
        self._parts = dict(ACTIONS)
        self._open: list[str] = []  # empty between steps
        self._wait: Callable[[], None] = lambda: None
        self._restore: Callable[[], None] = lambda: None

    def begin(self, harness: Harness) -> None:
        """Watch a harness's steps."""
        self._harness, self._last = harness, 0.0
        self._wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(harness.device.type, _nothing)
        names = list(PARTS)
        if harness.compile_loss:
            self._parts["training_step"] = "forward, head and loss"
            names[1:3] = ["forward, head and loss"]
        else:
            self._watch_network(harness.model)
        self._zero = dict.fromkeys(names, 0.0)
        self._step = dict(self._zero)

    def end(self) -> None:
        """Leave the network as it was."""
        self._restore()

    def _watch_network(self, model: Any) -> None:
        name = "hidden" if hasattr(model, "hidden") else "forward"
        method = getattr(model, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._enter("forward")
            try:
                return method(*args, **kwargs)
            finally:
                self._leave("forward")

        setattr(model, name, watched)
        self._restore = lambda: delattr(model, name)

    def start(self, action_name: str) -> None:
        """An action of Lightning begins. The first of a step is to ask for data."""
        part = self._part(action_name)
        if part == "data" and not self._open and action_name.endswith("train_dataloader_next"):
            self._wait()
            self._last, self._open = time.perf_counter(), ["other"]
        if part:
            self._enter(part)

    def stop(self, action_name: str) -> None:
        """An action of Lightning ends. The last of a step is the harness's hook after it."""
        if part := self._part(action_name):
            self._leave(part)
        elif self._open and action_name.startswith("[LightningModule]") and action_name.endswith(".on_train_batch_end"):
            self._charge()
            self._open = []
            if self._harness.between_steps:
                self.steps.append(self._step)
                self._step = dict(self._zero)

    def _part(self, action_name: str) -> str | None:
        return self._parts.get(action_name.rpartition(".")[2])

    def _enter(self, part: str) -> None:
        if self._open:
            self._charge()
            self._open.append(part)

    def _leave(self, part: str) -> None:
        if self._open and self._open[-1] == part:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        self._wait()
        now = time.perf_counter()
        self._step[self._open[-1]] += now - self._last
        self._last = now


def _nothing() -> None:
    pass
