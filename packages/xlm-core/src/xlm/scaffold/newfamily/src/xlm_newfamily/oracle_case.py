"""What must hold of NewFamily, and faults that would break it: run by ``xlm verify`` and by the tests."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F
from xlm.testing import factories, masked, oracles
from xlm.testing import faults as common
from xlm.testing.masked import LENGTH, TOKENIZER, VOCAB, Claim, MaskedParts, faults
from xlm.testing.oracles import Measured, Mutation, Oracle, OracleCase

from xlm_newfamily import collator, loss, model, predictor

FORMULA = "the loss is the mean cross-entropy of the hidden tokens"
RATE = "the mask rate has the mean and the variance of a uniform number"


def case() -> OracleCase:
    """The oracles and mutations of NewFamily."""
    # YOUR IDEA: what you say of your model, as a number that can be measured. The law of the sampler in random order
    # and its bound are measured already; `claims` takes samplers with laws of their own, this list anything else.
    claims: list[Claim] = []
    own = [Oracle(FORMULA, _formula), Oracle(RATE, _rate)]
    return OracleCase(
        [*masked.masked_oracles(parts(), claims), *own],
        [*mutations(), *faults.masked_mutations()],
    )


def parts() -> MaskedParts:
    """How the parts are built for toys whose laws can be enumerated."""
    noise: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}
    plain: dict[str, Any] = {"tokenizer": TOKENIZER}
    prompted = {**plain, "max_length": 8, "max_target_length": LENGTH}
    return MaskedParts(
        network=network,
        loss=lambda net: loss.NewFamilyLoss(model=net, tokenizer=TOKENIZER),
        predictor=lambda net, **options: predictor.NewFamilyPredictor(model=net, **plain, **options),
        texts=lambda max_length, space: texts(max_length=max_length, event_space=space),
        pairs=lambda: collator.NewFamilySeq2SeqCollator(**noise, max_prompt_length=4, max_target_length=5),
        templates=lambda max_length: collator.NewFamilyInfillCollator(**noise, max_length=max_length),
        canvases=lambda max_length: collator.NewFamilyUnconditionalCollator(**plain, max_length=max_length),
        prompts=lambda: collator.NewFamilySeq2SeqPredictionCollator(**prompted),
        gaps=lambda max_length: collator.NewFamilyInfillPredictionCollator(**plain, max_length=max_length),
    )


def network() -> Any:
    """Small, in fp64."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "max_length": 16, "d_model": 16, "n_layers": 2, "n_heads": 2}
    return model.NewFamilyTransformer(**sizes).double().eval()


def texts(**options: Any) -> collator.NewFamilyCollator:
    """Role ``lm``."""
    return collator.NewFamilyCollator(tokenizer=TOKENIZER, seed=0, **options)


def _formula() -> Measured:
    """The same formula, written plainly on logits everywhere."""
    net = network()
    batch: Any = texts(event_space="open", max_length=8)(factories.lm_examples([3, 7, 5, 0], n_letters=4))
    logits = net(batch["input_ids"])
    logits[..., [0, 1, 2]] = -math.inf  # pad, mask, begin
    hidden = masked.hidden(batch)
    expected = F.cross_entropy(logits[hidden], batch["target_ids"][hidden])
    return oracles.equal(parts().loss(net).loss_fn(batch)["loss"], expected, 1e-6)


def _rate() -> Measured:
    """A row's hidden tokens number k = 0..16, each equally often: mean 8, variance (16^2 + 2 x 16) / 12 = 24."""
    batch: Any = texts(max_length=16)(factories.lm_examples([16] * 20_000, n_letters=4))
    counts = masked.hidden(batch).sum(1).double()
    apart = abs(float(counts.mean()) - 8) / 8 + abs(float(counts.var()) - 24) / 24
    return Measured(apart, 0.02, "relative difference of the number of hidden tokens")


def mutations() -> list[Mutation]:
    """Faults of the loss and the noise; those of the sampler are the core's."""
    in_loss, in_collator = "xlm_newfamily.loss", "xlm_newfamily.collator"
    noise, loss_fn = f"{in_collator}.Noise.__call__", f"{in_loss}.NewFamilyLoss.loss_fn"
    filled = {f"{in_collator}.templates_to_fill": faults.filled}
    return [
        Mutation("the loss is divided by all tokens", {loss_fn: _divided_by_all}, FORMULA),
        Mutation("the loss is a mean over rows", {loss_fn: _mean_over_rows}, masked.ADDS_UP),
        Mutation("the mask token stays in the loss's softmax", {f"{in_loss}.suppressed_ids": common.no_ids}, FORMULA),
        Mutation("the head has no gradient", {f"{in_loss}.linear_cross_entropy": common.frozen_head}, masked.GRADIENT),
        Mutation("the first token stays visible", {noise: faults.leaking}, masked.NO_LEAK),
        Mutation("prompts are hidden, too", {noise: faults.hiding_prompts}, masked.GIVEN_STAYS),
        Mutation("more tokens are hidden than the rate says", {f"{in_collator}.uniforms": faults.squared}, RATE),
        Mutation("the empty gap shows the answer", filled, masked.ANSWERS_UNSEEN),
    ]


def _divided_by_all(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        result = loss_fn(self, batch)
        return {**result, "loss": result["loss"] * len(batch["rows"]) / batch["n_tokens"].sum()}

    return wrong


def _mean_over_rows(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        return {**loss_fn(self, batch), "loss_denominator": torch.tensor(len(batch["n_tokens"]))}

    return wrong
