"""What the processes of a run tell each other. With one process these are identities."""

from __future__ import annotations

from typing import TypeVar, cast

from torch import distributed

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """The value of every rank, in order, on every rank."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return cast("list[T]", values)
