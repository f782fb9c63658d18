"""What generated tasks share: disjoint splits without a list, and different problems within one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Bool, Int, UInt64

from xlm.errors import UserError

SPLITS = ("train", "val", "test")
_TENTHS = {"train": range(2, 10), "val": range(1, 2), "test": range(1)}


def in_split(codes: Int[np.ndarray, "rows numbers"], split: str) -> Bool[np.ndarray, " rows"]:
    """Whether each row belongs to ``split``: eight tenths of all possible rows do to train, one to val, one to test.

    The assignment knows no seed, so a training set of one seed never meets a test set of another.

    Args:
        codes: The non-negative numbers that identify a problem; equal rows always fall into one split.
        split: train, val or test.
    """
    tenth = hash_rows(codes) % np.uint64(10)
    mine: Bool[np.ndarray, " rows"] = np.isin(tenth, np.array(_TENTHS[split], dtype=np.uint64))
    return mine


def hash_rows(codes: Int[np.ndarray, "rows numbers"]) -> UInt64[np.ndarray, " rows"]:
    """A 64-bit hash of each row, the same in every process.

    SplitMix64's finaliser (Steele, Lea and Flood, 2014) folded over the numbers; unsigned arithmetic wraps.
    """
    state = np.zeros(len(codes), dtype=np.uint64)
    for column in codes.astype(np.uint64).T:
        state = (state + column + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def distinct(draw: Callable[[], Iterable[tuple[str, str]]], n: int, *, widen: str) -> list[tuple[str, str]]:
    """The first ``n`` different problems, with their answers, of repeated draws; fewer are the beginning of more.

    Args:
        draw: Gives some problems of the split, each with its answer; called until there are enough.
        n: How many.
        widen: The key that makes more problems possible, for the message when a draw brings nothing new.
    """
    problems: dict[str, str] = {}
    while len(problems) < n:
        known = len(problems)
        problems.update(draw())
        if len(problems) == known:
            what = f"only {known} different examples were found in this split"
            raise UserError(what, where="source.n", value=n, fix=f"ask for fewer, or change {widen} so that more exist")
    return list(problems.items())[:n]


def check_source(*, split: str, n: int, seed: int) -> None:
    """Refuse what no generated data set can be."""
    if split not in SPLITS:
        raise UserError("is no split", where="source.split", value=split, fix=f"use one of {', '.join(SPLITS)}")
    if n < 1:
        raise UserError("must be at least 1", where="source.n", value=n, fix="ask for some examples")
    if seed < 0:
        raise UserError("must not be negative", where="source.seed", value=seed, fix="use 0 or more")
