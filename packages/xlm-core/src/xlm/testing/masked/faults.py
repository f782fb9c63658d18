"""Deliberate faults of what masked families share (``xlm.unmasking``, ``xlm.sampling``), each with who notices it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xlm.sampling import TokenFilter
from xlm.testing.faults import no_ids
from xlm.testing.masked import likelihood, samplers
from xlm.testing.masked.parts import LENGTH, TOKENIZER, VOCAB
from xlm.testing.oracles import Mutation
from xlm.unmasking.batch import REVEAL_STREAM
from xlm.unmasking.fill import TokenRule

FILL, DENOISER, LIKELIHOOD = "xlm.unmasking.fill", "xlm.unmasking.denoiser", "xlm.unmasking.likelihood"


def masked_mutations() -> list[Mutation]:
    """Faults of samplers and likelihoods."""
    return [
        Mutation("the mask token can be generated", {f"{DENOISER}.suppressed_ids": no_ids}, samplers.NO_CONTROL_TOKENS),
        Mutation(
            "probabilities stand where logits belong",
            {f"{DENOISER}.Denoiser.logits": _probabilities},
            samplers.RANDOM_ORDER,
        ),
        Mutation(
            "the last token is the most probable one",
            {f"{FILL}.Filling.reveal": _greedy_at_last},
            samplers.RANDOM_ORDER,
        ),
        Mutation(
            "tokens and order share their random numbers",
            {f"{FILL}.TOKEN_STREAM": lambda _: REVEAL_STREAM},
            samplers.RANDOM_ORDER,
        ),
        Mutation(
            "noise is keyed by the place in the batch",
            {f"{FILL}.placed_uniforms": _keyed_by_batch},
            samplers.ROWS_ALONE,
        ),
        Mutation(
            "keeping as many tokens as there are drops one",
            {"xlm.sampling.keep_top_k": _one_less},
            samplers.NEUTRAL_FILTERS,
        ),
        Mutation("guidance goes w instead of 1 + w", {f"{DENOISER}.Denoiser._guided": _weaker}, samplers.GUIDED),
        Mutation(
            "hidden sets of all sizes weigh the same", {f"{LIKELIHOOD}.any_order_bound": _unweighted}, likelihood.BOUND
        ),
    ]


def remasking_mutations(claim: str) -> list[Mutation]:
    """Faults of remasking, for the claim of a sampler that remasks."""
    chances = {"xlm.unmasking.remask.Remasking.chances": _half}
    return [Mutation("a step hides again half as much as it says", chances, f"{claim}: {samplers.HAS_LAW}")]


def order_mutations(plain: str, heated: str) -> list[Mutation]:
    """Faults of exact likelihoods, for the claims of a deterministic order without and with a temperature."""
    return [
        Mutation(
            "the exact likelihood ignores the temperature",
            {f"{LIKELIHOOD}._log_probabilities": _unfiltered},
            f"{heated}: {samplers.HAS_LAW}",
        ),
        Mutation(
            "the exact likelihood takes positions from left to right",
            {f"{LIKELIHOOD}.next_by_rule": _left_to_right},
            f"{plain}: {samplers.HAS_LAW}",
        ),
        Mutation(
            "the exact likelihood sees what it predicts",
            {f"{LIKELIHOOD}.next_by_rule": _unhidden},
            f"{plain}: {samplers.HAS_MASS}",
        ),
    ]


def leaking(call: Any) -> Any:
    """The first token stays visible; of a method that makes a batch."""

    def wrong(self: Any, *args: Any) -> Any:
        batch = call(self, *args)
        seen = batch["input_ids"].clone()
        seen[:, 0] = batch["target_ids"][:, 0]
        return {**batch, "input_ids": seen}

    return wrong


def hiding_prompts(call: Any) -> Any:
    """Everything is hidden; of a method that makes a batch from examples and their layout."""
    return lambda self, examples, layout: (
        call(self, examples, layout) | {"input_ids": torch.full_like(layout.ids, TOKENIZER.mask_token_id)}
    )


def squared(uniforms: Any) -> Any:
    """Uniform numbers that are too small."""
    return lambda *args, **options: uniforms(*args, **options).square()


def filled(templates_to_fill: Any) -> Any:
    """Of ``templates_to_fill``: the first row is filled in already."""

    def wrong(examples: Any, **options: Any) -> Any:
        batch = templates_to_fill(examples, **options)
        seen = batch["input_ids"].clone()
        seen[0, : len(examples[0]["input_ids"])] = torch.tensor(examples[0]["input_ids"])
        return {**batch, "input_ids": seen}

    return wrong


def _probabilities(logits: Any) -> Any:
    return lambda *args, **options: logits(*args, **options).softmax(-1)


def _greedy_at_last(reveal: Any) -> Any:
    def wrong(filling: Any, step: int, *args: Any, **options: Any) -> None:
        drawn = filling.tokens
        if step == LENGTH - 1:
            filling.tokens = TokenRule(TokenFilter(temperature=0.0))
        reveal(filling, step, *args, **options)
        filling.tokens = drawn

    return wrong


def _keyed_by_batch(placed_uniforms: Any) -> Any:
    def wrong(batch: Any, stream: int) -> Tensor:
        keys = torch.arange(len(batch["noise_key"]))
        uniforms: Tensor = placed_uniforms({**batch, "noise_key": keys}, stream)
        return uniforms

    return wrong


def _one_less(keep_top_k: Any) -> Any:
    return lambda logits, k: keep_top_k(logits, None if k is None else k - VOCAB + 1)


def _unweighted(any_order_bound: Any) -> Any:
    """The mean over k of the hidden tokens' mean cost: a factor N / k where the sizes are drawn evenly is lost."""

    def wrong(cross_entropy: Any, predicted: Tensor, *args: Any, **options: Any) -> Any:
        def halved(hidden: Tensor, u: Tensor) -> Tensor:
            n = predicted.sum(1)
            cost: Tensor = cross_entropy(hidden, u) * hidden.sum(1) / n
            return cost

        return any_order_bound(halved, predicted, *args, **options)

    return wrong


def _weaker(guided: Any) -> Any:
    def wrong(denoiser: Any, states: Tensor) -> Any:
        weaker = replace(denoiser, guidance=denoiser.guidance - 1) if denoiser.guidance > 1 else denoiser
        return guided(weaker, states)

    return wrong


def _half(chances: Any) -> Any:
    return lambda *args: chances(*args) / 2


def _unfiltered(log_probabilities: Any) -> Any:
    return lambda denoiser, token_filter, *args: log_probabilities(denoiser, TokenFilter(), *args)


def _left_to_right(next_by_rule: Any) -> Any:
    def wrong(denoiser: Any, batch: Any, ids: Tensor, hidden: Tensor, rule: Any, **options: Any) -> Any:
        first = hidden & (hidden.cumsum(1) == 1)
        return next_by_rule(denoiser, batch, ids, first, replace(rule, tokens_per_step=1), **options)

    return wrong


def _unhidden(next_by_rule: Any) -> Any:
    """The network reads the row with every second hidden token in it."""

    def wrong(denoiser: Any, batch: Any, ids: Tensor, hidden: Tensor, rule: Any, **options: Any) -> Any:
        seen = ids.clone()
        seen[:, ::2] = batch["target_ids"][:, ::2]
        return next_by_rule(denoiser, batch, seen, hidden, rule, **options)

    return wrong
