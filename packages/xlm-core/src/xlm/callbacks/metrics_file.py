"""``metrics.csv``: one row a step, one column a number, the same file over all parts of a run."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from xlm.files import DiskError, write_atomically

logger = logging.getLogger(__name__)


class MetricsFile(Logger):
    """A logger that appends. A resumed run goes on where its checkpoint was; rows of lost steps disappear.

    A full disk costs the rows, not the run: it is said once.

    Args:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = Path(path)
        self.columns: list[str] = []
        self._row: dict[str, Any] = {}
        self._failed = False
        self._last = -1

    @property
    def name(self) -> str:
        """Of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """A run has one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: ``config.yaml`` holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | int], step: int | None = None) -> None:
        """Merge numbers of one step into one row."""
        if self._row and self._row["step"] != step:
            self.save()
        self._row |= {"step": step, **metrics}

    @rank_zero_only
    def save(self) -> None:
        """Put the row on the disk."""
        row, self._row = self._row, {}
        if not row:
            return
        try:
            self._append(row)
        except (OSError, DiskError) as error:
            if not self._failed:
                logger.warning("metrics are lost: %s", error)
            self._failed = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the last row."""
        self.save()

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop rows after ``step``: they will be computed again. A run that begins drops all."""
        self._row = {}
        if self.path.exists():
            kept = [row for row in self._read() if 0 < step >= int(row["step"])]
            self._last = int(kept[-1]["step"]) if kept else -1
            self._rewrite(kept)

    def _append(self, row: Mapping[str, Any]) -> None:
        known = set(row) <= set(self.columns) and self.path.exists()
        if known and row["step"] != self._last:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        else:
            self._insert(row)
        self._last = row["step"]

    def _insert(self, row: Mapping[str, Any]) -> None:
        """Write all rows again, as there are new columns, or more numbers for the last row."""
        rows: list[Mapping[str, Any]] = [*self._read()]
        self.columns += [name for name in row if name not in self.columns]
        if rows and int(rows[-1]["step"]) == row["step"]:
            row = {**rows.pop(), **row}
        self._rewrite([*rows, row])

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or ["step"])
            return [row for row in reader if (row["step"] or "").isdigit() and None not in row.values()]

    def _rewrite(self, rows: list[Any]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))
