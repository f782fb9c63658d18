"""What every row must be known for: notes of all rows, gathered once over all ranks."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric

from xlm.ranks import gather


class Gathered(Metric):
    """Keeps a note of each row. Notes are Python values: a rank without rows takes part like any other."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        self.notes: list[Any] = []

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.notes = []

    def gathered(self) -> list[Any]:
        """The notes of all ranks. Every rank must ask."""
        return [note for notes in gather(self.notes) for note in notes]
