"""Show a few predictions at every validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xlm.harness import harness_of

COLUMNS = ("prompt", "prediction", "target")
HIDDEN = "·"
"""A hidden token of a prompt, as it is shown."""


class SampleLogger(Callback):
    """Prints the samples that the harness kept (``harness.log_samples`` of each data set), and gives them to loggers.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    @rank_zero_only
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the samples of the validation that just ended."""
        if trainer.sanity_checking:
            return
        harness = harness_of(trainer)
        for name, rows in harness.samples.items():
            columns = [column for column in COLUMNS if any(column in row for row in rows)]
            texts = [[_shown(row, column, harness.tokenizer) for column in columns] for row in rows]
            title = f"{name} at step {trainer.global_step}"
            self._print(title, columns, texts)
            for logger in trainer.loggers:
                if hasattr(logger, "log_text"):  # Weights & Biases
                    logger.log_text(key=f"samples/{name}", columns=columns, data=texts, step=trainer.global_step)

    def _print(self, title: str, columns: list[str], texts: list[list[Any]]) -> None:
        table = Table(*columns, title=title, show_lines=True)
        for row in texts:
            table.add_row(*(Text(_visible(text)) for text in row))  # no markup either
        self.console.print(table)


def _shown(row: Mapping[str, Any], column: str, tokenizer: Any) -> str:
    text = str(row.get(column, ""))
    return dotted(text, tokenizer) if column == "prompt" else text


def dotted(text: str, tokenizer: Any) -> str:
    """A decoded text with a dot for each hidden token."""
    mask = getattr(tokenizer, "mask_token", None)
    return text.replace(mask, HIDDEN) if mask else text


def _visible(text: str) -> str:
    """Text that cannot steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
