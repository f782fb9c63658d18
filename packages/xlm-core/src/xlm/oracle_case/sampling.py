"""Draws from logits, and filters of tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xlm import noise, sampling
from xlm.oracle_case.parts import normal
from xlm.testing import oracles
from xlm.testing.oracles import DRAWS, Measured

DRAWN = "draws have the law of their logits"
LOW = "draws from bf16 logits have the law of these logits in fp64"
TOP_P = "top-p keeps the fewest tokens that reach p, the one that crosses it included"
FILTERS = "temperature, top-k and min-p keep what their definitions say"

P = torch.tensor([0.08, 0.5, 0.02, 0.25, 0.15], dtype=torch.float64)
"""Of five tokens; most probable first they are 1, 3, 4, 0, 2."""


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        DRAWN: _draws,
        LOW: partial(_draws, torch.bfloat16),
        TOP_P: _top_p,
        FILTERS: _filters,
    }


def _uniforms() -> Tensor:
    return noise.uniforms(torch.tensor([7]), DRAWS, dtype=torch.float64)[0]


def _draws(dtype: torch.dtype = torch.float64) -> Measured:
    logits = normal(40).mul(3).to(dtype)
    logits[5] = -math.inf
    drawn = sampling.draw(logits.expand(DRAWS, -1), _uniforms())
    return oracles.has_law(torch.bincount(drawn, minlength=40), logits.double().softmax(0))


def _kept(logits: Tensor, **options: Any) -> set[int]:
    filtered = sampling.TokenFilter(**options)(logits)
    return set(filtered.isfinite().nonzero().flatten().tolist())


def _top_p() -> Measured:
    expected = {0.3: {1}, 0.5: {1}, 0.6: {1, 3}, 0.8: {1, 3, 4}, 0.95: {0, 1, 3, 4}, 1.0: {0, 1, 2, 3, 4}}
    n = sum(_kept(P.log(), top_p=p) != kept for p, kept in expected.items())
    return oracles.none_of(n, f"of {len(expected)} sets of tokens differ")


def _filters() -> Measured:
    right = [
        _kept(P.log(), top_k=2) == {1, 3},
        _kept(P.log(), min_p=0.3) == {1, 3, 4},
        _kept(P.log(), temperature=0.0) == {1},
        _kept(P.log(), top_k=3, top_p=0.8) == {1, 3},  # 0.5 and 0.25 of 0.9 reach 0.8
    ]
    hot = sampling.TokenFilter(temperature=2.0)(P.log()).softmax(0)
    right.append(bool(torch.allclose(hot, P.sqrt() / P.sqrt().sum())))
    return oracles.none_of(right.count(False), f"of {len(right)} filters differ")
