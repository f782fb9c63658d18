from __future__ import annotations

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.sudoku import Sudoku, solutions
from xlm.tasks.sudoku_difficulty import DIFFICULTIES, difficulties

CLUES = {"easy": (34, 42), "medium": (27, 33), "hard": (26, 28)}


def peers(cell: int, size: int, height: int, width: int) -> list[set[int]]:
    """Row, column and box of a cell, by their definition."""
    row, column = divmod(cell, size)
    top, left = row - row % height, column - column % width
    return [
        {row * size + c for c in range(size)},
        {r * size + column for r in range(size)},
        {r * size + c for r in range(top, top + height) for c in range(left, left + width)},
    ]


def after_singles(puzzle: str, *, hidden: bool, box: tuple[int, int] = (3, 3)) -> str:
    """The puzzle after as many single digits as can be placed, one at a time."""
    cells, size = list(puzzle), round(len(puzzle) ** 0.5)

    def candidates(cell: int) -> set[str]:
        if cells[cell] != ".":
            return set()
        return set("123456789"[:size]) - {cells[c] for unit in peers(cell, size, *box) for c in unit}

    def single() -> tuple[int, str] | None:
        for cell in range(len(cells)):
            found = candidates(cell)
            for digit in found:
                only = hidden and any(
                    all(digit not in candidates(c) for c in unit - {cell}) for unit in peers(cell, size, *box)
                )
                if len(found) == 1 or only:
                    return cell, digit
        return None

    while place := single():
        cells[place[0]] = place[1]
    return "".join(cells)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_singles_get_as_far_as_the_difficulty_says_and_the_solution_is_unique(difficulty):
    rows = Sudoku(split="train", n=5, difficulty=difficulty, clues=CLUES[difficulty]).rows()
    for row in rows:
        naked, both = (after_singles(row["prompt"], hidden=hidden) for hidden in (False, True))
        assert ("." not in naked) == (difficulty == "easy")
        assert ("." not in both) == (difficulty != "hard")
        assert solutions(row["prompt"], limit=2) == [row["target"]]
        assert CLUES[difficulty][0] <= 81 - row["prompt"].count(".") <= CLUES[difficulty][1]


def test_grades_of_6x6_are_those_of_one_single_after_the_other():
    rows = Sudoku(split="val", n=40, size=6, clues=(10, 14)).rows()
    grids = np.array([[0 if cell == "." else int(cell) for cell in row["prompt"]] for row in rows])
    units = np.array([[c // 6, 6 + c % 6, 12 + c // 12 * 2 + c % 6 // 3] for c in range(36)])
    expected = [
        sum("." in after_singles(row["prompt"], hidden=hidden, box=(2, 3)) for hidden in (False, True)) for row in rows
    ]
    assert difficulties(grids, units).tolist() == expected
    assert set(expected) >= {0, 1}


def test_a_difficulty_that_is_none_or_that_no_puzzle_of_so_many_clues_has_is_refused():
    with pytest.raises(UserError, match=r"source\.difficulty \(tricky\); fix: use one of easy, medium, hard"):
        Sudoku(split="train", difficulty="tricky")
    with pytest.raises(UserError, match=r"only 0 .*source\.clues or source\.difficulty"):
        Sudoku(split="train", n=5, difficulty="hard", clues=(60, 60)).rows()
