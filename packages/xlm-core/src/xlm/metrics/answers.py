"""How many answers are right: exactly, token by token, or by a task's own check.

``update(examples, rows)`` takes the raw text columns of some examples and the predictions for them, in the same order;
``compute()`` gives floats by name. States are sums, so ranks merge by adding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from xlm.errors import UserError

Texts = Mapping[str, Any]
"""An example's raw columns (``target``: what a right prediction equals), or a prediction row (``prediction``)."""

_UNITS = {"character": re.compile(".", re.DOTALL), "word": re.compile(r"\S+")}


class Share(Metric):
    """The share of examples that ``is_right`` accepts: ``<name>`` in [0, 1], denominator examples, and ``<name>_se``.

    The standard error is half the Wilson interval at one sigma (Wilson, 1927): the binomial sqrt(p (1 - p) / n) for
    large n, yet not 0 when all n answers are right.
    """

    full_state_update = False
    right: Tensor
    total: Tensor

    def __init__(self, name: str, is_right: Callable[[Texts, str], bool]) -> None:
        super().__init__()
        self.name, self.is_right = name, is_right
        self.add_state("right", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, examples: Sequence[Texts], rows: Sequence[Texts]) -> None:
        """Judge the prediction of each row against its example."""
        for example, row in zip(examples, rows, strict=True):
            self.right += self.is_right(example, row["prediction"])
        self.total += len(rows)

    def compute(self) -> dict[str, float]:
        """The share and its standard error; nan where nothing was seen."""
        n, right = int(self.total), int(self.right)
        share = right / n if n else math.nan
        se = math.sqrt(share * (1 - share) / n + 1 / (4 * n * n)) / (1 + 1 / n) if n else math.nan
        return {self.name: share, f"{self.name}_se": se}


class ExactMatch(Share):
    """Share of examples whose prediction is their target, character for character."""

    def __init__(self) -> None:
        super().__init__("exact_match", _equals_target)


class Validity(Share):
    """Share of examples whose prediction the task's check accepts: any right answer counts, not only the stored one.

    Args:
        check: Whether a prediction answers an example, for example ``xlm.tasks.sudoku.SudokuCheck()``.
    """

    def __init__(self, check: Callable[[Texts, str], bool]) -> None:
        super().__init__("validity", check)


class TokenAccuracy(Metric):
    """Share of the target's tokens that the prediction has at the same place: ``token_accuracy`` in [0, 1], and its SE.

    Denominator: the target's tokens, without those that were given, where the example's ``fixed`` has one 0 or 1 for
    each character of the target. A missing token is wrong; tokens beyond the target's end are not looked at. The
    standard error ``token_accuracy_se`` is that of a ratio of sums over independent examples (delta method), as the
    tokens of one example are not independent.

    Args:
        unit: What a token is: ``character``, or ``word`` for what stands between spaces.
    """

    full_state_update = False
    examples: Tensor
    right: Tensor
    total: Tensor
    right_squared: Tensor
    right_total: Tensor
    total_squared: Tensor

    def __init__(self, unit: str = "character") -> None:
        super().__init__()
        if unit not in _UNITS:
            fix = f"use one of {', '.join(_UNITS)}"
            raise UserError("is no unit", where="metrics.token_accuracy.unit", value=unit, fix=fix)
        self.unit = unit
        for name in ("examples", "right", "total", "right_squared", "right_total", "total_squared"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, examples: Sequence[Texts], rows: Sequence[Texts]) -> None:
        """Compare each row's prediction with its example's target, token by token."""
        for example, row in zip(examples, rows, strict=True):
            outcomes = list(self._outcomes(example, row["prediction"]))
            right, total = sum(outcomes), len(outcomes)
            self.right += right
            self.total += total
            self.right_squared += right * right
            self.right_total += right * total
            self.total_squared += total * total
        self.examples += len(rows)

    def compute(self) -> dict[str, float]:
        """The share and its standard error; nan where no token, or for the error no second example, was seen."""
        n, right, total = int(self.examples), int(self.right), int(self.total)
        share = right / total if total else math.nan
        residual = int(self.right_squared) - 2 * share * int(self.right_total) + share**2 * int(self.total_squared)
        se = math.sqrt(max(residual, 0.0) * n / (n - 1)) / total if n > 1 and total else math.nan
        return {"token_accuracy": share, "token_accuracy_se": se}

    def _outcomes(self, example: Texts, prediction: str) -> Iterator[bool]:
        """For each counted token of the target, whether the prediction has it."""
        target = example["target"]
        fixed = example.get("fixed", "")
        given = fixed if len(fixed) == len(target) else "0" * len(target)
        predicted = _UNITS[self.unit].findall(prediction)
        for place, token in enumerate(_UNITS[self.unit].finditer(target)):
            if "0" in given[token.start() : token.end()]:
                yield place < len(predicted) and predicted[place] == token.group()


def _equals_target(example: Texts, prediction: str) -> bool:
    return bool(prediction == example["target"])
