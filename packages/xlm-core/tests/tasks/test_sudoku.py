from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from xlm.errors import UserError
from xlm.tasks.splits import SPLITS
from xlm.tasks.sudoku import Sudoku, SudokuCheck, random_grid, remove_clues, render, solutions, solves, symmetric_images

SOLVED_4 = "1234341221434321"
SOLVED_6 = "123456456123231564564231312645645312"
PUZZLE_9 = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
SOLVED_9 = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def all_grids_4x4() -> list[str]:
    """Every 4x4 grid by trying all rows of permutations: no solver, no bit masks."""
    rows = ["".join(p) for p in itertools.permutations("1234")]
    grids = []
    for four in itertools.product(rows, repeat=4):
        columns = [set(column) for column in zip(*four, strict=True)]
        boxes = [{four[r][c], four[r][c + 1], four[r + 1][c], four[r + 1][c + 1]} for r in (0, 2) for c in (0, 2)]
        if all(len(unit) == 4 for unit in columns + boxes):
            grids.append("".join(four))
    return grids


@pytest.fixture(scope="module")
def grids_4x4():
    return all_grids_4x4()


def brute_force(puzzle: str, grids: list[str]) -> set[str]:
    return {grid for grid in grids if all(p in (".", g) for p, g in zip(puzzle, grid, strict=True))}


def test_solver_finds_exactly_the_288_grids_of_4x4(grids_4x4):
    found = solutions("." * 16, limit=1000)
    assert len(found) == 288
    assert set(found) == set(grids_4x4)


def test_solver_agrees_with_brute_force_on_random_4x4_puzzles(grids_4x4):
    rng = np.random.default_rng(0)
    for _ in range(100):
        given = rng.random(16) < rng.uniform(0.1, 0.6)
        grid = grids_4x4[rng.integers(288)]
        puzzle = "".join(c if g else "." for c, g in zip(grid, given, strict=True))
        assert set(solutions(puzzle, limit=1000)) == brute_force(puzzle, grids_4x4)


def test_solver_solves_a_published_9x9_and_finds_no_second_solution():
    assert solutions(PUZZLE_9, limit=2) == [SOLVED_9]


def test_contradicting_clues_have_no_solution():
    assert solutions("11.." + "." * 12, limit=2) == []
    assert solutions("123." + "...4" + "." * 8, limit=2) == []  # nothing is left for the first row's last cell


def test_solver_leaves_off_at_the_limit():
    assert len(solutions("." * 36, limit=7)) == 7


@pytest.mark.parametrize("size", [4, 6, 9])
def test_random_grids_are_solved_grids(size):
    grid = random_grid(np.random.default_rng(0), size)
    assert solves("." * size * size, grid)


def test_removal_without_a_floor_ends_where_every_clue_is_needed(grids_4x4):
    puzzle = remove_clues(SOLVED_4, range(16), 0)
    assert brute_force(puzzle, grids_4x4) == {SOLVED_4}
    for cell, clue in enumerate(puzzle):
        if clue != ".":
            assert len(brute_force(puzzle[:cell] + "." + puzzle[cell + 1 :], grids_4x4)) > 1


def test_symmetric_images_of_4x4_grids_are_grids_and_reach_all_288():
    given = np.zeros((20_000, 4, 4), dtype=bool)
    first = np.array([int(c) for c in SOLVED_4]).reshape(4, 4)
    second = np.array([int(c) for c in "1234341243212143"]).reshape(4, 4)
    for grid, orbit in ((first, 96), (second, 192)):  # the two classes of 4x4 grids, 96 + 192 = 288
        images, _ = symmetric_images(np.random.default_rng(0), np.tile(grid, (20_000, 1, 1)), given)
        texts = {"".join(map(str, image)) for image in images.reshape(-1, 16)}
        assert all(solves("." * 16, text) for text in texts)
        assert len(texts) in (96, 192, orbit)


@pytest.mark.parametrize(("split", "size"), [("train", 4), ("val", 6), ("test", 9)])
def test_rows_are_uniquely_solvable_puzzles_with_their_solutions(split, size):
    rows = Sudoku(split=split, size=size, n=25).rows()
    assert len(rows) == len({row["prompt"] for row in rows}) == 25
    for row in rows:
        assert solutions(row["prompt"], limit=2) == [row["target"]]


def test_views_of_a_row_agree():
    for row in Sudoku(split="train", size=6, n=50).rows():
        assert row["text"] == row["target"]
        assert row["prompt"] == "".join(c if f == "1" else "." for c, f in zip(row["text"], row["fixed"], strict=True))


def test_clue_counts_cover_the_whole_range_and_nothing_else():
    rows = Sudoku(split="train", size=6, n=500, clues=(13, 16)).rows()
    assert {row["fixed"].count("1") for row in rows} == {13, 14, 15, 16}


def test_no_solution_grid_is_in_two_splits_even_of_different_seeds():
    grids = [
        {row["text"] for row in Sudoku(split=split, size=4, n=3000, seed=seed).rows()}
        for seed, split in enumerate(SPLITS)
    ]
    assert not grids[0] & grids[1]
    assert not grids[0] & grids[2]
    assert not grids[1] & grids[2]
    assert len(set().union(*grids)) == 288  # and together they are all there is


def test_fewer_puzzles_are_the_beginning_of_more():
    assert Sudoku(split="train", size=6, n=4000).rows()[:10] == Sudoku(split="train", size=6, n=10).rows()


def test_seeds_give_different_puzzles():
    assert Sudoku(split="train", size=6, n=5).rows() != Sudoku(split="train", size=6, n=5, seed=1).rows()


def test_rows_do_not_depend_on_the_process_or_its_hash_seed():
    program = "from xlm.tasks.sudoku import Sudoku; print(Sudoku(split='val', size=6, n=20).rows())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{Sudoku(split='val', size=6, n=20).rows()}\n"}


def test_twenty_thousand_6x6_puzzles_take_less_than_20_seconds():
    started = time.process_time()
    assert len(Sudoku(split="train", size=6, n=20_000).rows()) == 20_000
    assert time.process_time() - started < 20


def test_asking_for_more_puzzles_than_exist_says_how_many_there_are():
    with pytest.raises(UserError, match=r"only \d+ different examples"):
        Sudoku(split="test", size=4, n=1000, clues=(16, 16)).rows()


@pytest.mark.parametrize(
    ("wrong", "key"), [({"size": 5}, "size"), ({"clues": (3, 9)}, "clues"), ({"clues": (9, 6)}, "clues")]
)
def test_impossible_puzzles_are_refused_by_key(wrong, key):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        Sudoku(**{"split": "train", "size": 4, **wrong})


def test_too_few_clues_for_random_removal_is_an_error_not_an_endless_loop():
    with pytest.raises(UserError, match=r"source\.clues \(8\)"):
        Sudoku(split="train", size=6, n=1, clues=(8, 8)).rows()


@pytest.mark.parametrize(("puzzle", "solved"), [("." * 16, SOLVED_4), ("." * 36, SOLVED_6), (PUZZLE_9, SOLVED_9)])
def test_check_accepts_right_answers(puzzle, solved):
    assert SudokuCheck()({"prompt": puzzle}, solved)


def test_check_accepts_every_right_answer_and_ignores_the_stored_one(grids_4x4):
    assert all(SudokuCheck()({"prompt": "." * 16, "target": SOLVED_4}, grid) for grid in grids_4x4)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("rows alone", "1313242431314242"),
        ("columns alone", "1234341212343412"),
        ("boxes alone", "1234234134124123"),
        ("too short", SOLVED_4[:-1]),
        ("too long", SOLVED_4 + "1"),
        ("empty cell", "." + SOLVED_4[1:]),
        ("no digit", "x" + SOLVED_4[1:]),
        ("digit beyond the size", "5" + SOLVED_4[1:]),
    ],
)
def test_check_rejects_a_grid_with_a_fault(fault, answer):
    assert not SudokuCheck()({"prompt": "." * 16}, answer), fault


def test_check_rejects_a_right_grid_that_changes_a_clue():
    swapped = SOLVED_4.translate(str.maketrans("12", "21"))
    assert solves("." * 16, swapped)
    assert not solves("1" + "." * 15, swapped)


def test_boxes_of_6x6_are_two_rows_by_three_columns():
    assert solves("." * 36, SOLVED_6)
    latin = "".join("123456"[i:] + "123456"[:i] for i in range(6))  # rows and columns are right, boxes are not
    assert not solves("." * 36, latin)


def test_drawing_shows_boxes_and_leaves_unknown_cells_open():
    assert render("1_3456" + "." * 30).splitlines()[:4] == [
        "+-------+-------+",
        "| 1 · 3 | 4 5 6 |",
        "| · · · | · · · |",
        "+-------+-------+",
    ]
    assert [len(render("." * n).splitlines()) for n in (16, 36, 81)] == [7, 10, 13]


def test_drawing_refuses_text_that_is_no_grid():
    with pytest.raises(UserError, match="16, 36, 81 cells"):
        render("12")


def test_any_cell_gives_no_cell_away_and_changes_nothing_else():
    puzzles, grids = (Sudoku(split="train", size=4, n=5, any_cell=flag).rows() for flag in (False, True))
    assert all("1" in row["fixed"] for row in puzzles)
    assert [row["fixed"] for row in grids] == ["0" * 16] * 5
    assert [{**row, "fixed": ""} for row in grids] == [{**row, "fixed": ""} for row in puzzles]


def test_puzzles_to_be_solved_show_their_clues_whatever_is_trained_on():
    trained = Sudoku(split="train", size=4, n=2, any_cell=True)
    asked = trained.for_prediction().rows()
    assert [row["fixed"] for row in trained.rows()] == ["0" * 16] * 2
    assert asked == Sudoku(split="train", size=4, n=2).rows()
    assert "1" in asked[0]["fixed"]
