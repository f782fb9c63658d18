"""Deliberate faults of MDLM, from the right function to a wrong one: where each goes, and which oracle notices it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from xlm.testing import faults as common
from xlm.testing import masked
from xlm.testing.masked import faults as shared
from xlm.testing.oracles import Mutation

from xlm_mdlm.oracle_case import objective, samplers


def mutations() -> list[Mutation]:
    """Faults of the loss, the collator and the samplers that are MDLM's own."""
    noise, loss_fn = "xlm_mdlm.collator.Noise.__call__", "xlm_mdlm.loss.MDLMLoss.loss_fn"
    predictors, show = "xlm_mdlm.predictor", "xlm_mdlm.collator.templates_to_fill"
    plan, law = f"{predictors}.first_hitting.first_hitting_plan", masked.RANDOM_ORDER
    own = [
        Mutation("the loss is divided by the hidden tokens", {loss_fn: _divided_by_hidden}, objective.FORMULA),
        Mutation("the loss is a mean over rows", {loss_fn: _mean_over_rows}, masked.ADDS_UP),
        Mutation("the weight of the bound is left out", {noise: _weighing(torch.ones_like)}, objective.EXPECTED),
        Mutation(
            "the weight is that of the next row",
            {noise: _weighing(lambda weight: weight.roll(1))},
            objective.OWN_WEIGHT,
        ),
        Mutation(
            "the factor 1 - t_min is left out",
            {noise: _weighing(lambda weight: weight / (1 - objective.CUT))},
            objective.CUT_BOUND,
        ),
        Mutation(
            "the mask token stays in the loss's softmax",
            {"xlm_mdlm.loss.suppressed_ids": common.no_ids},
            objective.FORMULA,
        ),
        Mutation(
            "the head gets no gradient", {"xlm_mdlm.loss.linear_cross_entropy": common.frozen_head}, masked.GRADIENT
        ),
        Mutation("one hidden token stays visible", {noise: shared.leaking}, masked.NO_LEAK),
        Mutation("prompts are hidden, too", {noise: shared.hiding_prompts}, masked.GIVEN_STAYS),
        Mutation(
            "more tokens are hidden than is said", {"xlm_mdlm.collator.uniforms": shared.squared}, objective.TOLD_RATE
        ),
        Mutation(
            "times are independent", {"xlm_mdlm.collator.low_discrepancy_times": common.independent}, objective.SPREAD
        ),
        Mutation("the empty canvas shows the answer", {show: shared.filled}, masked.ANSWERS_UNSEEN),
        Mutation("positions are revealed from left to right", {plan: _left_to_right}, law),
        Mutation("two positions are revealed a call", {plan: _two_at_a_time}, law),
        Mutation(
            "the ancestral sampler is one step ahead",
            {f"{predictors}.ancestral.ancestral_plan": _one_step_ahead},
            f"mdlm_ancestral steps=4: {masked.HAS_LAW}",
        ),
    ]
    general = [
        *shared.masked_mutations(),
        *shared.order_mutations(samplers.PLAIN, samplers.HEATED),
        *shared.remasking_mutations(samplers.REMASKED),
    ]
    return [*own, *general]


def _divided_by_hidden(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        result = loss_fn(self, batch)
        return {**result, "loss": result["loss"] * result["loss_denominator"] / masked.hidden(batch).sum()}

    return wrong


def _mean_over_rows(loss_fn: Any) -> Any:
    def wrong(self: Any, batch: Any) -> Any:
        result = loss_fn(self, batch)
        return {**result, "loss": (result["nll"] / batch["n_tokens"]).mean()}

    return wrong


def _weighing(change: Callable[[Tensor], Tensor]) -> Any:
    def fault(call: Any) -> Any:
        def wrong(self: Any, *args: Any) -> Any:
            batch = call(self, *args)
            return {**batch, "elbo_weight": change(batch["elbo_weight"])}

        return wrong

    return fault


def _left_to_right(plan: Any) -> Any:
    return lambda u, predicted: plan(-torch.arange(u.shape[1], dtype=u.dtype).expand_as(u), predicted)


def _two_at_a_time(plan: Any) -> Any:
    def wrong(u: Tensor, predicted: Tensor) -> Any:
        right = plan(u, predicted)
        return right._replace(step=torch.where(predicted, right.step // 2, -1))

    return wrong


def _one_step_ahead(plan: Any) -> Any:
    def wrong(u: Tensor, predicted: Tensor, mask_rates: Tensor) -> Any:
        return plan(u, predicted, torch.cat([mask_rates[:1], mask_rates[2:], mask_rates[-1:] * 0]))

    return wrong
