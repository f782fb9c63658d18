"""Keep the checkpoint of the best validation beside the newest ones."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from xlm.errors import UserError

KEY = "callbacks.best.monitor"


class BestCheckpoint(Callback):
    """Writes ``best.ckpt`` whenever a validation is better than all before it.

    Args:
        folder: Where the run's checkpoints are.
        monitor: What is compared, as it is logged: ``val/<data set>/<number>``.
        mode: Whether ``min`` or ``max`` is best.
    """

    def __init__(self, folder: str | os.PathLike[str], monitor: str, mode: str = "min") -> None:
        if mode not in ("min", "max"):
            raise UserError("must be min or max", where="callbacks.best.mode", value=mode, fix="choose one of them")
        self.path, self.monitor, self.mode = Path(folder) / "best.ckpt", monitor, mode
        self.best = math.inf if mode == "min" else -math.inf
        self.step = -1

    def check(self, names: Sequence[str]) -> None:
        """Refuse, before anything is trained, a number of a data set that no validation is of.

        Args:
            names: Data sets of the validation.
        """
        split, _, rest = self.monitor.partition("/")
        name, _, number = rest.partition("/")
        if split == "val" and name in names and number:
            return
        if not names:
            fix = "choose a datamodule that has a data set to validate on, or leave callbacks=best out"
            raise UserError("nothing is validated", where=KEY, value=self.monitor, fix=fix)
        listed = ", ".join(f"val/{name}/..." for name in names)
        raise UserError("names no validation data set", where=KEY, value=self.monitor, fix=f"choose of: {listed}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, and save. The saver writes later, so that its file knows the new best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = self._value(trainer)
        if value < self.best if self.mode == "min" else value > self.best:
            self.best, self.step = value, trainer.global_step
            trainer.save_checkpoint(self.path, weights_only=False)

    def _value(self, trainer: pl.Trainer) -> float:
        if self.monitor not in trainer.callback_metrics:
            close = difflib.get_close_matches(self.monitor, trainer.callback_metrics, n=1)
            meant = f"did you mean {close[0]}? " if close else ""
            fix = f"{meant}choose of: {', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            raise UserError("is not logged", where=KEY, value=self.monitor, fix=fix)
        return float(trainer.callback_metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on comparing with it."""
        self.best, self.step = state_dict["best"], state_dict["step"]
