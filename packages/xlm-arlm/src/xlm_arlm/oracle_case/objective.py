"""What is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from xlm.testing import factories, oracles
from xlm.testing.oracles import Measured

from xlm_arlm.oracle_case.parts import (
    BOS,
    CONTROL,
    EOS,
    PAIRS,
    PAIRS_ON_PROMPT,
    TEXTS,
    A,
    B,
    C,
    D,
    loss_of,
    network,
    pair_examples,
    text_batch,
    window_batch,
)

FORMULA = "the loss is the chain rule of every row alone"
ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"
PACKED = "packed documents cost what they cost alone"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        FORMULA: _formula,
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
        PACKED: _packed,
    }


def _costs(net: Any, prompt: Sequence[int], target: Sequence[int]) -> Float[Tensor, " tokens"]:
    """-log p of each token of a row and of EOS, without padding."""
    ids = torch.tensor([BOS, *prompt, *target, EOS])
    logits = net(ids[None, :-1])[0]
    logits[:, CONTROL] = -math.inf
    return F.cross_entropy(logits, ids[1:], reduction="none")


def _formula() -> Measured:
    net = network()
    texts = factories.lm_examples([3, 7, 0, 5], n_letters=4)
    rows = {
        TEXTS: [(text, 0, _costs(net, [], text["input_ids"])) for text in texts],
        PAIRS: [
            (pair, len(pair["prompt_ids"]), _costs(net, pair["prompt_ids"], pair["target_ids"]))
            for pair in pair_examples()
        ],
    }
    rows[PAIRS_ON_PROMPT] = rows[PAIRS]
    ours, expected = [], []
    for collate, of_rows in rows.items():
        out = loss_of(net).loss_fn(collate([example for example, _, _ in of_rows]))
        answers = [costs[given:] for _, given, costs in of_rows]
        trained = [costs for _, _, costs in of_rows] if collate is PAIRS_ON_PROMPT else answers
        ours += [out["loss"][None], out["nll"]]
        expected += [torch.cat(trained).mean()[None], torch.stack([costs.sum() for costs in answers])]
    return oracles.equal(torch.cat(ours), torch.cat(expected))


def _adds_up_texts() -> Measured:
    return oracles.adds_up(loss_of(network()), TEXTS, factories.lm_examples([3, 7, 0, 5], n_letters=4))


def _adds_up_pairs() -> Measured:
    return oracles.adds_up(loss_of(network()), PAIRS_ON_PROMPT, pair_examples())


def _gradient() -> Measured:
    return oracles.has_gradient(loss_of(network()), PAIRS_ON_PROMPT(pair_examples()))


def _packed() -> Measured:
    net = network()
    first, second = [A, B, C, EOS], [D, A, EOS]
    packed = loss_of(net).loss_fn(window_batch([first + second], segments=[0] * 4 + [1] * 3))
    alone = loss_of(net).loss_fn(text_batch([first[:-1], second[:-1]]))
    left, right = (torch.stack([out["nll"].sum(), out["loss"]]) for out in (packed, alone))
    return oracles.equal(left, right)
