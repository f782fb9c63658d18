"""What is learnt."""

from __future__ import annotations

from collections.abc import Callable

from xlm.testing import oracles
from xlm.testing.masked.parts import (
    MaskedParts,
    pair_examples,
    text_examples,
)
from xlm.testing.oracles import Measured

ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"


def measures() -> dict[str, Callable[[MaskedParts], Measured]]:
    """By the statement that each measures."""
    return {
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
    }


def _adds_up_texts(parts: MaskedParts) -> Measured:
    return oracles.adds_up(parts.loss(parts.network()), parts.texts(8, "open"), text_examples())


def _adds_up_pairs(parts: MaskedParts) -> Measured:
    return oracles.adds_up(parts.loss(parts.network()), parts.pairs(), pair_examples())


def _gradient(parts: MaskedParts) -> Measured:
    return oracles.has_gradient(parts.loss(parts.network()), parts.texts(8, "open")(text_examples()))
