"""What must hold of MDLM, and faults that would break it: run by ``xlm verify`` and by the tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from xlm.noise import CosineSchedule, LinearSchedule
from xlm.testing import factories, masked, oracles
from xlm.testing import masked_faults as faults
from xlm.testing.laws import ancestral_law
from xlm.testing.masked import LENGTH, TOKENIZER, VOCAB, Claim, MaskedParts
from xlm.testing.oracles import Measured, Mutation, Oracle, OracleCase

from xlm_mdlm import collator, loss, model, predictor

STEPS = (1, 4, 16)
CUT = 0.25
PLAIN = "mdlm_top_probability order=margin"
REMASKED = "mdlm_remdm strategy=cap eta=0.3"
HEATED = "mdlm_top_probability tokens_per_step=2 temperature=0.7"

FORMULA = "the loss is the paper's formula on logits everywhere"
EXPECTED = "the expected loss is the any-order bound"
CUT_BOUND = f"with t_min = {CUT} the expected loss misses its part of the bound and no more"
OWN_WEIGHT = "the weight of the bound is (1 - t_min) / u of the row's own rate"
TOLD_RATE = "tokens are hidden at the rate that the network is told"
SPREAD = "times are spread several times more evenly than independent ones"


def case() -> OracleCase:
    """The oracles and mutations of MDLM."""
    parts = mdlm_parts()
    own = [
        Oracle(FORMULA, _formula),
        Oracle(EXPECTED, _expected_loss),
        Oracle("the expected loss of a cosine schedule is the same bound", partial(_expected_loss, CosineSchedule())),
        Oracle(CUT_BOUND, _cut_loss),
        Oracle(OWN_WEIGHT, _own_weight),
        Oracle(TOLD_RATE, _told_rate),
        Oracle(SPREAD, _spread),
        Oracle("the ancestral sampler calls the network only where something is revealed", _calls),
    ]
    shared = [*faults.order_mutations(PLAIN, HEATED), *faults.remasking_mutations(REMASKED)]
    return OracleCase(
        [*masked.masked_oracles(parts, claims()), *own], [*mutations(), *faults.masked_mutations(), *shared]
    )


def mdlm_parts() -> MaskedParts:
    """How MDLM builds its parts for the toys."""
    noise: dict[str, Any] = {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0}
    sizes: dict[str, Any] = {"max_prompt_length": 4, "max_target_length": 5}
    return MaskedParts(
        network=network,
        loss=lambda net: loss.MDLMLoss(model=net, tokenizer=TOKENIZER),
        predictor=first_hitting,
        texts=lambda max_length, space: collator.MDLMCollator(**noise, max_length=max_length, event_space=space),  # type: ignore[arg-type]
        pairs=lambda: collator.MDLMSeq2SeqCollator(**noise, **sizes),
        templates=lambda max_length: collator.MDLMInfillCollator(**noise, max_length=max_length),
        canvases=lambda max_length: collator.MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=max_length),
        prompts=lambda: collator.MDLMSeq2SeqPredictionCollator(
            tokenizer=TOKENIZER, max_length=8, max_target_length=LENGTH
        ),
        gaps=lambda max_length: collator.MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=max_length),
        told_mask_rate=True,
    )


def network() -> Any:
    """Small, in fp64, told the mask rate."""
    torch.manual_seed(0)
    net = model.MDLMTransformer(
        vocab_size=VOCAB, max_length=16, d_model=16, n_layers=2, n_heads=2, condition_on_mask_rate=True
    )
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # no modulation is 0, as it is before training
    net.double().eval()
    return net


def first_hitting(net: Any, **options: Any) -> predictor.MDLMFirstHittingPredictor:
    """The exact sampler."""
    return predictor.MDLMFirstHittingPredictor(model=net, tokenizer=TOKENIZER, **options)


def ancestral(net: Any, steps: int) -> predictor.MDLMAncestralPredictor:
    """The reverse process in some steps."""
    return predictor.MDLMAncestralPredictor(
        model=net, tokenizer=TOKENIZER, noise_schedule=LinearSchedule(), steps=steps
    )


def in_order(net: Any, **options: Any) -> predictor.MDLMTopProbabilityPredictor:
    """An order that the network decides."""
    return predictor.MDLMTopProbabilityPredictor(model=net, tokenizer=TOKENIZER, **options)


def claims() -> list[Claim]:
    """Every sampler and its law."""
    stepped = [
        Claim(f"mdlm_ancestral steps={steps}", partial(ancestral, steps=steps), partial(_stepped_law, steps=steps))
        for steps in STEPS
    ]
    orders: list[dict[str, Any]] = [
        {"order": "top_probability"},
        {"order": "margin"},
        {"order": "entropy"},
        {"tokens_per_step": 2, "temperature": 0.7},
        {"threshold": 0.5},
        {"factor": 1.4},
        {"order": "margin", "block_length": 2},
    ]
    stated = [
        Claim(" ".join(["mdlm_top_probability", *(f"{k}={v}" for k, v in given.items())]), partial(in_order, **given))
        for given in orders
    ]
    gumbel = partial(in_order, gumbel=0.5)
    weighted = Claim("mdlm_top_probability gumbel=0.5", gumbel, partial(masked.gumbel_law, gumbel=0.5))
    return [*stepped, *stated, weighted, *_remasking()]


def _remasking() -> list[Claim]:
    """The strategies of ReMDM whose law is a chain's."""

    def sampler(net: Any, **options: Any) -> predictor.MDLMReMDMPredictor:
        return predictor.MDLMReMDMPredictor(
            model=net, tokenizer=TOKENIZER, noise_schedule=LinearSchedule(), steps=4, **options
        )

    def law(net: Any, sigma: Callable[[float], float]) -> Tensor:
        return masked.remasked_law(net, sigma, steps=4)

    cap, rescale = partial(law, sigma=lambda most: min(0.3, most)), partial(law, sigma=lambda most: 0.5 * most)
    return [
        Claim(REMASKED, partial(sampler, strategy="cap", eta=0.3), cap),
        Claim("mdlm_remdm strategy=rescale eta=0.5", partial(sampler, strategy="rescale", eta=0.5), rescale),
    ]


def _stepped_law(net: Any, steps: int) -> Tensor:
    return ancestral_law(net, [1 - i / steps for i in range(steps + 1)])


# The objective


def _texts(event_space: str = "window", **options: Any) -> collator.MDLMCollator:
    given = {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0, "max_length": LENGTH, **options}
    return collator.MDLMCollator(**given, event_space=event_space)  # type: ignore[arg-type]


def _formula() -> Measured:
    net = network()
    batch = _texts("open", max_length=8)(factories.lm_examples([3, 7, 5, 0], n_letters=4))
    logits = net(batch["input_ids"], mask_rate=batch["mask_rate"])
    logits[..., [0, 1, 2]] = -math.inf  # pad, mask, begin
    hidden = masked.hidden(batch)
    costs = F.cross_entropy(logits.transpose(1, 2), batch["target_ids"], reduction="none").masked_fill(~hidden, 0.0)
    expected = (costs * batch["elbo_weight"][:, None]).sum() / batch["n_tokens"].sum()
    return oracles.equal(loss.MDLMLoss(model=net, tokenizer=TOKENIZER).loss_fn(batch)["loss"], expected, 1e-6)


def _one_draw_losses(collate: collator.MDLMCollator) -> tuple[Tensor, Tensor]:
    """Of 200 draws of noise a string, nats; and the bounds of the same rows."""
    net = masked.inconsistent()
    rows = net.all_strings().repeat(200, 1)
    batch = collate(factories.keyed([{"input_ids": ids} for ids in rows.tolist()]))
    nll = loss.MDLMLoss(model=net, tokenizer=TOKENIZER).loss_fn(batch)["nll"]
    return nll.double(), masked.bounds(net).repeat(200)


def _expected_loss(schedule: Any = None) -> Measured:
    nll, bounds = _one_draw_losses(_texts(noise_schedule=schedule or LinearSchedule(), t_min=0.0))
    return oracles.within_error(float(nll.mean()), float(bounds.mean()), float((nll - bounds).std()) / len(nll) ** 0.5)


def _cut_loss() -> Measured:
    net = network()
    nn.init.zeros_(net.head.weight)  # log 5 nats a hidden token: letters and EOS
    batch = _texts(t_min=CUT)(factories.lm_examples([LENGTH] * 20_000, n_letters=4))
    nll = loss.MDLMLoss(model=net, tokenizer=TOKENIZER).loss_fn(batch)["nll"]
    return oracles.within_error(float(nll.mean()), (1 - CUT) * LENGTH * math.log(5), float(nll.std()) / len(nll) ** 0.5)


def _own_weight() -> Measured:
    batch = _texts(t_min=CUT)(factories.lm_examples([LENGTH] * 100, n_letters=4))
    return oracles.equal(batch["elbo_weight"] * batch["mask_rate"], torch.full((100,), 1 - CUT), 1e-6)


def _told_rate() -> Measured:
    batch = _texts(max_length=16)(factories.lm_examples([16] * 20_000, n_letters=4))
    apart = masked.hidden(batch).double().mean(1) - batch["mask_rate"]
    return oracles.within_error(float((apart * batch["mask_rate"]).mean()), 0.0, float(apart.std()) / 20_000**0.5)


def _spread() -> Measured:
    """Independent uniform times give 1; the mean of 32 of them has a variance of 1 / (12 x 32)."""
    rates = _texts(t_min=0.0)(factories.lm_examples([1] * 32 * 200, n_letters=4))["mask_rate"].double()
    variance = float(rates.reshape(200, 32).mean(1).var())
    return Measured(variance * 12 * 32, 0.2, "variance of a batch's mean mask rate / that of independent ones")


def _calls() -> Measured:
    batch: Any = mdlm_parts().canvases(LENGTH)(factories.unconditional_examples(200))
    n = ancestral(masked.inconsistent(), steps=1000).predict(batch)["n_calls"]
    return oracles.none_of(int((n - LENGTH).clamp_min(0).sum()), "calls beyond one a token")


# Faults


def mutations() -> list[Mutation]:
    """Faults of the loss, the collator and the samplers that are MDLM's own."""
    noise, loss_fn = "xlm_mdlm.collator.Noise.__call__", "xlm_mdlm.loss.MDLMLoss.loss_fn"
    samplers, show = "xlm_mdlm.predictor", "xlm_mdlm.collator.templates_to_fill"
    plan, law = f"{samplers}.first_hitting.first_hitting_plan", masked.RANDOM_ORDER
    return [
        Mutation("the loss is divided by the hidden tokens", {loss_fn: _divided_by_hidden}, FORMULA),
        Mutation("the loss is a mean over rows", {loss_fn: _mean_over_rows}, masked.ADDS_UP),
        Mutation("the weight of the bound is left out", {noise: _weighing(torch.ones_like)}, EXPECTED),
        Mutation("the weight is that of the next row", {noise: _weighing(lambda weight: weight.roll(1))}, OWN_WEIGHT),
        Mutation("the factor 1 - t_min is left out", {noise: _weighing(lambda weight: weight / (1 - CUT))}, CUT_BOUND),
        Mutation(
            "the mask token stays in the loss's softmax", {"xlm_mdlm.loss.suppressed_ids": faults.no_ids}, FORMULA
        ),
        Mutation(
            "the head gets no gradient", {"xlm_mdlm.loss.linear_cross_entropy": faults.frozen_head}, masked.GRADIENT
        ),
        Mutation("one hidden token stays visible", {noise: faults.leaking}, masked.NO_LEAK),
        Mutation("prompts are hidden, too", {noise: faults.hiding_prompts}, masked.GIVEN_STAYS),
        Mutation("more tokens are hidden than is said", {"xlm_mdlm.collator.uniforms": faults.squared}, TOLD_RATE),
        Mutation("times are independent", {"xlm_mdlm.collator.low_discrepancy_times": faults.independent}, SPREAD),
        Mutation("the empty canvas shows the answer", {show: faults.filled}, masked.ANSWERS_UNSEEN),
        Mutation("positions are revealed from left to right", {plan: _left_to_right}, law),
        Mutation("two positions are revealed a call", {plan: _two_at_a_time}, law),
        Mutation(
            "the ancestral sampler is one step ahead",
            {f"{samplers}.ancestral.ancestral_plan": _one_step_ahead},
            f"mdlm_ancestral steps=4: {masked.HAS_LAW}",
        ),
    ]


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
