"""Addition of two numbers, the digits of the sum in the usual order or the other way round.

From left to right the first digit of a sum depends on all carries, the last one on two digits alone: written in reverse
(Lee et al., 2024), or filled in in an order of the model's own, each digit needs only its predecessor's carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source, distinct, in_split

_BATCH = 4000  # sums drawn at a time, before the split takes its share
_PROMPT = re.compile(r"([0-9]+)\+([0-9]+)=")


class Addition:
    """Sums of one split, no two alike, and no pair of numbers, in either order, in two splits.

    Each number has 1 to ``digits`` digits, every length equally likely, and is uniform among those of its length.

    Args:
        split: train, val or test.
        n: Number of sums; fewer are the beginning of more.
        digits: Most digits of a number to add; up to 18.
        reverse: Write the sum from its last digit to its first; the numbers to add stay as they are.
        seed: Chooses the sums. It is the data set's own, not the run's.
    """

    def __init__(self, *, split: str, n: int = 5000, digits: int = 5, reverse: bool = False, seed: int = 0) -> None:
        check_source(split=split, n=n, seed=seed)
        if not 1 <= digits <= 18:
            raise UserError("must be from 1 to 18", where="source.digits", value=digits, fix="for example digits=5")
        self.split, self.n, self.digits, self.reverse, self.seed = split, n, digits, reverse, seed

    def rows(self) -> list[dict[str, str]]:
        """One row a sum: ``prompt`` (``12+345=``), ``target`` (``357``), ``text`` and which of it is ``fixed``."""
        rng = np.random.default_rng([self.seed, self.digits, SPLITS.index(self.split)])
        return [_row(*pair) for pair in distinct(lambda: self._draw(rng), self.n, widen="source.digits")]

    def _draw(self, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
        """Prompts and targets of one batch of sums that belong to this split."""
        numbers = _numbers(rng, self.digits)
        numbers = numbers[in_split(np.sort(numbers, axis=1), self.split)]
        for a, b in numbers.tolist():
            yield f"{a}+{b}=", written(a + b, reverse=self.reverse)


def _numbers(rng: np.random.Generator, digits: int) -> Int[np.ndarray, "rows 2"]:
    length = rng.integers(1, digits + 1, (_BATCH, 2))
    least = np.where(length > 1, 10 ** (length - 1), 0)
    return rng.integers(least, 10**length)


def written(total: int, *, reverse: bool) -> str:
    """The digits of a sum; in reverse, the last one comes first."""
    return str(total)[::-1] if reverse else str(total)


def _row(prompt: str, target: str) -> dict[str, str]:
    fixed = "1" * len(prompt) + "0" * len(target)
    return {"text": prompt + target, "fixed": fixed, "prompt": prompt, "target": target}


class AdditionCheck:
    """Whether an answer is the sum of the prompt's numbers, without leading zeros. It never looks at the stored sum.

    Args:
        reverse: Answers begin with the last digit.
    """

    def __init__(self, *, reverse: bool = False) -> None:
        self.reverse = reverse

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction`` as an answer to ``example["prompt"]``; the prompt may stand before it."""
        question = _PROMPT.fullmatch(example["prompt"])
        answer = prediction.removeprefix(example["prompt"])
        return question is not None and answer == written(sum(map(int, question.groups())), reverse=self.reverse)
