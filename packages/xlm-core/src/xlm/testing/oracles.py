"""Oracles: statements that must hold of a family, each measured as an error beside the largest one allowed.

A family offers an ``OracleCase`` through the entry-point group ``xlm.oracles``; ``xlm verify`` runs it, and so does a
test class of two lines (``xlm.testing.contracts.OracleContract``). A case also lists ``Mutation``s, deliberate faults
of the family: an oracle that none of them can fail proves nothing.

The measures below say which number they return. Draws come from fixed keys, so a verdict does not change from run to
run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlm.protocols import Collator, Example
from xlm.sampling import suppressed_ids
from xlm.testing.gradients import gradient_error
from xlm.testing.laws import chi_square

DRAWS = 20_000
"""Samples that are compared with a law."""

LEAST_P = 1e-4
"""P-value below which samples do not have a law."""


@dataclass(frozen=True)
class Measured:
    """How far something is from what it must be."""

    error: float
    tolerance: float
    unit: str
    """What the two numbers are."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Oracle:
    """A statement and its measure.

    Args:
        name: The statement, in words; unique in its case.
        measure: Builds what it needs anew in each call, so that a mutation reaches it.
        slow: Left out by ``xlm verify --fast``.
    """

    name: str
    measure: Callable[[], Measured]
    slow: bool = False


@dataclass(frozen=True)
class Mutation:
    """A deliberate fault.

    Args:
        fault: What is wrong, in words; unique in its case.
        changes: By the dotted path of a function, a class or a method, as the code under test looks it up: from the
            right one to the wrong one.
        caught_by: Name of an oracle of the same case that must fail.
    """

    fault: str
    changes: Mapping[str, Callable[[Any], Any]]
    caught_by: str

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The fault is in the code inside the block.

        Raises:
            AttributeError: there is nothing at a path.
        """
        with ExitStack() as stack:
            for path, change in self.changes.items():
                owner, name = _owner(path)
                right = vars(owner)[name] if name in vars(owner) else getattr(owner, name)
                stack.enter_context(patch.object(owner, name, change(right)))
            yield


def _owner(path: str) -> tuple[Any, str]:
    """What holds the last name of a dotted path, and that name."""
    *parents, name = path.split(".")
    owner: Any = import_module(parents[0])
    for i, parent in enumerate(parents[1:], start=2):
        owner = getattr(owner, parent) if hasattr(owner, parent) else import_module(".".join(parents[:i]))
    return owner, name


@dataclass(frozen=True)
class OracleCase:
    """Everything that a family lets others check.

    Args:
        oracles: What must hold.
        mutations: Faults that the oracles notice.

    Raises:
        ValueError: two of one name, or a mutation that names no oracle.
    """

    oracles: Sequence[Oracle]
    mutations: Sequence[Mutation] = ()

    def __post_init__(self) -> None:
        names, faults = [oracle.name for oracle in self.oracles], [mutation.fault for mutation in self.mutations]
        for given in (names, faults):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                raise ValueError(f"twice in one oracle case: {', '.join(twice)}")
        for mutation in self.mutations:
            if mutation.caught_by not in names:
                raise ValueError(f"{mutation.fault}: there is no oracle {mutation.caught_by!r}")

    def oracle(self, name: str) -> Oracle:
        """The oracle of a name."""
        return next(oracle for oracle in self.oracles if oracle.name == name)


def has_law(counts: Int[Tensor, " counts"], probabilities: Float[Tensor, " outcomes"]) -> Measured:
    """-log10 of the p-value of Pearson's chi-square test; infinite after an outcome of probability 0.

    Where there is one count more than there are probabilities, it is of everything else.
    """
    if len(counts) == len(probabilities) + 1:
        probabilities = torch.cat([probabilities, probabilities.new_zeros(1)])
    p = chi_square(counts, probabilities)
    error = -math.log10(p) if p > 0 else math.inf
    return Measured(error, -math.log10(LEAST_P), f"-log10 p of chi-square, {int(counts.sum()):,} draws")


def has_mass(nll: Float[Tensor, " outcomes"], total: float = 1.0, tolerance: float = 1e-9) -> Measured:
    """|sum of exp(-nll) over all outcomes - total|."""
    return Measured(abs(float((-nll.double()).exp().sum()) - total), tolerance, "|total probability - 1|")


def equal(left: Tensor, right: Tensor, tolerance: float = 1e-9, unit: str = "largest difference") -> Measured:
    """Largest |left - right|; infinite for other shapes."""
    if left.shape != right.shape:
        return Measured(math.inf, tolerance, unit)
    same = left == right  # infinities included
    difference = (left.detach().double() - right.detach().double()).abs().masked_fill(same, 0.0)
    return Measured(float(difference.max()) if difference.numel() else 0.0, tolerance, unit)


def within_error(estimate: float, exact: float, standard_error: float) -> Measured:
    """|estimate - exact| in standard errors."""
    return Measured(abs(estimate - exact) / standard_error, 3.0, f"standard errors of {standard_error:.1g} nats")


def not_below(values: Float[Tensor, " n"], least: Float[Tensor, " n"], tolerance: float = 1e-9) -> Measured:
    """Largest amount by which a value lies below what it must reach; 0 where none does."""
    return Measured(max(0.0, float((least.double() - values.double()).max())), tolerance, "nats below")


def same(left: Any, right: Any) -> bool:
    """Whether two batches, examples or values are equal, tensors and arrays included."""
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    return bool((left == right).all()) if hasattr(left, "shape") else bool(left == right)


def none_of(n: int, what: str) -> Measured:
    """How many there are of what must not be."""
    return Measured(float(n), 0.0, what)


def has_gradient(loss: Any, batch: Any) -> Measured:
    """Of ``loss.loss_fn`` in fp64: largest difference from central differences, relative to the largest slope."""
    error = gradient_error(lambda: loss.loss_fn(batch)["loss"], loss.model.parameters())
    return Measured(error, 1e-6, "relative difference from finite differences")


def adds_up(loss: Any, collate: Collator, examples: Sequence[Example]) -> Measured:
    """loss x loss_denominator of a batch against the sum over its rows, padding or not, relative to that sum."""
    whole = loss.loss_fn(collate(list(examples)))
    parts = [loss.loss_fn(collate([example])) for example in examples]
    summed, *each = (float(out["loss"].detach() * out["loss_denominator"]) for out in (whole, *parts))
    error = abs(summed - sum(each)) / abs(sum(each))
    count = abs(float(whole["loss_denominator"]) - sum(float(part["loss_denominator"]) for part in parts))
    return Measured(max(error, count), 1e-9, "relative difference from the sum over rows")


def rows_stand_alone(predictor: Any, collate: Collator, examples: Sequence[Example]) -> Measured:
    """Rows whose ids, length or network calls are others than they are in a batch of their own."""
    batch = predictor.predict(collate(list(examples)))
    n = 0
    for i, example in enumerate(examples):
        alone = predictor.predict(collate([example]))
        length = int(alone["lengths"][0])
        n += not (
            int(batch["lengths"][i]) == length
            and batch["ids"][i, :length].tolist() == alone["ids"][0, :length].tolist()
            and int(batch["n_calls"][i]) == int(alone["n_calls"][0])
        )
    return none_of(n, f"of {len(examples)} rows depend on their batch")


def likelihoods_stand_alone(predictor: Any, collate: Collator, examples: Sequence[Example], draws: int = 2) -> Measured:
    """Largest difference of a row's nats from those that it has in a batch of its own."""
    whole = predictor.log_likelihood(collate(list(examples)), draws=draws)["nll"]
    parts = [predictor.log_likelihood(collate([example]), draws=draws)["nll"] for example in examples]
    return equal(whole, torch.cat(parts), tolerance=1e-5, unit="nats of difference")


def generates_no_control_tokens(predictor: Any, collate: Collator, examples: Sequence[Example]) -> Measured:
    """Generated tokens that are pad, mask, begin or another that the likelihood removes from the softmax."""
    predictions = predictor.predict(collate(list(examples)))
    valid = torch.arange(predictions["ids"].shape[1]) < predictions["lengths"][:, None]
    n = int(torch.isin(predictions["ids"][valid], suppressed_ids(predictor.tokenizer)).sum())
    return none_of(n, f"control tokens among {int(valid.sum()):,}")
