"""The oracles of a family that fills in hidden positions, on toys whose laws can be enumerated.

Strings have four letters out of four. An ``ExactDenoiser`` knows the posterior of a table, so what is drawn from it
must have the table's law; an ``InconsistentDenoiser`` has conditionals of no joint law, as a trained network does, so
every order has a law of its own.

``parts`` is what a family hands over, ``samplers``, ``likelihood``, ``objective`` and ``reading`` what holds of it, and
``faults`` what would break it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from xlm.testing.masked import likelihood, objective, reading, samplers
from xlm.testing.masked.likelihood import BOUND, bounds
from xlm.testing.masked.objective import ADDS_UP, GRADIENT
from xlm.testing.masked.parts import (
    LENGTH,
    LETTERS,
    TOKENIZER,
    VOCAB,
    Claim,
    MaskedParts,
    every_string,
    exact,
    hidden,
    inconsistent,
)
from xlm.testing.masked.reading import ANSWERS_UNSEEN, GIVEN_STAYS, NO_LEAK
from xlm.testing.masked.samplers import (
    GUIDED,
    HAS_LAW,
    HAS_MASS,
    NEUTRAL_FILTERS,
    NO_CONTROL_TOKENS,
    RANDOM_ORDER,
    ROWS_ALONE,
    UNGUIDED,
    counts,
    drawn,
    gumbel_law,
    remasked_law,
)
from xlm.testing.oracles import Oracle

__all__ = [
    "ADDS_UP",
    "ANSWERS_UNSEEN",
    "BOUND",
    "GIVEN_STAYS",
    "GRADIENT",
    "GUIDED",
    "HAS_LAW",
    "HAS_MASS",
    "LENGTH",
    "LETTERS",
    "NEUTRAL_FILTERS",
    "NO_CONTROL_TOKENS",
    "NO_LEAK",
    "RANDOM_ORDER",
    "ROWS_ALONE",
    "TOKENIZER",
    "UNGUIDED",
    "VOCAB",
    "Claim",
    "MaskedParts",
    "bounds",
    "counts",
    "drawn",
    "every_string",
    "exact",
    "gumbel_law",
    "hidden",
    "inconsistent",
    "masked_oracles",
    "remasked_law",
]


def masked_oracles(parts: MaskedParts, claims: Sequence[Claim]) -> list[Oracle]:
    """What holds of every masked family, and of its samplers what they claim."""
    sections = (samplers.measures(), likelihood.measures(), objective.measures(), reading.measures())
    general = [Oracle(name, partial(measure, parts)) for section in sections for name, measure in section.items()]
    return [*general, *(oracle for claim in claims for oracle in samplers.claimed(parts, claim))]
