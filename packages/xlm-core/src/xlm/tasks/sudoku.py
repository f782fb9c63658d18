"""Sudoku of 4x4, 6x6 and 9x9 cells: puzzles with exactly one solution, a check of any answer, and a drawing.

Puzzles come in two steps. A few *patterns* are made the slow way: a solved grid loses clues in random order for as long
as the solution stays unique. Each puzzle is then a random symmetric image of a random pattern (digits renamed, rows and
columns exchanged within and between bands, transposed where boxes are square) with random clues added back. Both keep
the solution unique, and both are array operations.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split
from xlm.tasks.sudoku_difficulty import DIFFICULTIES, difficulties

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, for each size of the grid."""

BLANK = "."
"""An empty cell of a puzzle."""

FEWEST_CLUES = {4: 4, 6: 8, 9: 17}
"""No puzzle with fewer clues has a unique solution (9x9: McGuire, Tugemann and Civario, 2012)."""

_DEFAULT_CLUES = {4: (6, 9), 6: (14, 20), 9: (28, 40)}
_PATTERNS, _IMAGES = 32, 4000  # a batch: so many patterns, and so many images of them before the split takes its share


class Sudoku:
    """Puzzles of one split, no two alike, and no solution grid in two splits.

    There are 288 solution grids of 4x4 cells, 28,200,960 of 6x6 and about 6.67e21 of 9x9; a hash of the grid decides
    its split (``xlm.tasks.splits``), whatever the seed. Symmetric images of a training grid do occur in other splits.

    Args:
        split: train, val or test.
        size: Cells in a row: 4, 6 or 9.
        n: Number of puzzles; fewer are the beginning of more.
        clues: Fewest and most clues of a puzzle, each count equally likely; null for the size's default.
        difficulty: easy, medium or hard, puzzles that ``xlm.tasks.sudoku_difficulty`` says are so; null for any.
        any_cell: Give no cell away in ``fixed``: a model that fills in then learns grids from every subset of cells,
            not from these puzzles' clues alone, and solves more of the puzzles that it has not seen.
        seed: Chooses the patterns and the puzzles. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        size: int = 9,
        n: int = 1000,
        clues: Sequence[int] | None = None,
        difficulty: str | None = None,
        any_cell: bool = False,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        if size not in BOXES:
            raise UserError("must be 4, 6 or 9", where="source.size", value=size, fix="use one of these sizes")
        fewest, most = clues if clues is not None else _DEFAULT_CLUES[size]
        if not FEWEST_CLUES[size] <= fewest <= most <= size * size:
            raise UserError(
                f"must be two ordered numbers between {FEWEST_CLUES[size]} and {size * size}",
                where="source.clues",
                value=clues,
                fix=f"for example clues={list(_DEFAULT_CLUES[size])}",
            )
        if difficulty is not None and difficulty not in DIFFICULTIES:
            fix = f"use one of {', '.join(DIFFICULTIES)}, or null"
            raise UserError("is no difficulty", where="source.difficulty", value=difficulty, fix=fix)
        self.split, self.size, self.n, self.clues, self.seed = split, size, n, (fewest, most), seed
        self.difficulty, self.any_cell = difficulty, any_cell

    def for_prediction(self) -> Sudoku:
        """The same puzzles with their clues, whatever ``any_cell`` gives away in training."""
        puzzles = copy.copy(self)
        puzzles.any_cell = False
        return puzzles

    def render(self, text: str) -> str:
        """The grid drawn with its boxes, for people; a text that is no whole grid stays as it is."""
        return render(text) if len(text) == self.size**2 else text

    def rows(self) -> list[dict[str, str]]:
        """One row a puzzle; every string has one character a cell, row by row.

        ``text`` and ``target`` are the solution, ``fixed`` has 1 where a cell is given (``any_cell``: nowhere),
        ``prompt`` is the puzzle with ``.`` where it is not.
        """
        rng = np.random.default_rng([self.seed, self.size, SPLITS.index(self.split)])
        widen = "source.clues" if self.difficulty is None else "source.clues or source.difficulty"
        puzzles = distinct(lambda: self._draw(rng), self.n, widen=widen)
        rows = [_row(puzzle, solution) for puzzle, solution in puzzles]
        return [{**row, "fixed": "0" * self.size**2} for row in rows] if self.any_cell else rows

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Puzzles of this split and their solutions, out of one batch of symmetric images."""
        grids, given = _patterns(rng, self.size, self.clues[0])
        chosen = _below(rng, _PATTERNS, (_IMAGES,))
        grids, given = symmetric_images(rng, grids[chosen], given[chosen])
        grids, given = grids.reshape(_IMAGES, -1), given.reshape(_IMAGES, -1)
        keep = in_split(grids, self.split)
        grids, given = grids[keep], given[keep]
        fewest, most = self.clues
        given = _add_clues(rng, given, fewest + _below(rng, most - fewest + 1, (len(given),)))
        puzzles = np.where(given, grids, 0)
        if self.difficulty is not None:
            keep = difficulties(puzzles, np.array(_units(self.size))) == DIFFICULTIES.index(self.difficulty)
            puzzles, grids = puzzles[keep], grids[keep]
        return zip(_strings(puzzles), _strings(grids), strict=True)


def _patterns(
    rng: np.random.Generator, size: int, n_clues: int
) -> tuple[Int[np.ndarray, "rows size size"], Bool[np.ndarray, "rows size size"]]:
    """Solved grids, and for each ``n_clues`` cells whose digits determine it."""
    puzzles: list[str] = []
    grids: list[str] = []
    failures = 0
    while len(puzzles) < _PATTERNS:
        grid = random_grid(rng, size)
        puzzle = remove_clues(grid, np.argsort(rng.random(size * size)).tolist(), n_clues)
        if len(puzzle) - puzzle.count(BLANK) == n_clues:
            puzzles.append(puzzle)
            grids.append(grid)
        elif (failures := failures + 1) > 20 * (len(puzzles) + 5):
            raise UserError(
                "asks for fewer clues than random removal reaches",
                where="source.clues",
                value=n_clues,
                fix=f"start from more clues, for example {_DEFAULT_CLUES[size][0]}",
            )
    solved = np.array([[int(digit) for digit in grid] for grid in grids])
    given = np.array([[cell != BLANK for cell in puzzle] for puzzle in puzzles])
    return solved.reshape(-1, size, size), given.reshape(-1, size, size)


def random_grid(rng: np.random.Generator, size: int) -> str:
    """A solved grid: the solver's first find with digits tried in random order. Not uniform over all grids."""
    orders = np.argsort(rng.random((size * size, size)), axis=1).tolist()
    return solutions(BLANK * size**2, limit=1, digit_order=orders)[0]


def remove_clues(puzzle: str, order: Sequence[int], n_clues: int) -> str:
    """Blank cells in the given order while the solution stays unique, until ``n_clues`` are left or none can go."""
    left = len(puzzle) - puzzle.count(BLANK)
    for cell in order:
        if left <= n_clues:
            break
        without = puzzle[:cell] + BLANK + puzzle[cell + 1 :]
        if len(solutions(without, limit=2)) == 1:
            puzzle, left = without, left - 1
    return puzzle


def solutions(puzzle: str, *, limit: int, digit_order: Sequence[Sequence[int]] | None = None) -> list[str]:
    """Up to ``limit`` solutions, by depth-first search that always fills a cell with the fewest digits left.

    Args:
        puzzle: One character a cell, ``.`` for an empty one.
        limit: Stop after so many; 2 decides uniqueness.
        digit_order: For each cell the order in which digits (from 0) are tried; None for ascending.
    """
    size = _size(puzzle)
    units = _units(size)
    used = [0] * (3 * size)  # digits seen in each row, column and box, one bit a digit
    for cell, character in enumerate(puzzle):
        if character != BLANK:
            bit = 1 << (int(character) - 1)
            if any(used[unit] & bit for unit in units[cell]):
                return []
            for unit in units[cell]:
                used[unit] |= bit
    empty = [cell for cell, character in enumerate(puzzle) if character == BLANK]
    found: list[str] = []
    _search(list(puzzle), empty, used, units, digit_order or [range(size)] * size**2, found, limit)
    return found


def _search(
    cells: list[str],
    empty: list[int],
    used: list[int],
    units: Sequence[tuple[int, int, int]],
    digit_order: Sequence[Sequence[int]],
    found: list[str],
    limit: int,
) -> None:
    """Append to ``found`` every way of filling ``empty``; leaves ``cells``, ``empty`` and ``used`` as they were."""
    if not empty:
        found.append("".join(cells))
        return
    everything = (1 << len(digit_order[0])) - 1
    fewest, slot, left = 99, 0, 0
    for i, cell in enumerate(empty):
        row, column, box = units[cell]
        candidates = everything & ~(used[row] | used[column] | used[box])
        count = candidates.bit_count()
        if count < fewest:
            fewest, slot, left = count, i, candidates
            if count <= 1:
                break
    if not left:
        return
    cell = empty[slot]
    rest = empty[:slot] + empty[slot + 1 :]
    for digit in digit_order[cell]:
        bit = 1 << digit
        if left & bit:
            for unit in units[cell]:
                used[unit] ^= bit
            cells[cell] = str(digit + 1)
            _search(cells, rest, used, units, digit_order, found, limit)
            for unit in units[cell]:
                used[unit] ^= bit
            if len(found) >= limit:
                return


@cache
def _units(size: int) -> list[tuple[int, int, int]]:
    """For each cell the numbers of its row, column and box among all units."""
    height, width = BOXES[size]
    return [
        (row, size + column, 2 * size + row // height * (size // width) + column // width)
        for row in range(size)
        for column in range(size)
    ]


def symmetric_images(
    rng: np.random.Generator, grids: Int[np.ndarray, "rows size size"], given: Bool[np.ndarray, "rows size size"]
) -> tuple[Int[np.ndarray, "rows size size"], Bool[np.ndarray, "rows size size"]]:
    """Each grid and its given cells under a random symmetry of its own; every symmetry equally likely."""
    n, size, _ = grids.shape
    height, width = BOXES[size]
    each = np.arange(n)[:, None, None]
    rows, columns = _line_order(rng, n, size, height)[:, :, None], _line_order(rng, n, size, width)[:, None, :]
    grids, given = grids[each, rows, columns], given[each, rows, columns]
    names = np.argsort(rng.random((n, size)), axis=1) + 1
    grids = names[each, grids - 1]
    if height == width:
        flip = rng.random((n, 1, 1)) < 0.5
        grids = np.where(flip, grids.swapaxes(1, 2), grids)
        given = np.where(flip, given.swapaxes(1, 2), given)
    return grids, given


def _line_order(rng: np.random.Generator, n: int, size: int, band: int) -> Int[np.ndarray, "n size"]:
    """Random orders of the lines of a grid that keep each band of ``band`` lines together."""
    place = np.argsort(rng.random((n, size // band)), axis=1)
    return np.argsort(np.repeat(place, band, axis=1) + rng.random((n, size)), axis=1)


def _add_clues(
    rng: np.random.Generator, given: Bool[np.ndarray, "rows cells"], n_clues: Int[np.ndarray, " rows"]
) -> Bool[np.ndarray, "rows cells"]:
    """Give further random cells until row i has ``n_clues[i]``."""
    priority: Float[np.ndarray, "rows cells"] = np.where(given, -1.0, rng.random(given.shape))
    rank = np.argsort(np.argsort(priority, axis=1, kind="stable"), axis=1)
    return rank < n_clues[:, None]


def _below(rng: np.random.Generator, bound: int, shape: tuple[int, ...]) -> Int[np.ndarray, "*shape"]:
    """Random integers in [0, bound) from ``random()`` alone, whose stream numpy does not change between versions."""
    return (rng.random(shape) * bound).astype(np.int64)


def _strings(grids: Int[np.ndarray, "rows cells"]) -> list[str]:
    """Grids as text, one character a cell, ``.`` for 0."""
    characters = np.frombuffer((BLANK + "123456789").encode(), dtype=np.uint8)[grids]
    return [row.tobytes().decode() for row in characters]


def _row(puzzle: str, solution: str) -> dict[str, str]:
    fixed = "".join("0" if character == BLANK else "1" for character in puzzle)
    return {"text": solution, "fixed": fixed, "prompt": puzzle, "target": solution}


def _size(text: str) -> int:
    """Cells in a row of a grid given as text."""
    for size in BOXES:
        if len(text) == size * size:
            return size
    lengths = ", ".join(str(size * size) for size in BOXES)
    raise UserError(
        f"a Sudoku has {lengths} cells, one character each, not {len(text)}", value=text, fix="use . for empty cells"
    )


class SudokuCheck:
    """Whether an answer solves its puzzle: every row, column and box holds each digit once, and the clues are kept.

    It looks at the puzzle alone, never at the stored solution.
    """

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction`` as an answer to ``example["prompt"]``; text of another length is wrong."""
        return solves(example["prompt"], prediction)


def solves(puzzle: str, answer: str) -> bool:
    """Whether ``answer`` is a full correct grid that keeps the clues of ``puzzle``."""
    if len(answer) != len(puzzle):
        return False
    size = round(len(puzzle) ** 0.5)
    height, width = BOXES[size]
    rows = [answer[i : i + size] for i in range(0, len(answer), size)]
    columns = ["".join(row[j] for row in rows) for j in range(size)]
    boxes = [
        "".join(row[left : left + width] for row in rows[top : top + height])
        for top in range(0, size, height)
        for left in range(0, size, width)
    ]
    digits = "123456789"[:size]
    complete = all("".join(sorted(unit)) == digits for unit in rows + columns + boxes)
    return complete and all(clue in (BLANK, cell) for clue, cell in zip(puzzle, answer, strict=True))


def render(text: str) -> str:
    """Draw a grid with its boxes; whatever is no digit is shown as an empty cell.

    Examples:
        >>> print(render("12343.12.1434321"))
        +-----+-----+
        | 1 2 | 3 4 |
        | 3 · | 1 2 |
        +-----+-----+
        | · 1 | 4 3 |
        | 4 3 | 2 1 |
        +-----+-----+
    """
    size = _size(text)
    height, width = BOXES[size]
    border = "+" + ("-" * (2 * width + 1) + "+") * (size // width)
    lines = [border]
    for row in range(size):
        cells = [c if c in "123456789" else "·" for c in text[row * size : (row + 1) * size]]
        parts = [" ".join(cells[left : left + width]) for left in range(0, size, width)]
        lines.append("| " + " | ".join(parts) + " |")
        if (row + 1) % height == 0:
            lines.append(border)
    return "\n".join(lines)
