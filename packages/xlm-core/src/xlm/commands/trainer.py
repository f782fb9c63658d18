"""The run's machinery: steps, devices, precision; what Lightning's trainer is told."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xlm.errors import UserError

if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback, Trainer

    from xlm.harness import Harness

logger = logging.getLogger(__name__)

NOT_FOR_USERS = (".*LeafSpec.*is deprecated", ".*is smaller than the logging interval", ".*does not have many workers")
"""Warnings of Lightning about what we decided, or what only it can mend."""


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Keys under ``trainer``. Steps are optimizer steps, whatever the accumulation.

    Args:
        max_steps: Optimizer steps of the run.
        max_epochs: Passes over the training data; where given, decides instead of ``max_steps``.
        val_check_interval: Steps between validations; None validates at the end only.
        log_every_n_steps: Steps between rows of training metrics.
        precision: As Lightning names it; ``auto`` is bf16-mixed where that is faster, see ``xlm.precision``.
        accelerator: As Lightning names it.
        devices: How many, or which.
        num_nodes: Machines.
        limit_val_batches: Batches of each validation set; a fraction, or a number; None is all.
        limit_test_batches: Likewise of each test set.
        deterministic: Refuse operations that are not reproducible.
        detect_anomaly: Find the operation that made a NaN; slow.
        enable_progress_bar: Show progress.
        on_save_error: What to do when the disk refuses a checkpoint: stop, or warn and go on until the next.
    """

    max_steps: int | None = 10000
    max_epochs: float | None = None
    val_check_interval: int | None = 1000
    log_every_n_steps: int = 50
    precision: str = "auto"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int | list[int] | Literal["auto"] = 1
    num_nodes: int = 1
    limit_val_batches: int | float | None = None
    limit_test_batches: int | float | None = None
    deterministic: bool = False
    detect_anomaly: bool = False
    enable_progress_bar: bool = True
    on_save_error: Literal["stop", "warn"] = "stop"

    def __post_init__(self) -> None:
        for name in ("max_steps", "max_epochs", "val_check_interval", "log_every_n_steps", "num_nodes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError("must be greater than 0", where=f"trainer.{name}", value=value, fix="give 1 or more")
        if self.max_steps is None and self.max_epochs is None:
            raise UserError("missing: trainer.max_steps", fix="add trainer.max_steps=... or trainer.max_epochs=...")
        _check_precision(self.precision)
        if self.devices == 0 or (isinstance(self.devices, int) and self.devices < -1):
            raise UserError("no device", where="trainer.devices", value=self.devices, fix="give 1 or more, or auto")
        for name in ("limit_val_batches", "limit_test_batches"):
            limit = getattr(self, name)
            if limit is not None and (limit < 0 or (isinstance(limit, float) and limit > 1)):
                fix = "give a fraction in [0, 1], a whole number of batches, or null"
                raise UserError("no share of the batches", where=f"trainer.{name}", value=limit, fix=fix)

    def steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run.

        Args:
            steps_per_epoch: Optimizer steps in one pass over the training data.
        """
        if self.max_epochs is not None:
            return max(1, round(self.max_epochs * steps_per_epoch))
        assert self.max_steps is not None
        return self.max_steps

    def several_processes(self) -> bool:
        """Whether the run has more than one process."""
        import torch

        devices = len(self.devices) if isinstance(self.devices, list) else self.devices
        if devices in ("auto", -1):
            devices = torch.cuda.device_count() if device(self.accelerator).type == "cuda" else 1
        return self.num_nodes > 1 or devices != 1

    def build(self, *, steps: int, strategy: Any, d_model: int | None = None, **more: Any) -> Trainer:
        """Lightning's trainer for a run of ``steps``; one accumulation step until the data says otherwise.

        Args:
            steps: Optimizer steps.
            strategy: As Lightning takes it; None is its choice for one process, ``ddp`` for several.
            d_model: Width of the network, which ``precision=auto`` asks for.
            more: Further arguments of the trainer.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch import Trainer

        from xlm.checkpoint import AtomicCheckpointIO
        from xlm.precision import resolve_precision

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no advertisements
        for noise in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", noise)

        kind = device(self.accelerator).type
        precision, reason = resolve_precision(self.precision, device=kind, d_model=d_model)
        logger.info("precision %s: %s", precision, reason)
        try:
            return Trainer(
                max_steps=steps,
                max_epochs=-1,
                log_every_n_steps=self.log_every_n_steps,
                precision=precision,  # type: ignore[arg-type]  # one of its names
                accelerator=self.accelerator,
                devices=self.devices,
                num_nodes=self.num_nodes,
                limit_val_batches=self.limit_val_batches,
                limit_test_batches=self.limit_test_batches,
                deterministic=self.deterministic,
                detect_anomaly=self.detect_anomaly,
                enable_progress_bar=False,  # callbacks.progress shows more
                enable_model_summary=False,
                strategy=(ddp() if self.several_processes() else "auto") if strategy is None else strategy,
                use_distributed_sampler=False,  # the data module splits the global order itself
                num_sanity_val_steps=0,
                plugins=[AtomicCheckpointIO(self.on_save_error)],
                **more,
            )
        except (MisconfigurationException, TypeError) as error:
            raise UserError(str(error), where="trainer", fix="correct trainer.devices, or what it names") from error


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """Keys under ``harness``.

    Args:
        clip_norm: Greatest norm of the gradient; None does not clip.
        ema_decay: Weight of the past in the average of the weights that is evaluated; None averages nothing.
        likelihood_draws: Monte-Carlo draws a sequence in a test's likelihood.
        log_samples: Predictions of each data set that are shown.
    """

    clip_norm: float | None = 1.0
    ema_decay: float | None = None
    likelihood_draws: int = 1
    log_samples: int = 2

    def build(self, **parts: Any) -> Harness:
        """The harness around ``parts``."""
        from xlm.harness import Harness

        return Harness(
            clip_norm=self.clip_norm, likelihood_draws=self.likelihood_draws, log_samples=self.log_samples, **parts
        )

    def averaging(self) -> list[Callback]:
        """The callback that averages the weights, where that is asked for."""
        from xlm.callbacks import EMA

        return [] if self.ema_decay is None else [EMA(self.ema_decay)]


def _check_precision(precision: str) -> None:
    from xlm.precision import resolve_precision

    resolve_precision(precision, device="cpu")


def device(accelerator: str) -> torch.device:
    """The device that an accelerator's name stands for."""
    import torch

    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    chosen = gpu if accelerator in ("auto", "gpu") else accelerator
    if accelerator in ("gpu", "cuda", "mps") and (gpu == "cpu" or chosen != gpu):
        raise UserError("there is none", where="trainer.accelerator", value=accelerator, fix="use auto or cpu")
    return torch.device(chosen)


def ddp(*, timeout_s: float = 300.0, find_unused_parameters: bool = False) -> Any:
    """Distributed data parallel. Buffers are constants: ranks with unequal numbers of evaluation batches never meet.

    Args:
        timeout_s: Seconds after which a collective that a rank does not join ends the run.
        find_unused_parameters: Allow parameters that a step does not use; slower.
    """
    from datetime import timedelta

    from lightning.pytorch.strategies import DDPStrategy

    if timeout_s <= 0:
        raise UserError("must be greater than 0", where="strategy.timeout_s", value=timeout_s, fix="use 300")
    return DDPStrategy(
        timeout=timedelta(seconds=timeout_s), find_unused_parameters=find_unused_parameters, broadcast_buffers=False
    )
