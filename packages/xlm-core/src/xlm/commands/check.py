"""``xlm check``: what a configuration means, before it costs anything: one batch, decoded, and one step."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from xlm.commands.train import KEYS
from xlm.errors import UserError

if TYPE_CHECKING:
    from xlm.commands.assemble import Parts

__all__ = ["KEYS", "TOP_LEVEL", "run"]

TOP_LEVEL = ("resume", "seed", "trusted_packages")
ABOUT = """
Takes what `xlm train` takes. Prints the keys, shapes and types of a training batch and of a batch of every other role
that is evaluated, their rows as text with what is to be predicted in brackets, and loss, gradient norm and seconds of
one optimizer step. Writes nothing but the caches of the data; no run directory is made.

  xlm check model_type=FAMILY datamodule=TASK
  xlm check resume=RUN
"""

ROWS = 4
"""Examples in the batches that are shown."""

OPEN, CLOSE = "⟦", "⟧"
"""Round what is to be predicted."""


def run(words: Sequence[str]) -> int:
    """Compose, check, decode a batch, take a step."""
    from xlm.commands.assemble import assemble, build_harness
    from xlm.commands.tables import show_table
    from xlm.commands.train import prepare
    from xlm.commands.trainer import device

    config = prepare(words)
    parts = assemble(config)
    batch = _first_batch(parts)
    for name, found in {"training": batch, **_other_roles(parts)}.items():
        print(name)
        show_table("one batch", ["key", "shape", "type"], [[key, *_shape(value)] for key, value in found.items()])
        show_table(f"its rows, {OPEN}predicted{CLOSE}", ["row", "key", "tokens"], _decoded(found, parts.tokenizer))
    harness = build_harness(config, parts).to(device(config.trainer.accelerator))
    show_table("one step", ["", ""], _step(harness, batch))
    return 0


def _first_batch(parts: Parts) -> Mapping[str, Any]:
    """The first examples of the global order."""
    from xlm.data.order import Place

    data = parts.datamodule
    if not data.managers("train"):
        fix = "choose a datamodule that has a data set to train on"
        raise UserError("there is no training data", where="datamodule.dataset_managers.train", fix=fix)
    data.global_batch_size = min(data.global_batch_size, ROWS)
    data.device_batch_size, data.num_workers = None, 0
    batch: Mapping[str, Any] = next(iter(data.train_loader(Place(0, 1, 1), steps=1)))
    return batch


def _other_roles(parts: Parts) -> dict[str, Mapping[str, Any]]:
    """The first batch of a data set of each role that is not trained on, by a title."""
    data, seen = parts.datamodule, {manager.role for manager in parts.datamodule.managers("train")}
    found: dict[str, Mapping[str, Any]] = {}
    for split, loaders in (("val", data.val_dataloader), ("test", data.test_dataloader)):
        for manager, loader in zip(data.managers(split), loaders(), strict=True):
            if manager.role not in seen:
                seen.add(manager.role)
                found[f"{manager.full_name}, role {manager.role}"] = next(iter(loader))
    return found


def _shape(value: Any) -> tuple[str, str]:
    return (str(list(value.shape)), str(value.dtype)) if hasattr(value, "shape") else ("", type(value).__name__)


def _decoded(batch: Mapping[str, Any], tokenizer: Any) -> list[list[Any]]:
    ids = {key: value for key, value in batch.items() if key.endswith("_ids") and getattr(value, "ndim", 0) == 2}
    n_rows = min(ROWS, max((len(value) for value in ids.values()), default=0))
    nothing = [False] * max((value.shape[1] for value in ids.values()), default=0)
    predicted = {key: batch["predicted"].tolist() for key in ids if key != "input_ids" and _fits(batch, key)}
    return [
        [row, key, _readable(ids[key][row].tolist(), predicted.get(key, [nothing] * n_rows)[row], tokenizer)]
        for row in range(n_rows)
        for key in ids
    ]


def _fits(batch: Mapping[str, Any], key: str) -> bool:
    """Whether the batch says of each of these tokens if it is to be predicted. Of inputs it says nothing."""
    return "predicted" in batch and batch["predicted"].shape == batch[key].shape


def _readable(ids: list[int], predicted: list[bool], tokenizer: Any) -> str:
    """Text with hidden tokens as dots and brackets round what is to be predicted, without padding."""
    from xlm.callbacks.samples import dotted

    kept = [(id_, is_open) for id_, is_open in zip(ids, predicted, strict=False) if id_ != tokenizer.pad_token_id]
    runs = [(is_open, [id_ for id_, _ in run]) for is_open, run in groupby(kept, key=itemgetter(1))]
    texts = [(is_open, dotted(tokenizer.decode(run), tokenizer)) for is_open, run in runs]
    return "".join(f"{OPEN}{text}{CLOSE}" if is_open else text for is_open, text in texts)


def _step(harness: Any, batch: Mapping[str, Any]) -> list[list[Any]]:
    """One optimizer step with the loss, the norm and the time that it takes."""
    from xlm.optim import global_norm
    from xlm.protocols import Configurable

    started = time.perf_counter()
    if isinstance(harness.loss, Configurable):
        harness.loss.configure(harness)
    placed = {key: value.to(harness.device) if hasattr(value, "to") else value for key, value in batch.items()}
    optimizer = harness.build_optimizer()
    losses = harness.loss.loss_fn(placed)
    losses["loss"].backward()
    norm = float(global_norm(harness.parameters()))
    optimizer.step()
    loss = float(losses["loss"].detach())
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RuntimeError(f"the first step is not finite: loss {loss}, gradient norm {norm}; fix: lower optimizer.lr")
    return [
        ["parameters", harness.n_parameters],
        ["loss", loss],
        ["gradient norm", norm],
        ["seconds", time.perf_counter() - started],
        ["device", str(harness.device)],
    ]
