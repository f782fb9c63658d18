"""How many of all right answers were found, where a question has several."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b

from xlm.metrics.answers import Texts
from xlm.metrics.gathered import Gathered


class Coverage(Gathered):
    """Share of the valid answers to the questions asked that the predictions found: ``coverage`` in [0, 1], and its SE.

    Denominator: the different valid answers that exist, summed over the different prompts; numerator: those of them
    that some prediction gave, however often. Each prompt is to be asked many times (a task's ``source.samples``): with
    fewer samples than answers even a perfect model stays below 1, so compare equal numbers of samples alone. The
    standard error ``coverage_se`` is that of a ratio of sums over independent prompts (delta method); it says how the
    value would differ for other prompts, and nothing of how it grows with more samples. It is 0 where all or nothing
    was found for every prompt, which is no certainty.

    Args:
        answers: All valid answers to an example, for example ``xlm.tasks.n_queens.Completions()``. A prediction may be
            one of them, or the prompt followed by one.
    """

    def __init__(self, answers: Callable[[Texts], Collection[str]]) -> None:
        super().__init__()
        self.answers = answers

    def update(self, examples: Sequence[Texts], rows: Sequence[Texts]) -> None:
        """Note for each row its prompt, how many answers there are, and the answer if it is one of them."""
        pairs = zip(examples, rows, strict=True)
        self.notes += [self._note(example, row["prediction"]) for example, row in pairs]

    def compute(self) -> dict[str, float]:
        """The share and its standard error; nan where nothing was asked, or for the error no second prompt."""
        exist: dict[int, int] = {}
        found: dict[int, set[int]] = {}
        for prompt, n_answers, is_valid, answer in self.gathered():
            exist[prompt] = n_answers
            found.setdefault(prompt, set()).update([answer] * is_valid)
        n, total = len(exist), sum(exist.values())
        share = sum(map(len, found.values())) / total if total else math.nan
        residual = sum((len(found[prompt]) - share * exist[prompt]) ** 2 for prompt in exist)
        se = math.sqrt(residual * n / (n - 1)) / total if n > 1 and total else math.nan
        return {"coverage": share, "coverage_se": se}

    def _note(self, example: Texts, prediction: str) -> tuple[int, int, bool, int]:
        answers = self.answers(example)
        answer = prediction.removeprefix(example["prompt"]).strip()
        return _number(example["prompt"]), len(answers), answer in answers, _number(answer)


def _number(text: str) -> int:
    """A 64-bit number for a text, shorter than it."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
