"""What samples are like, without a right answer to compare them with: how long, how varied, how repetitive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float64

from xlm.errors import UserError
from xlm.metrics.answers import Texts
from xlm.metrics.gathered import Gathered

Tokens = Sequence[int]


class SampleStatistics(Gathered):
    """Length, entropy, repetition and distinct n-grams of what was generated, in tokens; prompts are not counted.

    - ``length_mean``, ``length_sd``, ``length_min``, ``length_max``: tokens of a sample, its end not counted.
    - ``sample_entropy``: nats a token, the plug-in entropy of the tokens *within* one sample, the mean over samples, as
      the papers on masked diffusion have it (Zheng et al., 2024, arXiv:2409.02908; ReMDM, MDLM's code). At most
      log(length): compare samples of equal length alone. Empty samples say nothing and are left out.
    - ``repetition_n``: 1 - different n-grams / n-grams of one sample, the mean over samples (seq-rep-n of Welleck et
      al., 2020). Samples of fewer than n tokens are left out.
    - ``distinct_n``: different n-grams of all samples together / tokens of all samples (Li et al., 2016). It falls as
      there are more samples: compare equal numbers of them alone.

    Errors ``<name>_se`` take samples as independent. Those of means are sd / sqrt(samples); those of ``length_sd`` and
    ``distinct_n`` are the jackknife's (Efron and Stein, 1981), which leaves each sample out in turn: a bootstrap draws
    samples twice and so finds fewer different n-grams than there are. Least and greatest length have none.

    Args:
        repetition: The n of ``repetition_n``.
        distinct: The n of ``distinct_n``.
    """

    def __init__(self, *, repetition: Sequence[int] = (4,), distinct: Sequence[int] = (1, 2)) -> None:
        super().__init__()
        for name, sizes in (("repetition", repetition), ("distinct", distinct)):
            if any(n < 1 for n in sizes):
                where = f"metrics.sample_statistics.{name}"
                raise UserError("n-grams have 1 token or more", where=where, value=list(sizes), fix="use [1, 2]")
        self.repetition, self.distinct = tuple(repetition), tuple(distinct)

    def update(self, examples: Sequence[Texts], rows: Sequence[Texts]) -> None:
        """Note the tokens of each row: its ``ids``."""
        self.notes += [list(row["ids"]) for row in rows]

    def compute(self) -> dict[str, float]:
        """Every number and its error; nan where nothing was seen that says anything, or too little for an error."""
        samples: list[Tokens] = self.gathered()
        lengths = [float(len(sample)) for sample in samples]
        values = {
            **_mean("length_mean", lengths),
            **_deviation("length_sd", lengths),
            "length_min": min(lengths, default=math.nan),
            "length_max": max(lengths, default=math.nan),
            **_mean("sample_entropy", [entropy(sample) for sample in samples if sample]),
        }
        for n in self.repetition:
            values |= _mean(f"repetition_{n}", [repetition(sample, n) for sample in samples if len(sample) >= n])
        for n in self.distinct:
            values |= _distinct(f"distinct_{n}", samples, n)
        return values


def entropy(sample: Tokens) -> float:
    """Plug-in entropy of the tokens of one sample, nats.

    >>> math.exp(entropy([7, 7, 3, 3]))
    2.0
    """
    return math.log(len(sample)) - math.fsum(k * math.log(k) for k in Counter(sample).values()) / len(sample)


def repetition(sample: Tokens, n: int) -> float:
    """Share of the n-grams of one sample that were there before.

    >>> repetition([1, 2, 1, 2], 2)  # 12, 21, 12
    0.33333333333333337
    """
    found = grams(sample, n)
    return 1 - len(set(found)) / len(found)


def grams(sample: Tokens, n: int) -> list[tuple[int, ...]]:
    """Every n tokens in a row."""
    return list(zip(*(sample[i:] for i in range(n)), strict=False))


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    n = len(values)
    mean = math.fsum(values) / n if n else math.nan
    se = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1))) if n > 1 else math.nan
    return {name: mean, f"{name}_se": se}


def _deviation(name: str, values: Sequence[float]) -> dict[str, float]:
    """Standard deviation, and its jackknife error."""
    n = len(values)
    x = np.array(values, dtype=np.float64) - (sum(values) / n if n else 0)
    square = float((x**2).sum())
    without = (square - x**2 - x**2 / max(n - 1, 1)) / max(n - 2, 1)  # the others' sum of squares round their mean
    sd = math.sqrt(square / (n - 1)) if n > 1 else math.nan
    return {name: sd, f"{name}_se": _jackknife(np.sqrt(without.clip(min=0))) if n > 2 else math.nan}


def _distinct(name: str, samples: Sequence[Tokens], n: int) -> dict[str, float]:
    """Different n-grams / tokens, and its jackknife error: without a sample, those go that it alone has."""
    tokens, owners = sum(map(len, samples)), _owners(samples, n)
    alone = Counter(owners.values())
    left = [tokens - len(sample) for sample in samples]
    enough = len(samples) > 1 and min(left) > 0
    without = [(len(owners) - alone[i]) / rest for i, rest in enumerate(left)] if enough else []
    return {
        name: len(owners) / tokens if tokens else math.nan,
        f"{name}_se": _jackknife(np.array(without)) if enough else math.nan,
    }


def _owners(samples: Iterable[Tokens], n: int) -> dict[tuple[int, ...], int]:
    """The sample that alone has an n-gram, or -1 where several have it."""
    owners: dict[tuple[int, ...], int] = {}
    for i, sample in enumerate(samples):
        for gram in grams(sample, n):
            if owners.setdefault(gram, i) != i:
                owners[gram] = -1
    return owners


def _jackknife(without: Float64[np.ndarray, " samples"]) -> float:
    """Standard error of a statistic from its values without each sample."""
    n = len(without)
    return math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
