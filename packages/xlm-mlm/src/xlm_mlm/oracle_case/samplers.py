"""What MLM's samplers claim to draw."""

from __future__ import annotations

from functools import partial
from typing import Any

from xlm.testing import masked
from xlm.testing.laws import any_order_law
from xlm.testing.masked import Claim

from xlm_mlm.oracle_case.parts import in_order, remasking

PLAIN = "mlm order=margin"
REMASKED = "mlm_remdm strategy=cap eta=0.3"
HEATED = "mlm order=top_probability tokens_per_step=2 temperature=0.7"


def claims() -> list[Claim]:
    """Every order that is a function of what is visible states its own law, exactly."""
    options: list[dict[str, Any]] = [
        {"order": "top_probability"},
        {"order": "margin"},
        {"order": "entropy"},
        {"order": "top_probability", "tokens_per_step": 2, "temperature": 0.7},
        {"order": "margin", "threshold": 0.5},
        {"order": "margin", "factor": 1.4},
        {"order": "margin", "block_length": 2},
    ]
    stated = [
        Claim(" ".join(["mlm", *(f"{k}={v}" for k, v in given.items())]), partial(in_order, **given))
        for given in options
    ]
    gumbel = partial(in_order, order="top_probability", gumbel=0.5)
    blocks = partial(in_order, block_length=2)
    return [
        *stated,
        Claim("mlm order=top_probability gumbel=0.5", gumbel, partial(masked.gumbel_law, gumbel=0.5)),
        Claim("mlm order=random block_length=2", blocks, partial(any_order_law, block_length=2)),
        Claim(REMASKED, remasking, partial(masked.remasked_law, sigma=lambda most: min(0.3, most), steps=4)),
    ]
