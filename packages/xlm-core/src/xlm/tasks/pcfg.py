"""Balanced brackets from a probabilistic context-free grammar whose entropy, ends included, is known exactly.

S -> open_i S close_i S with probability ``branch`` / ``kinds`` for each kind i of bracket, S -> nothing otherwise; the
first S is never nothing, and texts of more than ``most_pairs`` pairs are drawn again. The grammar is unambiguous, and a
text of m pairs has probability

    p(m) = kinds ** -m  branch ** (m - 1)  (1 - branch) ** (m + 1) / Z,

whatever its form. There are Catalan(m) kinds ** m such texts, so every sum over texts is one over m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source

PAIRS = ("()", "[]", "{}", "<>")
"""Kinds of brackets, in the order in which ``kinds`` takes them."""


class PCFG:
    """Independent texts of the grammar.

    Splits are independent draws of one law. They are not made disjoint, which would change the law.

    Args:
        split: train, val or test.
        n: Number of texts; fewer are the beginning of more.
        most_pairs: Longest text; it has twice as many characters.
        kinds: Kinds of brackets, 1 to 4.
        branch: Probability that an S is not nothing; below 1/2, long texts are rare even without ``most_pairs``.
        seed: Chooses the texts. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        n: int = 2000,
        most_pairs: int = 12,
        kinds: int = 2,
        branch: float = 0.4,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        if most_pairs < 1:
            raise UserError("must be at least 1", where="source.most_pairs", value=most_pairs, fix="use 1 or more")
        if not 1 <= kinds <= len(PAIRS):
            raise UserError("must be from 1 to 4", where="source.kinds", value=kinds, fix="use 2")
        if not 0 < branch <= 0.5:
            raise UserError("must lie in (0, 0.5]", where="source.branch", value=branch, fix="use 0.4")
        self.split, self.n, self.seed = split, n, seed
        self.most_pairs, self.kinds, self.branch = most_pairs, kinds, branch

    def rows(self) -> list[dict[str, str]]:
        """One row a text: ``text``."""
        rng = np.random.default_rng([self.seed, self.most_pairs, self.kinds, SPLITS.index(self.split)])
        texts: list[str] = []
        while len(texts) < self.n:
            texts += filter(None, [self._draw(rng)])
        return [{"text": text} for text in texts]

    def _draw(self, rng: np.random.Generator) -> str | None:
        """One text of the grammar; None where it has too many pairs."""
        text: list[str] = []
        awaited = ["S"]  # what is still to be written, the next one last
        pairs = 0
        while awaited:
            symbol = awaited.pop()
            if symbol != "S":
                text.append(symbol)
            elif not text or rng.random() < self.branch:
                pair = PAIRS[rng.integers(self.kinds)]
                text.append(pair[0])
                awaited += ["S", pair[1], "S"]
                if (pairs := pairs + 1) > self.most_pairs:
                    return None
        return "".join(text)

    def log_prob(self, text: str) -> float:
        """Log-probability of a text and its end, nats."""
        pairs = len(text) // 2
        if not 1 <= pairs <= self.most_pairs or not balanced(text, self.kinds):
            return -math.inf
        return self._log_weight(pairs) - math.log(self._total())

    def entropy(self) -> float:
        """Entropy of a text with its end, nats: closed form, the mean of -log p over the number of pairs.

        >>> round(math.exp(PCFG(split="test", most_pairs=1, kinds=2).entropy()), 6)  # two texts: () and []
        2.0
        """
        log_total = math.log(self._total())
        return sum(share * (log_total - self._log_weight(m)) for m, share in self._shares().items())

    def optimum(self) -> float:
        """Least expected nats a token, where a token is a character or the end: entropy over mean tokens of a text."""
        return self.entropy() / sum(share * (2 * m + 1) for m, share in self._shares().items())

    def _shares(self) -> dict[int, float]:
        """Probability of each number of pairs."""
        total = self._total()
        return {m: self._of_all(m) / total for m in range(1, self.most_pairs + 1)}

    def _total(self) -> float:
        """Probability that the grammar alone gives a text of no more than ``most_pairs`` pairs: Z."""
        return math.fsum(map(self._of_all, range(1, self.most_pairs + 1)))

    def _of_all(self, m: int) -> float:
        """Probability that the grammar alone gives any text of ``m`` pairs."""
        log_texts = math.log(math.comb(2 * m, m) // (m + 1)) + m * math.log(self.kinds)
        return math.exp(log_texts + self._log_weight(m))

    def _log_weight(self, m: int) -> float:
        """Log-probability that the grammar alone gives to one text of ``m`` pairs."""
        return (m - 1) * math.log(self.branch) + (m + 1) * math.log1p(-self.branch) - m * math.log(self.kinds)


def balanced(text: str, kinds: int = len(PAIRS)) -> bool:
    """Whether every bracket of ``text`` closes the last one open, with nothing else in between."""
    closing = {pair[0]: pair[1] for pair in PAIRS[:kinds]}
    awaited: list[str] = []
    for symbol in text:
        if symbol in closing:
            awaited.append(closing[symbol])
        elif not awaited or awaited.pop() != symbol:
            return False
    return not awaited


class PCFGCheck:
    """Whether a text could come from the grammar, however long: balanced brackets, at least one pair.

    Args:
        kinds: Kinds of brackets.
    """

    def __init__(self, *, kinds: int = 2) -> None:
        self.kinds = kinds

    def __call__(self, example: Mapping[str, Any], prediction: str) -> bool:
        """Judge ``prediction``; ``example`` asks nothing."""
        return bool(prediction) and balanced(prediction, self.kinds)
