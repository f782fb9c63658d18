"""What is drawn, against laws by enumeration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from xlm.protocols import Collator, Example
from xlm.sampling import suppressed_ids
from xlm.testing import factories, oracles
from xlm.testing.laws import any_order_law, one_token_law, remasking_law
from xlm.testing.masked.parts import (
    LENGTH,
    LETTERS,
    TOKENIZER,
    VOCAB,
    Claim,
    MaskedParts,
    every_string,
    exact,
    inconsistent,
)
from xlm.testing.oracles import DRAWS, Measured, Oracle
from xlm.testing.toy import InconsistentDenoiser, TableDenoiser, digits, number

RANDOM_ORDER = "in random order an inconsistent network's samples have the mean law of all orders"
NEUTRAL_FILTERS = "token filters that keep everything change no draw"
NO_CONTROL_TOKENS = "nothing is generated that the likelihood leaves out"
ROWS_ALONE = "a prediction does not depend on its batch"
GUIDED = "guidance has the law of the network with guided conditionals"
UNGUIDED = "guidance of 0 changes no draw"
HAS_LAW, HAS_MASS = "samples have the law that is claimed", "exact likelihoods sum to 1"

NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_k": VOCAB, "top_p": 1.0, "min_p": 0.0}
"""Token filters that keep everything."""
TEMPLATE = {"input_ids": [LETTERS[i] for i in (2, 3, 0, 3)], "fixed": [1, 0, 1, 0]}
"""The first and the third letter are given."""


def measures() -> dict[str, Callable[[MaskedParts], Measured]]:
    """By the statement that each measures."""
    return {
        "in random order samples of the exact posterior have its table's law": _posterior_law,
        RANDOM_ORDER: _mean_over_orders,
        "a template is filled in by the conditional law": _template_law,
        "after prompts of unequal length the law stays": _prompt_law,
        "draws from bf16 logits have the law of these logits": _bf16_law,
        NEUTRAL_FILTERS: _neutral_filters,
        GUIDED: _guided_law,
        UNGUIDED: _unguided,
        NO_CONTROL_TOKENS: _no_control_tokens,
        ROWS_ALONE: _rows_stand_alone,
    }


def claimed(parts: MaskedParts, claim: Claim) -> list[Oracle]:
    """That a sampler has the law it claims, and that what it states is one."""
    law = Oracle(f"{claim.name}: {HAS_LAW}", partial(_claimed_law, parts, claim), slow=True)
    mass = Oracle(f"{claim.name}: {HAS_MASS}", partial(_claimed_mass, parts, claim))
    return [law] if claim.law else [law, mass]


def gumbel_law(model: TableDenoiser, gumbel: float) -> Tensor:
    """Of ``order=top_probability``: the greatest log p + tau x Gumbel noise is at i in proportion to p_i^(1/tau)."""
    return one_token_law(model, model.log_conditional.detach().exp().amax(-1) ** (1 / gumbel))


def remasked_law(model: TableDenoiser, sigma: Callable[[float], float], steps: int) -> Tensor:
    """Of the reverse process with remasking in even steps; ``sigma`` of sigma_max."""
    rates = [1 - i / steps for i in range(steps + 1)]
    most = [min(1.0, v / (1 - u)) if u < 1 else 1.0 for u, v in pairwise(rates)]
    return remasking_law(model, rates, [sigma(value) for value in most])


def counts(sampler: Any, collate: Collator, examples: Sequence[Example]) -> Int[Tensor, " outcomes"]:
    """How often each string is drawn by a sampler of a toy, and at the end how often something else is."""
    ids = sampler.predict(collate(list(examples)))["ids"]
    strange = (sampler.model.digit[ids] == sampler.model.n_letters).any(1)
    return torch.cat([sampler.model.count(ids[~strange]), strange.sum()[None]])


def drawn(parts: MaskedParts, sampler: Any) -> Int[Tensor, " outcomes"]:
    """As ``counts``, without anything given."""
    return counts(sampler, parts.canvases(LENGTH), factories.unconditional_examples(DRAWS))


def _claimed_law(parts: MaskedParts, claim: Claim) -> Measured:
    model = inconsistent()
    sampler = claim.sampler(model)
    law = claim.law(model) if claim.law else (-sampler.log_likelihood(every_string(parts))["nll"]).exp()
    return oracles.has_law(drawn(parts, sampler), law)


def _claimed_mass(parts: MaskedParts, claim: Claim) -> Measured:
    return oracles.has_mass(claim.sampler(inconsistent()).log_likelihood(every_string(parts))["nll"])


def _posterior_law(parts: MaskedParts) -> Measured:
    model = exact()
    return oracles.has_law(drawn(parts, parts.predictor(model)), model.table.flatten())


def _mean_over_orders(parts: MaskedParts) -> Measured:
    model = inconsistent()
    return oracles.has_law(drawn(parts, parts.predictor(model)), any_order_law(model))


def _template_law(parts: MaskedParts) -> Measured:
    model = exact()
    strings = model.all_strings()
    p = model.table.flatten() * ((strings[:, 0] == LETTERS[2]) & (strings[:, 2] == LETTERS[0]))
    rows = factories.keyed([TEMPLATE] * DRAWS)
    return oracles.has_law(counts(parts.predictor(model), parts.gaps(LENGTH), rows), p / p.sum())


def _prompt_law(parts: MaskedParts) -> Measured:
    model = exact()
    rows = factories.keyed([{"prompt_ids": LETTERS[: i % 3]} for i in range(DRAWS)])
    return oracles.has_law(counts(parts.predictor(model), parts.prompts(), rows), model.table.flatten())


class _InBf16(InconsistentDenoiser):
    """The logits rounded, as a network in low precision gives them."""

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        return super().hidden(input_ids).bfloat16()


def _bf16_law(parts: MaskedParts) -> Measured:
    low, precise = _InBf16(token_ids=LETTERS, vocab_size=VOCAB), inconsistent()
    low.head = low.head.bfloat16()
    precise.log_conditional.data = precise.log_conditional.bfloat16().double().log_softmax(-1)
    return oracles.has_law(drawn(parts, parts.predictor(low)), any_order_law(precise))


def guided(model: TableDenoiser, w: float) -> TableDenoiser:
    """A toy whose conditionals are l_u + (1 + w)(l_c - l_u), l_u those without what ``TEMPLATE`` gives."""
    blind = digits(model.n_letters + 1, model.length)
    blind[:, [i for i, fixed in enumerate(TEMPLATE["fixed"]) if fixed]] = model.n_letters
    conditional = model.log_conditional.detach()
    unconditional = conditional[number(blind, model.n_letters + 1)]
    log_p = (unconditional + (1 + w) * (conditional - unconditional)).log_softmax(-1)
    return TableDenoiser(log_p, token_ids=LETTERS, vocab_size=VOCAB)


def _guided_law(parts: MaskedParts) -> Measured:
    model = inconsistent()
    given = zip(TEMPLATE["input_ids"], TEMPLATE["fixed"], strict=True)
    start = [LETTERS.index(token) if fixed else None for token, fixed in given]
    law = any_order_law(guided(model, 1.5), start=start)
    sampler = parts.predictor(model, guidance=1.5)
    return oracles.has_law(counts(sampler, parts.gaps(LENGTH), factories.keyed([TEMPLATE] * DRAWS)), law)


def _unguided(parts: MaskedParts) -> Measured:
    batch = parts.gaps(LENGTH)(factories.keyed([TEMPLATE] * 1000))
    plain, zero = (parts.predictor(inconsistent(), **options).predict(batch) for options in ({}, {"guidance": 0.0}))
    n = int((plain["ids"] != zero["ids"]).sum() + (plain["n_calls"] != zero["n_calls"]).sum())
    return oracles.none_of(n, "tokens and calls that differ")


def _neutral_filters(parts: MaskedParts) -> Measured:
    batch = parts.canvases(LENGTH)(factories.unconditional_examples(1000))
    plain, neutral = (parts.predictor(inconsistent(), **options).predict(batch) for options in ({}, NEUTRAL))
    n = int((plain["ids"] != neutral["ids"]).sum())
    return oracles.none_of(n, "tokens that differ among 4,000")


class _LikesControlTokens(InconsistentDenoiser):
    """Finds pad, mask and begin more probable than any letter."""

    def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Tensor:
        logits: Tensor = super().hidden(input_ids)
        logits[..., suppressed_ids(TOKENIZER)] = 20.0
        return logits


def _no_control_tokens(parts: MaskedParts) -> Measured:
    sampler = parts.predictor(_LikesControlTokens(token_ids=LETTERS, vocab_size=VOCAB))
    return oracles.generates_no_control_tokens(sampler, parts.canvases(LENGTH), factories.unconditional_examples(200))


def _rows_stand_alone(parts: MaskedParts) -> Measured:
    rows = factories.seq2seq_examples([3, 0, 1, 2, 3], [1] * 5, n_letters=4)
    return oracles.rows_stand_alone(parts.predictor(parts.network()), parts.prompts(), rows)
