"""The oracles of a family that fills in hidden positions, on toys whose laws can be enumerated.

Strings have four letters out of four. An ``ExactDenoiser`` knows the posterior of a table, so what is drawn from it
must have the table's law; an ``InconsistentDenoiser`` has conditionals of no joint law, as a trained network does, so
every order has a law of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from math import comb, sqrt
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from xlm.protocols import Collator, Example
from xlm.sampling import suppressed_ids
from xlm.testing import factories, oracles
from xlm.testing.laws import any_order_law, one_token_law, remasking_law
from xlm.testing.oracles import DRAWS, Measured, Oracle
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, TableDenoiser, digits, entropy, number, random_table

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
LETTERS, VOCAB, LENGTH = [4, 5, 6, 7], 8, 4

RANDOM_ORDER = "in random order an inconsistent network's samples have the mean law of all orders"
NEUTRAL_FILTERS = "token filters that keep everything change no draw"
NO_CONTROL_TOKENS = "nothing is generated that the likelihood leaves out"
ROWS_ALONE = "a prediction does not depend on its batch"
BOUND = "the any-order bound is the mean over hidden sets"
ADDS_UP = "the loss adds up over texts of unequal length"
GRADIENT = "the gradient of the loss is that of finite differences"
NO_LEAK = "no input says what is hidden"
GIVEN_STAYS = "prompts, given tokens and padding stay as they are"
ANSWERS_UNSEEN = "inputs to complete do not depend on the answer"
GUIDED = "guidance has the law of the network with guided conditionals"
UNGUIDED = "guidance of 0 changes no draw"
HAS_LAW, HAS_MASS = "samples have the law that is claimed", "exact likelihoods sum to 1"

NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_k": VOCAB, "top_p": 1.0, "min_p": 0.0}
"""Token filters that keep everything."""


@dataclass(frozen=True, kw_only=True)
class MaskedParts:
    """How a family builds its parts, for ``TOKENIZER``; every measurement builds them anew.

    Args:
        network: A small one in fp64 and evaluation mode, for rows of 8 tokens or more.
        loss: From a network.
        predictor: From a network and options (token filters, ``guidance``), of a sampler that reveals one position a
            call in random order.
        texts: Role ``lm``, from ``max_length`` and ``event_space``.
        pairs: Role ``seq2seq``, for prompts and targets of less than 5 tokens.
        templates: Role ``infill``, from ``max_length``.
        canvases: Role ``unconditional``, from ``max_length``.
        prompts: Role ``seq2seq_prediction``, for prompts of up to 4 tokens and a canvas of 4.
        gaps: Role ``infill_prediction``, from ``max_length``.
        told_mask_rate: Whether the network is told each row's ``mask_rate``.
    """

    network: Callable[[], nn.Module]
    loss: Callable[[Any], Any]
    predictor: Callable[..., Any]
    texts: Callable[[int, str], Collator]
    pairs: Callable[[], Collator]
    templates: Callable[[int], Collator]
    canvases: Callable[[int], Collator]
    prompts: Callable[[], Collator]
    gaps: Callable[[int], Collator]
    told_mask_rate: bool = False


@dataclass(frozen=True)
class Claim:
    """A sampler and the law that it says it has.

    Args:
        name: The sampler's, with its options.
        sampler: From a network.
        law: Probabilities of all strings under a network; None: those that ``log_likelihood`` states, which then must
            sum to 1.
    """

    name: str
    sampler: Callable[[Any], Any]
    law: Callable[[TableDenoiser], Tensor] | None = None


def exact() -> ExactDenoiser:
    """Knows the posterior."""
    return ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=VOCAB)


def inconsistent() -> InconsistentDenoiser:
    """Belongs to no joint law."""
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB)


def gumbel_law(model: TableDenoiser, gumbel: float) -> Tensor:
    """Of ``order=top_probability``: the greatest log p + tau x Gumbel noise is at i in proportion to p_i^(1/tau)."""
    return one_token_law(model, model.log_conditional.detach().exp().amax(-1) ** (1 / gumbel))


def remasked_law(model: TableDenoiser, sigma: Callable[[float], float], steps: int) -> Tensor:
    """Of the reverse process with remasking in even steps; ``sigma`` of sigma_max."""
    rates = [1 - i / steps for i in range(steps + 1)]
    most = [min(1.0, v / (1 - u)) if u < 1 else 1.0 for u, v in pairwise(rates)]
    return remasking_law(model, rates, [sigma(value) for value in most])


def masked_oracles(parts: MaskedParts, claims: Sequence[Claim]) -> list[Oracle]:
    """What holds of every masked family, and of its samplers what they claim."""
    measures: dict[str, Callable[[MaskedParts], Measured]] = {
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
        "the any-order bound of the exact posterior is its entropy": _bound_is_entropy,
        BOUND: _bound_by_enumeration,
        "a likelihood does not depend on its batch": _likelihoods_stand_alone,
        ADDS_UP: _adds_up_texts,
        "the loss adds up over prompts and targets": _adds_up_pairs,
        GRADIENT: _gradient,
        NO_LEAK: _nothing_leaks,
        GIVEN_STAYS: _given_stays,
        ANSWERS_UNSEEN: _answers_unseen,
        "padding changes no logit": _padding,
        "packed documents are as if separate": _packing,
    }
    general = [Oracle(name, partial(measure, parts)) for name, measure in measures.items()]
    return [*general, *(oracle for claim in claims for oracle in _claimed(parts, claim))]


def _claimed(parts: MaskedParts, claim: Claim) -> list[Oracle]:
    law = Oracle(f"{claim.name}: {HAS_LAW}", partial(_claimed_law, parts, claim))
    mass = Oracle(f"{claim.name}: {HAS_MASS}", partial(_claimed_mass, parts, claim))
    return [law] if claim.law else [law, mass]


# What is drawn


def counts(sampler: Any, collate: Collator, examples: Sequence[Example]) -> Int[Tensor, " outcomes"]:
    """How often each string is drawn by a sampler of a toy, and at the end how often something else is."""
    ids = sampler.predict(collate(list(examples)))["ids"]
    strange = (sampler.model.digit[ids] == sampler.model.n_letters).any(1)
    return torch.cat([sampler.model.count(ids[~strange]), strange.sum()[None]])


def drawn(parts: MaskedParts, sampler: Any) -> Int[Tensor, " outcomes"]:
    """As ``counts``, without anything given."""
    return counts(sampler, parts.canvases(LENGTH), factories.unconditional_examples(DRAWS))


def every_string(parts: MaskedParts) -> Mapping[str, Any]:
    """All strings as windows, for likelihoods."""
    rows = [{"input_ids": ids} for ids in exact().all_strings().tolist()]
    return parts.texts(LENGTH, "window")(factories.keyed(rows))


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


TEMPLATE = {"input_ids": [LETTERS[i] for i in (2, 3, 0, 3)], "fixed": [1, 0, 1, 0]}
"""The first and the third letter are given."""


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


# What a text costs


def bounds(model: TableDenoiser) -> Float64[Tensor, " strings"]:
    """The any-order bound of every string in nats, by enumeration of all hidden sets."""
    strings = digits(model.n_letters, model.length)
    total = torch.zeros(len(strings), dtype=torch.float64)
    for k in range(1, model.length + 1):
        for chosen in combinations(range(model.length), k):
            at = list(chosen)
            pattern = strings.clone()
            pattern[:, at] = model.n_letters
            log_p = model.log_conditional.detach()[number(pattern, model.n_letters + 1)]
            cost = -log_p.gather(2, strings[..., None])[:, at, 0].sum(1)
            total += cost / (k * comb(model.length, k))
    return total


def _expected_bound(parts: MaskedParts, model: TableDenoiser, p: Tensor) -> tuple[float, float]:
    """The estimate and its standard error, averaged over strings."""
    result = parts.predictor(model).log_likelihood(every_string(parts), draws=64)
    return float((p * result["nll"]).sum()), sqrt(float((p**2 * result["mc_variance"]).sum()))


def _bound_is_entropy(parts: MaskedParts) -> Measured:
    model = exact()
    estimate, error = _expected_bound(parts, model, model.table.flatten())
    return oracles.within_error(estimate, entropy(model.table), error)


def _bound_by_enumeration(parts: MaskedParts) -> Measured:
    model = inconsistent()
    p = torch.full((len(bounds(model)),), 1 / len(bounds(model)), dtype=torch.float64)
    estimate, error = _expected_bound(parts, model, p)
    return oracles.within_error(estimate, float((p * bounds(model)).sum()), error)


def _likelihoods_stand_alone(parts: MaskedParts) -> Measured:
    return oracles.likelihoods_stand_alone(parts.predictor(parts.network()), parts.pairs(), _pairs())


# What is learnt


def _pairs() -> list[Example]:
    return factories.seq2seq_examples([3, 0, 1, 4], [4, 1, 2, 0], n_letters=4)


def _texts() -> list[Example]:
    return factories.lm_examples([3, 7, 5, 0], n_letters=4)


def _adds_up_texts(parts: MaskedParts) -> Measured:
    return oracles.adds_up(parts.loss(parts.network()), parts.texts(8, "open"), _texts())


def _adds_up_pairs(parts: MaskedParts) -> Measured:
    return oracles.adds_up(parts.loss(parts.network()), parts.pairs(), _pairs())


def _gradient(parts: MaskedParts) -> Measured:
    return oracles.has_gradient(parts.loss(parts.network()), parts.texts(8, "open")(_texts()))


def hidden(batch: Mapping[str, Any]) -> Bool[Tensor, "batch seq"]:
    """Which tokens the loss is of."""
    ids: Tensor = batch["input_ids"]
    return torch.zeros(ids.numel(), dtype=torch.bool).index_fill(0, batch["rows"], True).view_as(ids)


def _nothing_leaks(parts: MaskedParts) -> Measured:
    collate, examples = parts.texts(8, "window"), factories.lm_examples([8] * 50, n_letters=4)
    batch = collate(examples)
    others = batch["target_ids"].clone()
    others[hidden(batch)] = LETTERS[0] + (others[hidden(batch)] - LETTERS[0] + 1) % len(LETTERS)
    changed = collate([{**row, "input_ids": ids} for row, ids in zip(examples, others.tolist(), strict=True)])
    n = int((changed["input_ids"] != batch["input_ids"]).sum())
    return oracles.none_of(n, f"inputs that change with {int(hidden(batch).sum())} hidden tokens")


def _given_stays(parts: MaskedParts) -> Measured:
    infill = factories.infill_examples([3, 8, 5] * 10, n_letters=4)
    n = 0
    for batch in (parts.pairs()(_pairs()), parts.templates(8)(infill), parts.texts(8, "open")(_texts())):
        given = ~batch["predicted"]
        n += int((batch["input_ids"] != batch["target_ids"])[given].sum())
        n += int((batch["input_ids"] != batch["target_ids"])[~hidden(batch)].sum())
    return oracles.none_of(n, "tokens that are another in the input")


def _answers_unseen(parts: MaskedParts) -> Measured:
    def differences(collate: Collator, examples: list[Example], others: list[Example]) -> int:
        left, right = collate(examples), collate(others)
        return sum(
            int((value != right[name]).sum()) if value.shape == right[name].shape else value.numel()
            for name, value in left.items()
            if isinstance(value, Tensor)
        )

    pairs, infill = _pairs(), factories.infill_examples([3, 8, 5], n_letters=4)
    flipped = [
        {**row, "input_ids": [i if fixed else 11 - i for i, fixed in zip(row["input_ids"], row["fixed"], strict=True)]}
        for row in infill
    ]
    n = differences(parts.prompts(), pairs, [{**row, "target_ids": [LETTERS[1]]} for row in pairs])
    return oracles.none_of(n + differences(parts.gaps(8), infill, flipped), "entries that change with the answer")


# What the network reads


def _ids(n_rows: int = 3, length: int = 6) -> Int[Tensor, "rows seq"]:
    return torch.tensor([row["input_ids"] for row in factories.lm_examples([length] * n_rows, n_letters=4)])


def _reader(parts: MaskedParts) -> Callable[..., Float[Tensor, "rows seq vocab"]]:
    """Logits of one network."""
    network = parts.network()

    def logits(ids: Tensor, attention_mask: Tensor | None = None, **where: Tensor) -> Tensor:
        told = {"mask_rate": torch.full((len(ids),), 0.5)} if parts.told_mask_rate else {}
        read: Tensor = network(ids, attention_mask, **where, **told).detach()
        return read

    return logits


def _padding(parts: MaskedParts) -> Measured:
    logits, ids = _reader(parts), _ids()
    real = torch.tensor([[False] * 2 + [True] * 6] * len(ids))
    padded = torch.cat([ids[:, :2], ids], 1)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    return oracles.equal(logits(padded, real, positions=positions)[:, 2:], logits(ids))


def _packing(parts: MaskedParts) -> Measured:
    logits, ids = _reader(parts), _ids()
    segments = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand_as(ids)
    positions = torch.tensor([[0, 1, 0, 1, 2, 3]]).expand_as(ids)
    packed = logits(ids, positions=positions, segments=segments)
    return oracles.equal(packed, torch.cat([logits(ids[:, :2]), logits(ids[:, 2:])], 1))
