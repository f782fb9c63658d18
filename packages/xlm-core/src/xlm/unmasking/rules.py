"""Which hidden positions are revealed next: an order of positions, and how many of them a call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.sampling import best_positions, entropy_scores, margin_scores, random_scores, top_probability_scores

Order = Literal["random", "top_probability", "margin", "entropy"]

SCORES = {"top_probability": top_probability_scores, "margin": margin_scores, "entropy": entropy_scores}


@dataclass(frozen=True)
class RevealRule:
    """An order of the hidden positions and a reveal schedule; every call reveals at least one position of every row.

    How certain the network is of a position is measured before the token filters.

    Args:
        order: ``random``: uniformly. ``top_probability``, ``margin`` (lead of the most probable token over the second)
            and ``entropy`` (least first): most certain first, ties to the first position.
        gumbel: tau >= 0. Above 0 the score is c + tau g, with c = log p of the most probable token, log of the margin,
            or minus the entropy in nats, and g standard Gumbel noise of its own for every row, position and step. 0
            leaves the order to the network.
        tokens_per_step: Positions a call.
        threshold: Instead: all positions whose most probable token is more probable than this; none is: the first in
            the order.
        factor: Instead: the k positions with the greatest top probabilities p_1 >= p_2 >= ..., for the largest k with
            (k + 1)(1 - p_k) < factor; none is: the first in the order (Fast-dLLM, arXiv:2505.22618).
        block_length: Positions of a block; blocks are filled from left to right, and all of the above holds within one.
            None: one block.
    """

    order: Order = "top_probability"
    gumbel: float = 0.0
    tokens_per_step: int = 1
    threshold: float | None = None
    factor: float | None = None
    block_length: int | None = None

    def __post_init__(self) -> None:
        self._check(
            self.order in get_args(Order), "order", f"must be one of {', '.join(get_args(Order))}", "use margin"
        )
        self._check(0 <= self.gumbel < math.inf, "gumbel", "must be 0 or more", "use 0 for an order without noise")
        self._check(self.gumbel == 0 or self.order != "random", "gumbel", "changes nothing of a random order", "use 0")
        self._check(self.tokens_per_step >= 1, "tokens_per_step", "must be 1 or more", "use 1 for the best quality")
        within = self.threshold is None or 0 <= self.threshold <= 1
        self._check(within, "threshold", "must lie in [0, 1]", "use 0.9, as Fast-dLLM does")
        self._check(self.factor is None or 0 < self.factor < math.inf, "factor", "must be above 0", "use 1.0")
        filled = self.block_length is None or self.block_length >= 1
        self._check(filled, "block_length", "must be 1 or more", "use null for one block")
        given = [name for name in ("threshold", "factor") if getattr(self, name) is not None]
        given += ["tokens_per_step"] if self.tokens_per_step > 1 else []
        if len(given) > 1:
            where, fix = f"predictor.{given[0]}", f"remove {' or '.join(given)}"
            raise UserError(f"cannot be combined with {given[1]}", where=where, value=getattr(self, given[0]), fix=fix)

    def _check(self, holds: bool, name: str, what: str, fix: str) -> None:
        if not holds:
            raise UserError(what, where=f"predictor.{name}", value=getattr(self, name), fix=fix)

    @property
    def deterministic(self) -> bool:
        """Whether the positions are a function of the visible tokens; then a text has one order, and an exact p."""
        return self.order != "random" and self.gumbel == 0

    @property
    def law(self) -> str:
        """What is drawn, in words that begin with ``exact`` or ``approximate``."""
        if self.deterministic:
            return "exact: a law of its own, that of a deterministic order"
        if self.order == "random" and self.tokens_per_step == 1 and not self.parallel:
            within = "" if self.block_length is None else " that fill blocks from left to right"
            return f"exact: the mean of the chain rule over all orders{within}"
        return "approximate: positions are drawn, and how probable a text is is not known"

    @property
    def asks_network(self) -> bool:
        """Whether logits are needed to choose positions."""
        return self.order != "random" or self.parallel

    @property
    def parallel(self) -> bool:
        """Whether certainty decides how many positions are revealed."""
        return self.threshold is not None or self.factor is not None

    def scores(self, logits: Float[Tensor, "rows vocab"], u: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Higher is revealed first; finite.

        Args:
            logits: Of hidden positions, without tokens that are never generated.
            u: One uniform number a position: of this step for Gumbel noise, the same in all steps for random orders.
        """
        if self.order == "random":
            return random_scores(u)
        certainty = SCORES[self.order](logits)
        if self.gumbel == 0:
            return certainty
        if self.order != "entropy":
            certainty = certainty.clamp_min(torch.finfo(certainty.dtype).tiny).log()
        noise = -(-u.clamp_min(2.0**-54).log()).log()
        return certainty + self.gumbel * noise.to(certainty.dtype)

    def choose(
        self, scores: Float[Tensor, "batch seq"], top_probability: Float[Tensor, "batch seq"] | None
    ) -> Bool[Tensor, "batch seq"]:
        """The positions to reveal.

        Args:
            scores: -inf where nothing is hidden.
            top_probability: Of the most probable token, below 0 where nothing is hidden; read by ``threshold`` and
                ``factor`` alone.
        """
        one = torch.full_like(scores[:, 0], self.tokens_per_step, dtype=torch.int64)
        first = best_positions(scores, one)
        if not self.parallel:
            return first
        assert top_probability is not None
        sure = self._sure(top_probability)
        return torch.where(sure.any(1, keepdim=True), sure, first)

    def _sure(self, p: Float[Tensor, "batch seq"]) -> Bool[Tensor, "batch seq"]:
        if self.threshold is not None:
            return p > self.threshold
        assert self.factor is not None
        ranked = p.sort(dim=1, descending=True, stable=True).values
        k = torch.arange(1, p.shape[1] + 1, device=p.device)
        n: Int[Tensor, " batch"] = ((ranked >= 0) & ((k + 1) * (1 - ranked) < self.factor)).sum(1)
        return best_positions(p.masked_fill(p < 0, -torch.inf), n)
