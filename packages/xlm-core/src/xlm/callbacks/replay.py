"""Show how a sampler arrives at its answers, one frame after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from xlm.callbacks.samples import dotted
from xlm.errors import UserError
from xlm.harness import harness_of
from xlm.trace import replay


class Replay(Callback):
    """After a test, samples the first examples of its first prediction set once more and prints them coming about.

    A task whose source has ``render(text)`` draws the frames; others are shown as text, hidden tokens as dots.

    Args:
        n: Examples to show.
        frames: States to show of each, the first and the last among them.
        console: Where to print.
    """

    def __init__(self, n: int = 2, frames: int = 5, console: Console | None = None) -> None:
        for name, value, least in (("n", n, 1), ("frames", frames, 2)):
            if value < least:
                where = f"callbacks.replay.{name}"
                raise UserError(f"must be at least {least}", where=where, value=value, fix=f"use {least} or more")
        self.n, self.frames = n, frames
        self.console = console or Console()

    @rank_zero_only
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Sample and print."""
        managers = trainer.datamodule.managers("test")  # type: ignore[attr-defined]
        for manager, loader in zip(managers, trainer.test_dataloaders or [], strict=True):
            if manager.kind == "prediction":
                batch = trainer.strategy.batch_to_device(next(iter(loader)))
                self._show(harness_of(trainer), manager, batch)
                return

    def _show(self, harness: Any, manager: Any, batch: Mapping[str, Any]) -> None:
        predictor, kept = harness.predictor, harness.predictor.trace
        predictor.trace = True
        try:
            rows = predictor.to_dict(batch, predictor.predict(batch))
        finally:
            predictor.trace = kept
        draw = getattr(manager.source, "render", str)
        for row in rows[: self.n]:
            states = list(replay(row["trace"], row["start_ids"]))
            title = f"{manager.full_name} {row['index']}"
            self._print(title, [(i, _text(harness.tokenizer, states[i])) for i in self._chosen(len(states))], draw)

    def _chosen(self, n_states: int) -> list[int]:
        """Evenly spread states, the first and the last among them."""
        last = n_states - 1
        return sorted({round(i * last / (self.frames - 1)) for i in range(self.frames)})

    def _print(self, title: str, states: Sequence[tuple[int, str]], draw: Callable[[str], str]) -> None:
        panels = [Panel(Text(draw(text)), title=f"after {step}", expand=False) for step, text in states]
        self.console.print(Text(f"{title}, after how many steps:"))
        self.console.print(Columns(panels))


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text with hidden tokens as dots and without other control tokens."""
    control = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    text = tokenizer.decode([i for i in ids if i not in control])
    return dotted(str(text), tokenizer)
