from __future__ import annotations

from itertools import permutations

import pytest
from xlm.errors import UserError
from xlm.tasks.n_queens import Completions, NQueens, NQueensCheck, solutions
from xlm.tasks.splits import SPLITS


def peaceful(columns: tuple[int, ...]) -> bool:
    """No two queens on a diagonal; a permutation has them in different rows and columns."""
    sums, differences = {r + c for r, c in enumerate(columns)}, {r - c for r, c in enumerate(columns)}
    return len(sums) == len(differences) == len(columns)


@pytest.fixture(scope="module")
def rows():
    return NQueens(split="train", n=300).rows()


@pytest.mark.parametrize(("size", "n"), [(4, 2), (5, 10), (6, 4), (7, 40), (8, 92), (9, 352)])
def test_there_are_as_many_solutions_as_is_known(size, n):
    assert len(set(solutions(size))) == n


def test_solutions_are_the_permutations_without_a_shared_diagonal():
    expected = ["".join(map(str, p)) for p in permutations(range(1, 8)) if peaceful(p)]
    assert solutions(7) == expected


def test_a_row_is_a_solution_of_which_one_to_three_queens_are_given(rows):
    for row in rows:
        assert row["text"] == row["target"]
        assert row["target"] in solutions(9)
        assert 1 <= row["fixed"].count("1") <= 3
        assert row["prompt"] == "".join(c if f == "1" else "." for c, f in zip(row["text"], row["fixed"], strict=True))
    assert {row["fixed"].count("1") for row in rows} == {1, 2, 3}


def test_the_stored_answer_is_any_answer_with_equal_probability():
    rows = NQueens(split="train", n=1500, size=8, clues=[2, 2]).rows()
    assert {(len(row["text"]), row["fixed"].count("1")) for row in rows} == {(8, 2)}
    places = []
    for row in rows:
        answers = sorted(Completions()(row))
        if len(answers) == 2:
            places.append(answers.index(row["target"]))
    assert len(places) > 200
    assert sum(places) / len(places) == pytest.approx(0.5, abs=5 * 0.5 / len(places) ** 0.5)


def test_no_question_is_in_two_splits_even_with_another_seed():
    seen = {}
    for seed, split in enumerate(SPLITS):
        for row in NQueens(split=split, n=200, size=8, seed=seed).rows():
            assert seen.setdefault(row["prompt"], split) == split


def test_questions_are_asked_several_times_in_a_row():
    once, twice = NQueens(split="val", n=5).rows(), NQueens(split="val", n=5, samples=2).rows()
    assert twice == [row for row in once for _ in range(2)]


def test_fewer_questions_are_the_beginning_of_more_and_seeds_differ(rows):
    assert NQueens(split="train", n=5).rows() == rows[:5]
    assert NQueens(split="train", n=5, seed=1).rows() != rows[:5]


def test_completions_are_all_answers_that_the_check_accepts():
    prompt = {"prompt": "..4...."}
    accepted = {"".join(map(str, p)) for p in permutations(range(1, 8)) if p[2] == 4 and peaceful(p)}
    assert Completions()(prompt) == accepted
    everything = ("".join(map(str, p)) for p in permutations(range(1, 8)))
    assert {board for board in everything if NQueensCheck()(prompt, board)} == accepted


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("moves a given queen", "3142"),
        ("a shared column", "2212"),
        ("a shared diagonal", "2143"),
        ("too short", "241"),
        ("too long", "24133"),
        ("no queen", "24.3"),
        ("off the board", "2513"),
        ("empty", ""),
    ],
)
def test_check_rejects_an_answer_with_a_fault(fault, answer):
    example = {"prompt": "2...", "target": answer}
    assert NQueensCheck()(example, "2413")
    assert not NQueensCheck()(example, answer), fault


@pytest.mark.parametrize(
    ("key", "value"), [("size", 3), ("size", 10), ("clues", [2, 1]), ("clues", [1, 9]), ("samples", 0)]
)
def test_impossible_questions_are_refused_by_key(key, value):
    with pytest.raises(UserError, match=rf"source\.{key}"):
        NQueens(**{"split": "train", key: value})
