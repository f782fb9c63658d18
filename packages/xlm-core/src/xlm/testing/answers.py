"""Answers of samplers that decide where a text ends, against laws of texts; everything here is slow and obvious."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from xlm.protocols import Predictions
from xlm.testing.oracles import Measured, has_law

Law = Mapping[tuple[int, ...], float]
"""Probability of each answer, by its token ids."""


def answers_have_law(predictions: Predictions, *laws: Law) -> Measured:
    """``has_law`` of a batch whose row i has law number i modulo their number; other answers are impossible."""
    outcomes = [(which, ids) for which, law in enumerate(laws) for ids in law]
    number = {outcome: i for i, outcome in enumerate(outcomes)}
    answers = zip(predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True)
    drawn = [number.get((i % len(laws), tuple(ids[:n])), len(outcomes)) for i, (ids, n) in enumerate(answers)]
    counts = torch.bincount(torch.tensor(drawn), minlength=len(outcomes) + 1)
    return has_law(counts, torch.tensor([p for law in laws for p in law.values()], dtype=torch.float64) / len(laws))


def causal_law(
    network: Any,
    start: Sequence[int],
    *,
    eos_id: int,
    never: Sequence[int],
    most: int,
    choose: Callable[[Float[Tensor, " vocab"], tuple[int, ...]], Tensor] = lambda logits, _: logits.softmax(0),
    ends: Callable[[tuple[int, ...]], bool] = lambda _: False,
) -> Law:
    """Answers that are drawn from left to right, every step from the whole row; without EOS.

    Args:
        network: From ids to logits of the next token.
        start: BOS and the prompt.
        eos_id: Ends an answer.
        never: Tokens that are not drawn.
        most: Most tokens drawn, EOS included.
        choose: Probabilities of the next token from its logits and the answer so far.
        ends: Whether an answer ends without EOS.
    """
    law: dict[tuple[int, ...], float] = defaultdict(float)
    level: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(most):
        following: dict[tuple[int, ...], float] = {}
        logits = network(torch.tensor([[*start, *ids] for ids in level]))[:, -1].detach().double()
        logits[:, list(never)] = -math.inf
        for (ids, reached), row in zip(level.items(), logits, strict=True):
            for token, p in enumerate(choose(row, ids).tolist()):
                if p and token == eos_id:
                    law[ids] += reached * p
                elif p:
                    (law if ends((*ids, token)) else following)[*ids, token] = reached * p
        level = following
    return {**law, **level}


def filtered(
    logits: Float[Tensor, " choices"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Float64[Tensor, " choices"]:
    """What the options of ``xlm.sampling.TokenFilter`` promise of one row, choice by choice: probabilities."""
    p = (logits.double() / temperature).softmax(0) if temperature else (logits == logits.max()).double()
    order = p.argsort(descending=True).tolist()
    kept: list[int] = []
    for choice in order[:top_k]:
        if sum(float(p[i]) for i in kept) / float(p[order[:top_k]].sum()) < top_p:
            kept.append(choice)
    kept = [choice for choice in kept if float(p[choice]) >= min_p * float(p[order[0]])]
    few = torch.zeros_like(p)
    few[kept] = p[kept]
    return few / few.sum()


def n_differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> int:
    """How many entries of the tensors of two batches differ; all of those of unequal shapes."""
    return sum(
        int((value != right[name]).sum()) if value.shape == right[name].shape else value.numel()
        for name, value in left.items()
        if isinstance(value, Tensor)
    )
