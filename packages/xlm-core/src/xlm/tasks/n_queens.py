"""Queens that do not attack each other, some of them given: most questions have several right answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split

BLANK = "."
"""A row of the board whose queen is to be found."""

_BATCH = 4000  # questions drawn at a time, before the split takes its share


class NQueens:
    """Questions of one split with one of their answers each, no two pairs alike, and no question in two splits.

    A text has one character a row of the board: the column, from 1, of the row's queen. A question is made from a
    random solution, so the stored answer is any of a question's answers with equal probability. There are 92 solutions
    of 8x8 and 352 of 9x9; other splits have the same solutions with other queens given.

    Args:
        split: train, val or test.
        n: Number of questions; fewer are the beginning of more.
        size: Rows of the board, and queens: 4 to 9.
        clues: Fewest and most queens given, each number equally likely.
        samples: Ask every question so many times in a row, for ``xlm.metrics.Coverage``.
        seed: Chooses the questions. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        n: int = 1000,
        size: int = 9,
        clues: Sequence[int] = (1, 3),
        samples: int = 1,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        if not 4 <= size <= 9:
            raise UserError("must be from 4 to 9", where="source.size", value=size, fix="use 9")
        if len(clues) != 2 or not 0 <= clues[0] <= clues[1] < size:
            what = f"must be two ordered numbers below {size}"
            raise UserError(what, where="source.clues", value=list(clues), fix="for example clues=[1,3]")
        if samples < 1:
            raise UserError("must be at least 1", where="source.samples", value=samples, fix="use 1 or more")
        self.split, self.n, self.size, self.seed = split, n, size, seed
        self.clues, self.samples = (clues[0], clues[1]), samples

    def rows(self) -> list[dict[str, str]]:
        """One row a time that a question is asked.

        ``text`` and ``target`` are a solution; ``fixed`` has 1 where a queen is given, ``prompt`` ``.`` where none is.
        """
        rng = np.random.default_rng([self.seed, self.size, *self.clues, SPLITS.index(self.split)])
        both = distinct(lambda: self._draw(rng), self.n, widen="source.clues")
        return [_row(prompt_target[: self.size], target) for prompt_target, target in both for _ in range(self.samples)]

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Questions of this split, each followed by its answer, and the answers."""
        boards = np.array([[int(column) for column in solution] for solution in solutions(self.size)])
        boards = boards[rng.integers(len(boards), size=_BATCH)]
        n_given = rng.integers(self.clues[0], self.clues[1] + 1, (_BATCH, 1))
        given = np.argsort(np.argsort(rng.random(boards.shape), axis=1), axis=1) < n_given
        asked = np.where(given, boards, 0)
        keep = in_split(asked, self.split)
        for prompt, target in zip(_strings(asked[keep]), _strings(boards[keep]), strict=True):
            yield prompt + target, target


@cache
def solutions(size: int) -> list[str]:
    """Every board of ``size`` queens that do not attack each other, in the order of its text.

    >>> solutions(4)
    ['2413', '3142']
    """
    found: list[str] = []

    def place(queens: tuple[int, ...]) -> None:
        if len(queens) == size:
            found.append("".join(map(str, queens)))
            return
        row = len(queens)
        for column in range(1, size + 1):
            if all(column != q and abs(column - q) != row - r for r, q in enumerate(queens)):
                place((*queens, column))

    place(())
    return found


class Completions:
    """All answers to a question: the solutions that have the given queens."""

    def __call__(self, example: Mapping[str, Any]) -> frozenset[str]:
        """The answers to ``example["prompt"]``."""
        return _completions(example["prompt"])


@cache
def _completions(prompt: str) -> frozenset[str]:
    return frozenset(board for board in solutions(len(prompt)) if _agrees(prompt, board))


class NQueensCheck:
    """Whether an answer places every queen, keeps those given, and lets none attack another; any such one is right."""

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction`` as an answer to ``example["prompt"]``."""
        prompt = example["prompt"]
        columns = "123456789"[: len(prompt)]
        if len(prediction) != len(prompt) or set(prediction) - set(columns) or not _agrees(prompt, prediction):
            return False
        queens = [(row, int(column)) for row, column in enumerate(prediction)]
        return all(b != d and abs(b - d) != c - a for (a, b), (c, d) in combinations(queens, 2))


def _agrees(prompt: str, board: str) -> bool:
    return all(given in (BLANK, column) for given, column in zip(prompt, board, strict=True))


def _strings(boards: Int[np.ndarray, "rows size"]) -> list[str]:
    return ["".join(str(column) if column else BLANK for column in board) for board in boards.tolist()]


def _row(prompt: str, target: str) -> dict[str, str]:
    fixed = "".join("0" if given == BLANK else "1" for given in prompt)
    return {"text": target, "fixed": fixed, "prompt": prompt, "target": target}
