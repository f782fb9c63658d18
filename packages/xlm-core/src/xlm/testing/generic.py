"""Oracles that need nothing but the four parts: what must hold of any family, with or without an oracle case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch

from xlm.protocols import Collator, Example
from xlm.sampling import suppressed_ids
from xlm.testing import factories, oracles
from xlm.testing.oracles import Measured, Oracle

N_LETTERS = 4
TOKENIZER = factories.tiny_tokenizer(n_letters=N_LETTERS)
CONTEXT: dict[str, Any] = {
    "seed": 0,
    "tokenizer": TOKENIZER,
    "vocab_size": len(TOKENIZER),
    "max_length": 12,
    "max_prompt_length": 5,
    "max_target_length": 6,
}
"""What parts are given beside their configuration."""

SKIPPED = (
    "laws of the samplers, against enumeration",
    "likelihoods and bounds, against enumeration",
    "the loss, against a formula that is written independently",
    "deliberate faults, which an oracle must notice",
)
"""What cannot be checked without an oracle case."""


@dataclass(frozen=True)
class Parts:
    """A family's parts, with a small network in fp64 and evaluation mode, built for ``CONTEXT``.

    Args:
        loss: Holds the network.
        predictor: Holds the same.
        collators: By role; ``lm`` for windows.
    """

    loss: Any
    predictor: Any
    collators: Mapping[str, Collator]


def generic_oracles(build: Callable[[], Parts]) -> list[Oracle]:
    """What must hold in every role that the family has; ``build`` makes its parts anew."""
    roles = build().collators
    found = []
    for role in (role for role in LEARNT if role in roles):
        measures = {"its collator only reads examples, and forgets them": _forgets, **LOSS_MEASURES}
        found += [Oracle(f"{role}: {name}", partial(_on, measure, build, role)) for name, measure in measures.items()]
    for role in (role for role in COMPLETED if role in roles):
        measures = {"its collator only reads examples, and forgets them": _forgets, **PREDICTION_MEASURES}
        found += [Oracle(f"{role}: {name}", partial(_on, measure, build, role)) for name, measure in measures.items()]
    if "lm" in roles:
        found.append(Oracle("lm: windows have no more than 1 of probability", lambda: _mass(build())))
    return found


def _on(measure: Callable[[Parts, str], Measured], build: Callable[[], Parts], role: str) -> Measured:
    return measure(build(), role)


LEARNT: dict[str, Callable[[], list[Example]]] = {
    "lm": lambda: factories.lm_examples([8, 8, 8], n_letters=N_LETTERS),
    "seq2seq": lambda: factories.seq2seq_examples([3, 0, 4], [2, 5, 1], n_letters=N_LETTERS),
    "infill": lambda: factories.infill_examples([3, 8, 5], n_letters=N_LETTERS),
}
"""Roles that a family is trained in, with examples."""

COMPLETED: dict[str, Callable[[], list[Example]]] = {
    "seq2seq_prediction": LEARNT["seq2seq"],
    "infill_prediction": LEARNT["infill"],
    "unconditional": lambda: factories.unconditional_examples(3),
}
"""Roles in which it completes something."""

EXAMPLES = LEARNT | COMPLETED


def _forgets(parts: Parts, role: str) -> Measured:
    collate, examples = parts.collators[role], EXAMPLES[role]()
    first = collate(examples)
    collate(examples[::-1])
    n = (not oracles.same(examples, EXAMPLES[role]())) + (not oracles.same(first, collate(examples)))
    return oracles.none_of(n, "changes")


def _adds_up(parts: Parts, role: str) -> Measured:
    return oracles.adds_up(parts.loss, parts.collators[role], EXAMPLES[role]())


def _gradient(parts: Parts, role: str) -> Measured:
    return oracles.has_gradient(parts.loss, parts.collators[role](EXAMPLES[role]()))


def _likelihoods_stand_alone(parts: Parts, role: str) -> Measured:
    return oracles.likelihoods_stand_alone(parts.predictor, parts.collators[role], EXAMPLES[role]())


def _not_negative(parts: Parts, role: str) -> Measured:
    nll = parts.predictor.log_likelihood(parts.collators[role](EXAMPLES[role]()), draws=2)["nll"]
    return oracles.not_below(nll, torch.zeros_like(nll))


LOSS_MEASURES: dict[str, Callable[[Parts, str], Measured]] = {
    "the loss adds up over rows": _adds_up,
    "the gradient of the loss is that of finite differences": _gradient,
    "a likelihood does not depend on its batch": _likelihoods_stand_alone,
    "-log of a probability is not negative": _not_negative,
}


def _mass(parts: Parts) -> Measured:
    """Of all windows of two tokens, by an untrained network; a bound is the mean of 16 draws."""
    generated = sorted(set(range(len(TOKENIZER))) - set(suppressed_ids(TOKENIZER).tolist()))
    windows = [{"input_ids": list(ids)} for ids in product(generated, repeat=2)]
    nll = parts.predictor.log_likelihood(parts.collators["lm"](factories.keyed(windows)), draws=16)["nll"]
    return Measured(max(0.0, float((-nll).exp().sum()) - 1), 0.02, "probability beyond 1")


def _rows_stand_alone(parts: Parts, role: str) -> Measured:
    return oracles.rows_stand_alone(parts.predictor, parts.collators[role], EXAMPLES[role]())


def _no_control_tokens(parts: Parts, role: str) -> Measured:
    return oracles.generates_no_control_tokens(parts.predictor, parts.collators[role], EXAMPLES[role]())


def _rows_say_what_was_predicted(parts: Parts, role: str) -> Measured:
    batch = parts.collators[role](EXAMPLES[role]())
    predictions = parts.predictor.predict(batch)
    rows = parts.predictor.to_dict(batch, predictions)
    answers = zip(predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True)
    n = sum(row["ids"] != ids[:length] for row, (ids, length) in zip(rows, answers, strict=True))
    return oracles.none_of(n, "rows that say something else")


PREDICTION_MEASURES: dict[str, Callable[[Parts, str], Measured]] = {
    "a prediction does not depend on its batch": _rows_stand_alone,
    "nothing is generated that the likelihood leaves out": _no_control_tokens,
    "rows hold the tokens that were predicted": _rows_say_what_was_predicted,
}
