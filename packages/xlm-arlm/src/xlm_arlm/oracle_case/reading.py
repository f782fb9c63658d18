"""What the network reads: nothing that comes later, and no padding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from xlm.testing import factories, oracles
from xlm.testing.answers import n_differences
from xlm.testing.oracles import Measured

from xlm_arlm.oracle_case.parts import (
    PROMPTS,
    A,
    D,
    network,
    pair_examples,
    text_batch,
)

NO_LEAK = "no logit depends on the token that it predicts, or on one behind it"
ANSWERS_UNSEEN = "inputs to continue do not depend on the answer"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        "padding changes no logit": _padding,
        NO_LEAK: _nothing_leaks,
        ANSWERS_UNSEEN: _answers_unseen,
    }


def _padding() -> Measured:
    net = network()
    ids = torch.tensor(factories.letters([6] * 3, n_letters=4))
    real = torch.tensor([[False] * 2 + [True] * 6] * len(ids))
    positions = (real.cumsum(1) - 1).clamp_min(0)
    padded = net(torch.cat([ids[:, :2], ids], 1), real, positions=positions)
    return oracles.equal(padded[:, 2:], net(ids))


def _nothing_leaks() -> Measured:
    """Of a text and its copy that differs from its fourth letter on."""
    net = network()
    texts = factories.letters([8, 6], n_letters=4)
    others = [[*ids[:3], *(A + D - token for token in ids[3:])] for ids in texts]
    before, after = (net(batch["input_ids"])[:, :4] for batch in (text_batch(texts), text_batch(others)))
    return oracles.equal(before, after)


def _answers_unseen() -> Measured:
    pairs = pair_examples()
    n = n_differences(PROMPTS(pairs), PROMPTS([{**pair, "target_ids": [D] * 7} for pair in pairs]))
    return oracles.none_of(n, "entries that change with the answer")
