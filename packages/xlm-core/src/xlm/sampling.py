"""Choosing tokens and positions: filters, draws, position rules. Pure functions; the caller brings the random numbers.

Probabilities are computed in fp32 or better whatever the logits' type, so draws from bf16 logits have the law that
these logits state. Where two candidates are equal the lowest index wins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from xlm.errors import UserError
from xlm.protocols import Tokenizer


def suppressed_ids(tokenizer: Tokenizer) -> Int[Tensor, " n"]:
    """Sorted ids that are never generated: pad, mask, bos, cls; unless the id also ends a text (GPT-2: bos is eos)."""
    names = ("pad_token_id", "mask_token_id", "bos_token_id", "cls_token_id")
    ids = {getattr(tokenizer, name, None) for name in names} - {tokenizer.eos_token_id, None}
    return torch.tensor(sorted(ids), dtype=torch.int64)


def suppress(logits: Float[Tensor, "*batch vocab"], ids: Int[Tensor, " n"]) -> Float[Tensor, "*batch vocab"]:
    """Remove tokens from the softmax: their logits become -inf."""
    return logits.index_fill(-1, ids, -math.inf)


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def keep_top_k(logits: Float[Tensor, "*batch vocab"], k: int | None) -> Float[Tensor, "*batch vocab"]:
    """Set to -inf all but the ``k`` greatest logits; None, or ``k`` >= vocab, keeps every token."""
    if k is None or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k).values[..., -1:]
    above, equal = logits > threshold, logits == threshold
    room = k - above.sum(-1, keepdim=True)
    return logits.masked_fill(~(above | equal & (equal.cumsum(-1) <= room)), -math.inf)


def keep_top_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    """Set to -inf every token outside the smallest set of most probable tokens whose probability reaches ``p``.

    The token that crosses ``p`` is kept, so one token always is (Holtzman et al., 2020); 1 keeps every token.
    """
    if p >= 1:
        return logits
    probabilities, order = _precise(logits).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(drop, -math.inf)


def keep_min_p(logits: Float[Tensor, "*batch vocab"], p: float) -> Float[Tensor, "*batch vocab"]:
    """Set to -inf every token less probable than ``p`` times the most probable one; 0 keeps every token."""
    if p <= 0:
        return logits
    precise = _precise(logits)
    return logits.masked_fill(precise < precise.amax(-1, keepdim=True) + math.log(p), -math.inf)


def keep_greatest(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Set to -inf all but the greatest logit: a draw is then greedy."""
    best = logits.argmax(-1, keepdim=True)  # the first of equals
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))


def penalise_repetition(
    logits: Float[Tensor, "batch vocab"],
    previous: Int[Tensor, "batch seq"],
    penalty: float,
    valid: Bool[Tensor, "batch seq"],
) -> Float[Tensor, "batch vocab"]:
    """Make tokens that occurred less likely (CTRL, Keskar et al., 2019).

    Positive logits are divided by ``penalty``, others multiplied, so that both fall.

    Args:
        logits: Scores of the next token.
        previous: Tokens so far.
        penalty: 1 or more; 1 changes nothing, CTRL uses 1.2.
        valid: Where ``previous`` holds a token that counts (no padding).
    """
    nowhere = logits.shape[-1]
    seen = torch.zeros(len(logits), nowhere + 1, dtype=torch.bool, device=logits.device)
    seen = seen.scatter(1, torch.where(valid, previous, nowhere), True)[:, :-1]
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@dataclass(frozen=True)
class TokenFilter:
    """From logits to the distribution that is drawn from: temperature, then top-k, top-p, min-p, each on what is left.

    Args:
        temperature: Divides the logits; 1 changes nothing, 0 leaves only the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1]; 1 keeps all.
        min_p: Least probability to keep, relative to the most probable token, in [0, 1]; 0 keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        natural = "use 1.0 for the model's own distribution, 0 for the most probable token"
        every = "to keep every token"
        self._check(0 <= self.temperature < math.inf, "temperature", "must be 0 or more", natural)
        self._check(self.top_k is None or self.top_k >= 1, "top_k", "must be 1 or more", f"use null {every}")
        self._check(0 < self.top_p <= 1, "top_p", "must lie in (0, 1]", f"use 1.0 {every}")
        self._check(0 <= self.min_p <= 1, "min_p", "must lie in [0, 1]", f"use 0 {every}")

    def _check(self, holds: bool, name: str, what: str, fix: str) -> None:
        if not holds:
            raise UserError(what, where=f"predictor.{name}", value=getattr(self, name), fix=fix)

    def __call__(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """Filtered logits, in fp32 or better."""
        logits = _precise(logits)
        if self.temperature == 0:
            return keep_greatest(logits)
        if self.temperature != 1:
            logits = logits / self.temperature
        return keep_min_p(keep_top_p(keep_top_k(logits, self.top_k), self.top_p), self.min_p)


def draw(logits: Float[Tensor, "rows vocab"], u: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """One token a row from softmax(logits), by the inverse of its cumulative distribution.

    Args:
        logits: Filtered or plain; a logit of -inf is never drawn.
        u: One uniform number in [0, 1) a row; float64, or rare tokens are drawn at the wrong rate.
    """
    logits = _precise(logits)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    target = u.to(torch.float64)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True).squeeze(-1)


def random_scores(u: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Position rule: uniformly random order."""
    return u


def top_probability_scores(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Position rule: probability of the most probable token, in [0, 1]."""
    return _precise(logits).softmax(-1).amax(-1)


def margin_scores(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Position rule: how far the most probable token leads the second, in [0, 1] (Kim et al., 2025)."""
    best = _precise(logits).softmax(-1).topk(2).values
    return best[..., 0] - best[..., 1]


def entropy_scores(logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Position rule: minus the entropy, in nats."""
    entropy: Tensor = torch.special.entr(_precise(logits).softmax(-1)).sum(-1)
    return -entropy


def best_positions(scores: Float[Tensor, "batch seq"], n: Int[Tensor, " batch"]) -> Bool[Tensor, "batch seq"]:
    """The ``n`` positions of each row with the highest scores, or all eligible ones if fewer; -inf: not eligible."""
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (rank < n[:, None]) & (scores > -math.inf)
