"""The order in which a run reads its training examples: a function of the position, never a state.

Positions 0, 1, 2, ... go on for ever; position n is example ``permutation(seed, n // size)[n % size]``. Global batch s
takes positions [s G, (s + 1) G), across the borders of epochs, so every batch is full and nothing is dropped or padded.
A run's place in it is one integer, the samples seen: workers, ranks, accumulation and resuming change nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xlm.errors import UserError
from xlm.noise import Stream, noise_keys, permutation
from xlm.protocols import Example

Fetch = Callable[[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[Tensor, " n"]], list[Example]]
"""Examples of some data-set indices, given their positions and noise keys."""


class Plan(NamedTuple):
    """What decides the order; a checkpoint is of one plan."""

    size: int
    global_batch_size: int
    seed: int

    def indices(self, positions: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The example at each position."""
        epochs, places = np.divmod(positions, self.size)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            found[here] = _permutation(self.seed, int(epoch), self.size)[places[here]]
        return found


_permutation = lru_cache(maxsize=2)(permutation)  # an epoch and the next


class Place(NamedTuple):
    """Which part of each global batch is mine: rank ``rank`` of ``world``, in ``accumulate`` micro-batches."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1


class Places(NamedTuple):
    """One micro-batch before it is read."""

    positions: Int64[np.ndarray, " n"]
    indices: Int64[np.ndarray, " n"]


def micro_batches(plan: Plan, place: Place, seen: int) -> Iterator[Places]:
    """My micro-batches, for ever, from the global batch that begins at position ``seen``."""
    parts = place.world * place.accumulate
    size = plan.global_batch_size // parts
    for start in count(seen, plan.global_batch_size):
        for part in range(place.rank, parts, place.world):
            positions = np.arange(start + part * size, start + (part + 1) * size)
            yield Places(positions, plan.indices(positions))


class TrainLoader:
    """A plain ``DataLoader`` over the global order, and the samples that were handed out.

    ``iter`` is lazy: workers start at the first ``next``, from what has been seen by then.

    Args:
        fetch: Reads examples.
        plan: The order.
        place: My part of it.
        steps: Optimizer steps of the whole run; to Lightning the run is one epoch.
        collate: Makes a batch of examples.
        options: For ``DataLoader``.
    """

    def __init__(
        self,
        fetch: Fetch,
        plan: Plan,
        place: Place,
        steps: int,
        collate: Callable[[list[Example]], Any],
        **options: Any,
    ) -> None:
        self.plan, self.place, self.steps = plan, place, steps
        self.seen = self.micro = 0
        self.inner = make_loader(_Ordered(fetch, plan), collate, batch_sampler=_Batches(self), **options)

    def __len__(self) -> int:
        return self.steps * self.place.accumulate

    def __iter__(self) -> Iterator[Any]:
        for batch in self.inner:
            self.micro = (self.micro + 1) % self.place.accumulate
            if self.micro == 0:
                self.seen += self.plan.global_batch_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The samples seen, and of which plan."""
        if self.micro:
            raise RuntimeError(
                "a checkpoint was asked for inside an accumulation window; save after the optimizer step"
            )
        return {"seen": self.seen, **self.plan._asdict()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            UserError: it is of another plan.
        """
        keys = {"size": "datamodule", "global_batch_size": "datamodule.global_batch_size", "seed": "seed"}
        for name, now in self.plan._asdict().items():
            if state[name] != now:
                what = f"the checkpoint's training data had {name} {state[name]}, now it is {now}"
                fix = "resume with the configuration of the run, or take its weights only: init_from"
                raise UserError(what, where=keys[name], value=now, fix=fix)
        self.seen, self.micro = state["seen"], 0


class Sequential(Dataset[Example]):
    """This rank's examples of an evaluation: ``rank``, ``rank + world``, ...; each example on exactly one rank."""

    def __init__(self, fetch: Fetch, size: int, seed: int, *, rank: int = 0, world: int = 1) -> None:
        self.fetch, self.seed, self.mine = fetch, seed, range(rank, size, world)

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, item: int) -> Example:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: list[int]) -> list[Example]:
        indices = np.array([self.mine[item] for item in items], dtype=np.int64)
        return self.fetch(indices, indices, noise_keys(self.seed, Stream.EVAL, torch.from_numpy(indices)))


def make_loader(dataset: Dataset[Any], collate: Callable[[list[Example]], Any], **options: Any) -> DataLoader[Any]:
    """A ``DataLoader`` that draws nothing from the global generator, and whose workers outlive a SIGTERM to all."""
    generator = torch.Generator().manual_seed(0)
    return DataLoader(
        dataset, collate_fn=collate, worker_init_fn=_ignore_foreign_sigterm, generator=generator, **options
    )


class _Ordered(Dataset[Example]):
    """Reads micro-batches where they lie in the global order."""

    def __init__(self, fetch: Fetch, plan: Plan) -> None:
        self.fetch, self.plan = fetch, plan

    def __getitems__(self, places: Places) -> list[Example]:
        keys = noise_keys(self.plan.seed, Stream.TRAIN, torch.from_numpy(places.positions))
        return self.fetch(places.indices, places.positions, keys)


class _Batches:
    """The batch sampler of a loader: what is left of the run when the loader is asked."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Places]:
        plan, place, seen = self.loader.plan, self.loader.place, self.loader.seen
        left = (self.loader.steps - seen // plan.global_batch_size) * place.accumulate
        return islice(micro_batches(plan, place, seen), max(left, 0))


def _ignore_foreign_sigterm(worker: int) -> None:
    """End this worker on SIGTERM from the main process alone: one sent to the whole group is for that to act on.

    The handler that torch installs lets any other SIGTERM kill the worker; then the main process fails before it saves.
    """
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_the_parents_sigterm, daemon=True).start()


def _await_the_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
