"""A hidden Markov language whose entropy is known exactly: the best that any model of its windows can reach."""

from __future__ import annotations

import math
from string import ascii_lowercase

import numpy as np
from jaxtyping import Float64, Int

from xlm.errors import UserError
from xlm.tasks.splits import SPLITS, check_source

_MOST_STRINGS = 2**22  # that entropy() goes through: some hundred MB, about a second


class HMM:
    """Independent windows of a stationary hidden Markov process, one after the other in one text.

    There are as many states as symbols. The first state is uniform; a state stays with probability ``stay`` and
    otherwise changes to any other alike. It shows its own symbol with probability 1 - ``noise``, otherwise any other
    alike. So single symbols are uniform, and what a model can learn lies in their order alone.

    Splits are independent draws of one law. They are not made disjoint, which would change the law.

    Args:
        split: train, val or test.
        n: Number of windows; fewer are the beginning of more.
        window: Symbols of a window, and tokens where a token is a character: ``datamodule.max_length``.
        n_symbols: Symbols, the letters from a on, and states.
        stay: Probability that the state stays.
        noise: Probability that the symbol is not the state's own.
        seed: Chooses the windows. It is the data set's own, not the run's.
    """

    def __init__(
        self,
        *,
        split: str,
        n: int = 2000,
        window: int = 10,
        n_symbols: int = 4,
        stay: float = 0.9,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        check_source(split=split, n=n, seed=seed)
        if window < 1:
            raise UserError("must be at least 1", where="source.window", value=window, fix="use 1 or more")
        if not 2 <= n_symbols <= len(ascii_lowercase):
            raise UserError("must be from 2 to 26", where="source.n_symbols", value=n_symbols, fix="use 4")
        for key, value in {"stay": stay, "noise": noise}.items():
            if not 0 <= value <= 1:
                raise UserError("must lie in [0, 1]", where=f"source.{key}", value=value, fix="use a probability")
        self.split, self.n, self.window, self.seed = split, n, window, seed
        self.n_symbols, self.stay, self.noise = n_symbols, stay, noise

    def rows(self) -> list[dict[str, str]]:
        """One row: the ``text`` of all windows, without anything between them."""
        rng = np.random.default_rng([self.seed, self.n_symbols, self.window, SPLITS.index(self.split)])
        symbols = np.concatenate([self._draw(rng) for _ in range(self.n)])
        return [{"text": "".join(ascii_lowercase[symbol] for symbol in symbols.tolist())}]

    def _draw(self, rng: np.random.Generator) -> Int[np.ndarray, " window"]:
        """One window: a change of state or symbol adds one of the numbers that lead to the others."""
        changed = rng.random(self.window) >= self.stay
        steps = np.where(changed, rng.integers(1, self.n_symbols, self.window), 0)
        steps[0] = rng.integers(self.n_symbols)  # the first state
        wrong = rng.random(self.window) < self.noise
        shown = np.cumsum(steps) + np.where(wrong, rng.integers(1, self.n_symbols, self.window), 0)
        symbols: Int[np.ndarray, " window"] = shown % self.n_symbols
        return symbols

    def log_prob(self, text: str) -> float:
        """Log-probability of one window's text, nats, by the forward algorithm.

        >>> round(math.exp(HMM(split="test", window=2, n_symbols=2, stay=1.0, noise=0.0).log_prob("aa")), 6)
        0.5
        """
        transition, emission = self._matrices()
        state, total = np.full(self.n_symbols, 1 / self.n_symbols), 0.0
        for i, symbol in enumerate(text):
            joint = (state @ transition if i else state) * emission[:, ascii_lowercase.index(symbol)]
            if (probability := joint.sum()) == 0:
                return -math.inf
            state, total = joint / probability, total + math.log(probability)
        return total

    def entropy(self) -> float:
        """Entropy of one window, nats: - sum over all n_symbols ** window strings of p log p, each p exact.

        Raises:
            UserError: There are more than 2 ** 22 strings.
        """
        if self.n_symbols**self.window > _MOST_STRINGS:
            raise UserError(
                f"of {self.n_symbols} symbols: more than {_MOST_STRINGS:,} strings to go through for the exact entropy",
                where="source.window",
                value=self.window,
                fix="use a shorter window, or fewer symbols",
            )
        transition, emission = self._matrices()
        forward = emission.T / self.n_symbols  # of each string so far, its probability jointly with the last state
        for _ in range(self.window - 1):
            forward = ((forward @ transition)[:, None, :] * emission.T).reshape(-1, self.n_symbols)
        p = forward.sum(1)
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    def optimum(self) -> float | None:
        """Least expected nats a token, where a token is a character; None where ``entropy`` raises."""
        return None if self.n_symbols**self.window > _MOST_STRINGS else self.entropy() / self.window

    def _matrices(self) -> tuple[Float64[np.ndarray, "from to"], Float64[np.ndarray, "state symbol"]]:
        """Transition and emission probabilities."""
        return _mostly_itself(self.n_symbols, self.stay), _mostly_itself(self.n_symbols, 1 - self.noise)


def _mostly_itself(n: int, probability: float) -> Float64[np.ndarray, "n n"]:
    others = (1 - probability) / (n - 1)
    return np.where(np.eye(n, dtype=bool), probability, others)
