"""What the network reads: nothing that it is asked for, wherever the rest stands."""

from __future__ import annotations

from collections.abc import Callable

import torch
from xlm.testing import factories, oracles
from xlm.testing.answers import n_differences
from xlm.testing.oracles import Measured

from xlm_ilm.oracle_case.parts import (
    EOS,
    A,
    B,
    C,
    D,
    gap_collator,
    network,
    pair_examples,
    prompt_collator,
    text_collator,
)

NO_LEAK = "no input says what is missing"
ANSWERS_UNSEEN = "inputs to complete do not depend on the answer"
PLACES = "where tokens stand in memory changes nothing"
PADDING = "padding changes neither a logit nor p_stop"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        NO_LEAK: _nothing_leaks,
        ANSWERS_UNSEEN: _answers_unseen,
        PLACES: _places,
        PADDING: _padding,
    }


def _nothing_leaks() -> Measured:
    """Of texts, and of copies with another token in place of each one that is missing."""
    collate, examples = text_collator("window"), factories.keyed([{"input_ids": [A, B, C, D]}] * 50)
    batch = collate(examples)
    others = [{**example, "input_ids": list(example["input_ids"])} for example in examples]
    for row, token in zip(
        (batch["rows"] // batch["input_ids"].shape[1]).tolist(), batch["tokens"].tolist(), strict=True
    ):
        others[row]["input_ids"][token - A] = EOS
    n = n_differences({"ids": batch["input_ids"]}, {"ids": collate(others)["input_ids"]})
    return oracles.none_of(n, f"inputs that change with {len(batch['tokens'])} missing tokens")


def _answers_unseen() -> Measured:
    pairs, infill = pair_examples(), factories.infill_examples([3, 8, 5], n_letters=4)
    n = n_differences(prompt_collator()(pairs), prompt_collator()([{**row, "target_ids": [D] * 3} for row in pairs]))
    flipped = [
        {**row, "input_ids": [i if fixed else 11 - i for i, fixed in zip(row["input_ids"], row["fixed"], strict=True)]}
        for row in infill
    ]
    return oracles.none_of(
        n + n_differences(gap_collator()(infill), gap_collator()(flipped)), "entries that change with the answer"
    )


def _places() -> Measured:
    """Rows whose tokens are stored in another order, with ``positions`` that say where they belong."""
    net, ids = network(), torch.tensor(factories.letters([6] * 3, n_letters=4))
    order = torch.tensor([0, 3, 1, 5, 4, 2])
    states, stop_logit = net.read(ids)
    moved, stop_there = net.read(ids[:, order], positions=order.expand(3, -1))
    return oracles.equal(
        torch.cat([moved.flatten(), stop_there]), torch.cat([states[:, order].flatten(), stop_logit]), 1e-10
    )


def _padding() -> Measured:
    net, ids = network(), torch.tensor(factories.letters([6] * 3, n_letters=4))
    real = torch.tensor([[True] * 6 + [False] * 2] * 3)
    states, stop_logit = net.read(ids)
    padded, stop_there = net.read(torch.cat([ids, ids[:, :2]], 1), real)
    return oracles.equal(
        torch.cat([padded[:, :6].flatten(), stop_there]), torch.cat([states.flatten(), stop_logit]), 1e-10
    )
