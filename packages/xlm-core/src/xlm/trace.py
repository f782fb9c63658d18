"""What a sampler did, step by step: recorded as tensors while it runs, read as events, replayed into states.

An event says ``step``, ``action``, ``position``, ``token`` and ``probability``. Positions count a row's tokens from its
first one, BOS and prompt included, padding not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Action = Literal["reveal", "append", "insert", "remask"]
"""``reveal`` and ``remask`` replace a token (by the mask token in the latter), ``append`` and ``insert`` add one."""

ADDS: tuple[Action, ...] = ("append", "insert")


class Trace:
    """Collects events of a batch. Nothing leaves the device before ``events`` is called."""

    def __init__(self) -> None:
        self._records: list[tuple[int, Action, Tensor]] = []

    def record(
        self,
        step: int,
        action: Action,
        rows: Int[Tensor, " events"],
        positions: Int[Tensor, " events"],
        tokens: Int[Tensor, " events"],
        probabilities: Float[Tensor, " events"],
    ) -> None:
        """Note that one action happened at some places in one step.

        Args:
            step: Number of the sampler's step, from 0, never decreasing.
            action: What happened.
            rows: Rows of the batch.
            positions: Where in the row: its index at the moment of the action, earlier events of the step included.
            tokens: The token that stands there afterwards.
            probabilities: What the sampler gave that token; for ``remask`` the probability of being hidden again.
        """
        columns = (column.to(torch.float64) for column in (rows, positions, tokens, probabilities))
        self._records.append((step, action, torch.stack(tuple(columns))))

    def events(self) -> list[dict[str, Any]]:
        """``{"step", "row", "action", "position", "token", "probability"}`` in the order in which they happened."""
        return [
            {
                "step": step,
                "row": int(row),
                "action": action,
                "position": int(position),
                "token": int(token),
                "probability": probability,
            }
            for step, action, columns in self._records
            for row, position, token, probability in columns.T.tolist()
        ]


def by_row(events: Iterable[dict[str, Any]], n_rows: int) -> list[list[dict[str, Any]]]:
    """The events of each row of the batch, without its number there: another batch is another number."""
    rows: list[list[dict[str, Any]]] = [[] for _ in range(n_rows)]
    for event in events:
        rows[event["row"]].append({key: value for key, value in event.items() if key != "row"})
    return rows


def replay(events: Iterable[dict[str, Any]], start_ids: Sequence[int]) -> Iterator[list[int]]:
    """The states of one row: ``start_ids``, then what stands there after each step in which something happened."""
    state = list(start_ids)
    yield list(state)
    for _, step in groupby(events, key=lambda event: event["step"]):
        for event in step:
            _apply(event, state)
        yield list(state)


def _apply(event: dict[str, Any], state: list[int]) -> None:
    if event["action"] in ADDS:
        state.insert(event["position"], event["token"])
    else:
        state[event["position"]] = event["token"]
