"""Probabilities of texts under any insertion network, by enumeration: slow and obvious.

A network has ``read(input_ids) -> (states, stop_logit)`` and ``head``. Rows begin with [BOS]. Three independent counts:
forward recursion over rows (``insertion_law``), the sum over all orders, and the bound as a mean over missing tokens.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from itertools import combinations, permutations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn


def joint(logits: Float64[Tensor, "gaps vocab"]) -> Float64[Tensor, "gaps vocab"]:
    """The model's own probabilities of the pairs (gap, token): one softmax over all of them."""
    return logits.flatten().softmax(0).reshape(logits.shape)


def insertion_law(
    network: Any,
    start: Sequence[int],
    *,
    span: Sequence[int],
    room: Sequence[int],
    free: bool,
    never: Sequence[int] = (),
    pairs: Callable[[Tensor], Tensor] = joint,
    stops: Callable[[float], float] = lambda p: p,
) -> dict[tuple[int, ...], float]:
    """Probability of every row that decoding can end with, by forward recursion: the sum over all ways to get there.

    Args:
        network: Anything with ``read`` and ``head``.
        start: [BOS] and the given tokens.
        span: For the gap right after each of them the number of its span; -1: nothing is inserted.
        room: For each gap, tokens that its span can still take. Without room left decoding ends.
        free: Whether decoding also ends where the network stops.
        never: Tokens that are never inserted.
        pairs: From the logits of the allowed gaps to the probabilities of (gap, token).
        stops: From the network's probability of stopping to the sampler's.

    With one token more room than texts have, the probabilities of the longest rows sum to the truncated tail.
    """
    ends: dict[tuple[int, ...], float] = defaultdict(float)
    level = {(tuple(start), tuple(span), tuple(room)): 1.0}
    while level:
        full = [state for state in level if not any(state[2])]
        for state in full:
            ends[state[0]] += level.pop(state)
        following: dict[Any, float] = defaultdict(float)
        if level:
            logits, stop_logits = _logits(network, [ids for ids, _, _ in level], never)
            for (state, reached), gaps, stop_logit in zip(level.items(), logits, stop_logits, strict=True):
                stop = stops(float(stop_logit.sigmoid())) if free else 0.0
                ends[state[0]] += reached * stop
                for after, p in _insertions(state, gaps, pairs):
                    following[after] += reached * (1 - stop) * p
        level = following
    return {ids: p for ids, p in ends.items() if p > 0}


def _insertions(state: Any, logits: Tensor, pairs: Callable[[Tensor], Tensor]) -> list[tuple[Any, float]]:
    ids, span, room = state
    allowed = [gap for gap in range(len(ids)) if room[gap] > 0]
    after = []
    for gap, probabilities in zip(allowed, pairs(logits[allowed]).tolist(), strict=True):
        left = [left - (other == span[gap]) for left, other in zip(room, span, strict=True)]
        copied = [(*values[: gap + 1], values[gap], *values[gap + 1 :]) for values in (span, left)]
        for token, p in enumerate(probabilities):
            if p > 0:
                after.append((((*ids[: gap + 1], token, *ids[gap + 1 :]), *copied), p))
    return after


def _logits(network: Any, rows: Sequence[Sequence[int]], never: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Of rows of one length, in fp64."""
    with torch.no_grad():
        states, stop_logits = network.read(torch.tensor([list(row) for row in rows]))
        logits = network.head(states).double()
    logits[..., list(never)] = -math.inf
    return logits, stop_logits.double()


class Step(NamedTuple):
    """What a network says when certain tokens of a row are missing."""

    log_p: dict[int, float]
    """Of inserting each missing token, by its place, into its gap."""
    log_stop: float
    log_continue: float


Steps = dict[frozenset[int], Step]
"""A step for every set of missing places."""


def insertion_steps(network: Any, ids: Sequence[int], *, span: Sequence[int], never: Sequence[int] = ()) -> Steps:
    """Every step on every way to a row.

    Args:
        network: Anything with ``read`` and ``head``.
        ids: The whole row, [BOS] first.
        span: The span that each token belongs to; -1: it is given. Tokens may be inserted into the gaps of a span,
            those at its two ends included, as long as one of its tokens is missing.
        never: Tokens that are never inserted.
    """
    places = [place for place, number in enumerate(span) if number >= 0]
    subsets = [frozenset(missing) for n in range(len(places) + 1) for missing in combinations(places, n)]
    return {missing: _step(network, ids, span, missing, never) for missing in subsets}


def _step(
    network: Any, ids: Sequence[int], span: Sequence[int], missing: Collection[int], never: Sequence[int]
) -> Step:
    kept = [place for place in range(len(ids)) if place not in missing]
    logits, stop_logits = _logits(network, [[ids[place] for place in kept]], never)
    open_spans = {span[place] for place in missing}
    allowed = [gap for gap, place in enumerate(kept) if open_spans & set(span[place : place + 2])]
    log_p = logits[0] - logits[0, allowed].logsumexp((0, 1)) if allowed else logits[0]
    gap_of = {place: sum(other < place for other in kept) - 1 for place in missing}
    log_stop, log_continue = (float(nn.functional.logsigmoid(sign * stop_logits[0])) for sign in (1, -1))
    return Step({place: float(log_p[gap, ids[place]]) for place, gap in gap_of.items()}, log_stop, log_continue)


def order_log_probabilities(steps: Steps, *, counts_stop: bool) -> Float64[Tensor, " orders"]:
    """Log-probability of building the row in each order; their sum of exponentials is p(row).

    Args:
        steps: Of the row.
        counts_stop: Whether the decisions to go on and to stop are part of the probability (event space ``open``).
    """
    places = max(steps, key=len)
    values = []
    for order in permutations(places):
        missing = [frozenset(order[i:]) for i in range(len(order) + 1)]
        value = sum(steps[now].log_p[place] for now, place in zip(missing, order, strict=False))
        if counts_stop:
            value += sum(steps[now].log_continue for now in missing[:-1]) + steps[missing[-1]].log_stop
        values.append(value)
    return torch.tensor(values, dtype=torch.float64)


def insertion_bound(steps: Steps, *, counts_stop: bool) -> float:
    """The bound on -log p(row), nats: sum over n of the mean over sets of n missing tokens, minus log L!."""
    n_places = max(map(len, steps))
    total = -math.lgamma(n_places + 1)
    for missing, step in steps.items():
        n, share = len(missing), 1 / math.comb(n_places, len(missing))
        if n:
            total -= share * (sum(step.log_p.values()) / n + counts_stop * step.log_continue)
        elif counts_stop:
            total -= step.log_stop
    return total
