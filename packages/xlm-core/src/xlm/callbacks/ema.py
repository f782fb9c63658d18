"""Evaluate the average of the weights over the run instead of the last ones."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from xlm.errors import UserError
from xlm.harness import harness_of


class EMA(WeightAveraging):
    """Exponential moving average of the weights, after every optimizer step.

    The decay at step n is min(decay, (1 + n) / (10 + n)), as TensorFlow's ``ExponentialMovingAverage`` with
    ``num_updates``: early steps, far from the end, are forgotten sooner. Validations, and the module after ``fit``,
    hold the average; checkpoints hold both. Only parameters are averaged: buffers (counts, running statistics) are
    copied from the module after every step, as the mean of old and new ones may mean nothing.

    Args:
        decay: Weight of the past, in (0, 1).
    """

    def __init__(self, decay: float = 0.9999) -> None:
        if not 0 < decay < 1:
            raise UserError("must lie in (0, 1)", where="harness.ema_decay", value=decay, fix="use null for no average")
        super().__init__()
        self.decay = decay
        self.swapped = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the module."""
        if isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy)):
            fix = "use null, or strategy=ddp"
            raise UserError("sharded weights cannot be averaged", where="harness.ema_decay", value=self.decay, fix=fix)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            harness_of(trainer).weights = "raw"

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average in a few kernels, without waiting for the device."""
        step = trainer.global_step
        if step == self._latest_update_step:  # inside an accumulation window
            return
        self._latest_update_step = step
        average = self._average_model.module  # type: ignore[union-attr]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._tensors(average), self._tensors(pl_module), weight)
        for copy, buffer in zip(average.buffers(), pl_module.buffers(), strict=True):
            copy.copy_(buffer)

    @staticmethod
    def _tensors(module: torch.nn.Module) -> list[Tensor]:
        return [parameter.data for parameter in module.parameters()]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: only optimizer steps are averaged."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing yet: the last checkpoint must still find the raw weights in the module."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module, also when there was nothing left to train."""
        self._copy_average_to_current(pl_module)
        self._average_model = None
        harness_of(trainer).weights = "ema"

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average into the module."""
        if self._average_model is not None:
            self._swap(trainer)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the raw weights back."""
        if self.swapped:
            self._swap(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A validation that was cut short is undone, before anything is saved."""
        if self.swapped:
            self._swap(trainer)

    def _swap(self, trainer: pl.Trainer) -> None:
        self._swap_models(trainer.lightning_module)
        self.swapped = not self.swapped
        harness_of(trainer).weights = "ema" if self.swapped else "raw"

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore both sets of weights.

        Raises:
            UserError: a run without an average is resumed with one.
        """
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if "current_model_state" not in checkpoint:
            raise UserError(
                "the checkpoint has no averaged weights",
                where=str(trainer.ckpt_path),
                value=f"harness.ema_decay={self.decay}",
                fix="resume with harness.ema_decay=null, or begin a new run with init_from=",
            )
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
