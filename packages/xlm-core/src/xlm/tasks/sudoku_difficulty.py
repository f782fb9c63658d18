"""How hard a Sudoku is: which rules fill every cell without a guess."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int

DIFFICULTIES = ("easy", "medium", "hard")
"""easy: naked singles alone, cells in which a single digit is left, lead to the solution. medium: hidden singles are
needed too, digits for which a single cell of a row, column or box is left. hard: even then some cells stay empty, and a
solver must search, or know rules beyond these two."""


def difficulties(
    grids: Int[np.ndarray, "rows cells"], units: Int[np.ndarray, "cells three"]
) -> Int[np.ndarray, " rows"]:
    """Index in ``DIFFICULTIES`` of each of some puzzles with one solution.

    Args:
        grids: Digits from 1; 0 for an empty cell.
        units: Numbers of the row, column and box of each cell, among all units.
    """
    holds = (units[:, :, None] == np.arange(units.max() + 1)).any(1).astype(np.float32)
    by_naked, by_both = (_solved(grids, holds, hidden=hidden) for hidden in (False, True))
    found: Int[np.ndarray, " rows"] = 2 - by_naked.astype(np.int64) - by_both
    return found


def _solved(
    grids: Int[np.ndarray, "rows cells"], holds: Float32[np.ndarray, "cells units"], *, hidden: bool
) -> Bool[np.ndarray, " rows"]:
    """Whether singles fill all cells, found for all puzzles at once, one round of singles after the other."""
    size = holds.shape[1] // 3
    placed = (grids.T[:, :, None] == np.arange(1, size + 1)).astype(np.float32)  # cell, puzzle, digit
    solved, open_ = np.zeros(len(grids), dtype=bool), np.arange(len(grids))
    while len(open_):
        new = _singles(placed, holds, hidden=hidden)
        going = new.any((0, 2))
        solved[open_[~going]] = placed[:, ~going].any(2).all(0)
        placed, open_ = (placed + new)[:, going], open_[going]
    return solved


def _singles(
    placed: Float32[np.ndarray, "cells rows digits"], holds: Float32[np.ndarray, "cells units"], *, hidden: bool
) -> Bool[np.ndarray, "cells rows digits"]:
    """The digits that these rules place next: 1 or 0 in ``placed``."""

    def counts(found: Any) -> Any:
        """How many cells of each unit have each digit of each puzzle."""
        return holds.T @ found.reshape(len(holds), -1).astype(np.float32)

    def of_units(found: Any) -> Any:
        """For each cell, whether it holds for its row, column or box."""
        return (holds @ found.astype(np.float32) > 0).reshape(placed.shape)

    left = ~of_units(counts(placed) > 0) & ~placed.any(2, keepdims=True)
    new: Bool[np.ndarray, "cells rows digits"] = left & (left.sum(2, keepdims=True) == 1)
    return new | (left & of_units(counts(left) == 1)) if hidden else new
