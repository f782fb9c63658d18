"""Whether a checkpoint may be gone on from, and what must be counted anew before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xlm.errors import UserError


def require_resumable(checkpoint: Mapping[str, Any], source: str, *, averages: bool) -> None:
    """Refuse a checkpoint that lacks what this run goes on with, or has what this run would drop.

    Args:
        checkpoint: Its content.
        source: Its file, for the message.
        averages: Whether this run averages its weights.

    Raises:
        UserError: the checkpoint holds weights only, or averaged weights that this run does not go on averaging.
    """
    fix = "begin a new run with init_from= instead of resume="
    if "optimizer_states" not in checkpoint:
        raise UserError("the checkpoint holds weights only", where=source, fix=fix)
    if "current_model_state" in checkpoint and not averages:
        what = f"the weights in {source} were averaged; this run does not"
        raise UserError(what, where="harness.ema_decay", fix=f"resume with the run's own ema_decay, or {fix}")


def recount(checkpoint: Mapping[str, Any], accumulate: int) -> None:
    """Lightning counts micro-batches; a resumed run may cut its global batches into another number of them."""
    before = checkpoint["xlm"]["accumulate"]
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        change = counts["ready"] // before * accumulate - counts["ready"]
        counts.update({name: count + change for name, count in counts.items()})
