"""Checkpoints every n steps, and when the run is told to stop; at step boundaries, so that resuming is exact."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from filelock import FileLock
from lightning.pytorch.callbacks import Checkpoint

from xlm.callbacks import slurm
from xlm.callbacks.metrics_file import MetricsFile
from xlm.checkpoint import checkpoints
from xlm.errors import UserError
from xlm.files import DiskError, lock, remove_leftovers, require_space
from xlm.harness import harness_of
from xlm.ranks import gather

QUEUED_AGAIN = 0
COPIES = 4
"""Weights, their average and AdamW's two moments: the size of a checkpoint in models, from above."""


class Saver(Checkpoint):
    """Saves ``<step>.ckpt`` and lets no other run write into the folder.

    SIGTERM, or SIGINT once, ends the run after the step or validation batch in flight, with a checkpoint, and exit code
    143 or 130. SIGINT twice ends it at once. Under SLURM, SIGUSR1 does so too, queues the job again and exits with 0.
    (A ``Checkpoint`` by descent: Lightning then calls it after the others, when the average is up to date.)

    Args:
        folder: Where checkpoints go.
        every: Optimizer steps between checkpoints; the last step is always saved.
        keep: Newest checkpoints that stay.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int = 1000, keep: int = 2) -> None:
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise UserError("must be at least 1", where=f"callbacks.saver.{name}", value=value, fix="use 1 or more")
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.exit_code: int | None = None
        """Set by a signal on this rank."""
        self._lock: FileLock | None = None
        self._saved = -1
        self._pending = False
        self._leaving = False
        self._validation_owed = False

    # A run begins and ends

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the folder before anything is done; every rank learns when that fails."""
        if stage != "fit":
            return
        problem = None
        if trainer.is_global_zero:
            try:
                self._take_folder(pl_module)
            except UserError as error:
                problem = (error.what, error.where, error.fix)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            what, where, fix = problem
            raise UserError(what, where=where, value=self.folder, fix=fix)

    def _take_folder(self, pl_module: pl.LightningModule) -> None:
        self._lock = lock(self.folder)
        remove_leftovers(self.folder)
        model = sum(parameter.nbytes for parameter in pl_module.parameters())
        try:
            require_space(self.folder / "checkpoint", (self.keep + 1) * COPIES * model)
        except DiskError as error:
            raise UserError(str(error), where="run_dir", fix="free space, or choose another run_dir") from None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the folder back."""
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare ranks, forget log rows of lost steps, and listen to signals in place of Lightning."""
        if trainer.strategy.broadcast(trainer.global_step) != trainer.global_step:
            raise RuntimeError(f"rank {trainer.global_rank} resumed from another step than rank 0")
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.rewind(trainer.global_step)
        self._saved, self._pending, self._leaving, self._validation_owed = trainer.global_step, False, False, False
        self.exit_code = None
        if trainer.received_sigterm:
            self._ask_to_stop(trainer, 128 + signal.SIGTERM)
        self._listen(trainer)

    def _listen(self, trainer: pl.Trainer) -> None:
        """Replace Lightning's handler, which broadcasts inside the handler and hangs with two processes.

        Its broadcast before each batch, which waits for the device, is not needed then either. Lightning puts the old
        handlers back at the end.
        """
        setattr(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", lambda: None)  # noqa: B010, it is a method
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._ask_to_stop(trainer, 128 + signal.SIGTERM))
            signal.signal(signal.SIGINT, lambda *_: self._interrupt(trainer))
            if slurm.job():
                signal.signal(signal.SIGUSR1, lambda *_: self._ask_to_stop(trainer, QUEUED_AGAIN))

    def _interrupt(self, trainer: pl.Trainer) -> None:
        if self.exit_code is not None:
            raise SystemExit(128 + signal.SIGINT)
        self._ask_to_stop(trainer, 128 + signal.SIGINT)

    def _ask_to_stop(self, trainer: pl.Trainer, exit_code: int) -> None:
        self.exit_code = exit_code
        harness_of(trainer).stop_requested = True

    # Steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when due: here, or after the validation that follows (a resume would skip it)."""
        step, harness = trainer.global_step, harness_of(trainer)
        if step == self._saved or not harness.between_steps:
            return
        validates = _validation_follows(trainer, batch_idx)
        if harness.stop_agreed if trainer.world_size > 1 else self.exit_code is not None:
            self._leave(trainer, validation_owed=validates)
        self._pending = step % self.every == 0 or step == trainer.max_steps
        if self._pending and not validates:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """One process need not finish a validation; several would have to agree, which their loaders do not allow."""
        if self.exit_code is not None and trainer.world_size == 1 and trainer.state.fn == "fit":
            self._leave(trainer, validation_owed=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was due before the validation; and when it decided that the run is over."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self._pending or trainer.should_stop:
            self._save(trainer)

    def _leave(self, trainer: pl.Trainer, *, validation_owed: bool) -> None:
        """All ranks come here in the same step; those that got no signal learn the exit code of those that did."""
        self._leaving, self._validation_owed = True, validation_owed
        raise SystemExit(min(code for code in gather(self.exit_code) if code is not None))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save a run that leaves by its own will; others failed inside a step, and keep the checkpoint before it."""
        if self._leaving and isinstance(exception, SystemExit):
            self._save(trainer)
            if exception.code == QUEUED_AGAIN and trainer.is_global_zero and not slurm.requeue():
                exception.code = 128 + signal.SIGTERM
        self._release()

    def _save(self, trainer: pl.Trainer) -> None:
        self._pending = False
        if trainer.global_step == self._saved:
            return
        self._saved = trainer.global_step
        harness_of(trainer).log_step()
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:09d}.ckpt", weights_only=False)
        for logger in trainer.loggers:
            logger.save()
        if trainer.is_global_zero:
            self._remove_old(trainer)

    def _remove_old(self, trainer: pl.Trainer) -> None:
        complete = [path for path in checkpoints(self.folder) if path.with_suffix(".json").exists()]
        for path in complete[self.keep :]:
            trainer.strategy.checkpoint_io.remove_checkpoint(path)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Have a resumed run begin with the validation that this one does not finish."""
        if self._validation_owed:
            checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"] = _begun(
                checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            )


def _validation_follows(trainer: pl.Trainer, batch_idx: int) -> bool:
    if not trainer.enable_validation or sum(trainer.num_val_batches) == 0:
        return False
    every = trainer.val_check_batch
    return trainer.global_step == trainer.max_steps or bool(every and (batch_idx + 1) % every == 0)


def _begun(progress: dict[str, Any]) -> dict[str, Any]:
    """The counters of a validation in its first batch: Lightning restarts such a one from its beginning."""
    done = progress["total"]["completed"]
    return {
        "total": {"ready": done + 1, "started": done + 1, "processed": done, "completed": done},
        "current": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
        "is_last_batch": False,
    }
