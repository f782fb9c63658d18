"""Deliberate faults of MLM, from the right function to a wrong one: where each goes, and which oracle notices it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from xlm.testing import faults as common
from xlm.testing import masked
from xlm.testing.masked import faults as shared
from xlm.testing.oracles import Mutation

from xlm_mlm.oracle_case import likelihood, objective, samplers


def mutations() -> list[Mutation]:
    """Faults of the loss, the masking and the pseudo-log-likelihood that are MLM's own."""
    loss_fn, masking = "xlm_mlm.loss.MLMLoss.loss_fn", "xlm_mlm.masking"
    call, rule = f"{masking}.Masking.__call__", "xlm_mlm.predictor.order.fill_by_rule"
    own = [
        Mutation("the loss is divided by all tokens", {loss_fn: _divided_by_all}, objective.FORMULA),
        Mutation("the loss is a mean over rows", {loss_fn: _mean_over_rows}, masked.ADDS_UP),
        Mutation(
            "the mask token stays in the loss's softmax",
            {"xlm_mlm.loss.suppressed_ids": common.no_ids},
            objective.FORMULA,
        ),
        Mutation(
            "the head gets no gradient", {"xlm_mlm.loss.linear_cross_entropy": common.frozen_head}, masked.GRADIENT
        ),
        Mutation("the first token stays visible", {call: shared.leaking}, masked.NO_LEAK),
        Mutation("prompts are hidden, too", {call: shared.hiding_prompts}, masked.GIVEN_STAYS),
        Mutation("more tokens are chosen than the rate says", {f"{masking}.uniforms": shared.squared}, objective.RATE),
        Mutation("the rate stays below a half", {f"{masking}.low_discrepancy_times": _upper_half}, objective.UNIFORM),
        Mutation("rates are independent", {f"{masking}.low_discrepancy_times": common.independent}, objective.SPREAD),
        Mutation("random tokens are control tokens, too", {f"{masking}._generated": _everything}, objective.BERT),
        Mutation(
            "the empty gap shows the answer",
            {"xlm_mlm.collator.templates_to_fill": shared.filled},
            masked.ANSWERS_UNSEEN,
        ),
        Mutation("two positions are revealed a call", {rule: _two_at_a_time}, masked.RANDOM_ORDER),
        Mutation("the most certain position comes first", {rule: _most_certain}, masked.RANDOM_ORDER),
        Mutation(
            "the pseudo-log-likelihood hides every token", {"xlm_mlm.predictor.order.pseudo": _bound}, likelihood.PSEUDO
        ),
        Mutation(
            "the pseudo-log-likelihood calls itself exact",
            {"xlm_mlm.predictor.order.pseudo": _boasting},
            likelihood.NO_LIKELIHOOD,
        ),
    ]
    general = [
        *shared.masked_mutations(),
        *shared.order_mutations(samplers.PLAIN, samplers.HEATED),
        *shared.remasking_mutations(samplers.REMASKED),
    ]
    return [*own, *general]


def _divided_by_all(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        result = loss_fn(self, batch)
        return {**result, "loss": result["loss"] * len(batch["rows"]) / batch["n_tokens"].sum()}

    return wrong


def _mean_over_rows(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        result = loss_fn(self, batch)
        return {**result, "loss_denominator": torch.tensor(len(batch["n_tokens"]))}

    return wrong


def _upper_half(times: Any) -> Any:
    return lambda *args: 0.5 + times(*args) / 2


def _everything(_: Any) -> Any:
    return lambda tokenizer: torch.arange(len(tokenizer))


def _two_at_a_time(fill: Any) -> Any:
    return lambda denoiser, batch, rule, *args: fill(denoiser, batch, replace(rule, tokens_per_step=2), *args)


def _most_certain(fill: Any) -> Any:
    return lambda denoiser, batch, rule, *args: fill(denoiser, batch, replace(rule, order="margin"), *args)


def _bound(_: Any) -> Any:
    def wrong(denoiser: Any, batch: Any) -> Any:
        hidden: Tensor = batch["predicted"]
        log_p = denoiser.model(denoiser.hide(batch["target_ids"], hidden)).log_softmax(-1)
        nll = -log_p.gather(2, batch["target_ids"][..., None])[..., 0].sum(1)
        return {"nll": nll.detach(), "n_tokens": batch["n_tokens"], "kind": "pseudo", "estimator": "", "n_calls": 1}

    return wrong


def _boasting(pseudo: Any) -> Any:
    return lambda *args: {**pseudo(*args), "kind": "exact"}
