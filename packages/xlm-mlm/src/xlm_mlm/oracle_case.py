"""What must hold of MLM, and faults that would break it: run by ``xlm verify`` and by the tests."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from xlm.testing import factories, masked, oracles
from xlm.testing import masked_faults as faults
from xlm.testing.laws import any_order_law
from xlm.testing.masked import LENGTH, LETTERS, TOKENIZER, VOCAB, Claim, MaskedParts
from xlm.testing.oracles import Measured, Mutation, Oracle, OracleCase
from xlm.testing.toy import digits, entropy, number

from xlm_mlm import collator, loss, model, predictor

PLAIN = "mlm order=margin"
REMASKED = "mlm_remdm strategy=cap eta=0.3"
HEATED = "mlm order=top_probability tokens_per_step=2 temperature=0.7"

FORMULA = "the loss is the mean cross-entropy of the chosen tokens"
BERT = "of the chosen tokens 80 % are hidden, 10 % random, 10 % as they were"
RATE = "a fixed mask rate is the share of tokens that are chosen"
UNIFORM = "the uniform mask rate has the mean and the variance of a uniform number"
SPREAD = "mask rates are spread several times more evenly than independent ones"
PSEUDO = "the pseudo-log-likelihood is of each token given all others"
NO_LIKELIHOOD = "the pseudo-log-likelihood of the exact posterior lies below its entropy, and says what it is"


def case() -> OracleCase:
    """The oracles and mutations of MLM."""
    own = [
        Oracle(FORMULA, _formula),
        Oracle(BERT, _fates),
        Oracle(RATE, _fixed_rate),
        Oracle(UNIFORM, _uniform_rate),
        Oracle(SPREAD, _spread),
        Oracle(PSEUDO, _pseudo),
        Oracle(NO_LIKELIHOOD, _no_likelihood),
    ]
    shared = [
        *faults.masked_mutations(),
        *faults.order_mutations(PLAIN, HEATED),
        *faults.remasking_mutations(REMASKED),
    ]
    return OracleCase([*masked.masked_oracles(mlm_parts(), claims()), *own], [*mutations(), *shared])


def mlm_parts() -> MaskedParts:
    """How MLM builds its parts for the toys."""
    noise: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}
    sizes: dict[str, Any] = {"max_prompt_length": 4, "max_target_length": 5}
    return MaskedParts(
        network=network,
        loss=lambda net: loss.MLMLoss(model=net, tokenizer=TOKENIZER),
        predictor=in_order,
        texts=lambda max_length, space: texts(max_length=max_length, event_space=space),
        pairs=lambda: collator.MLMSeq2SeqCollator(**noise, **sizes),
        templates=lambda max_length: collator.MLMInfillCollator(**noise, max_length=max_length),
        canvases=lambda max_length: collator.MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=max_length),
        prompts=lambda: collator.MLMSeq2SeqPredictionCollator(
            tokenizer=TOKENIZER, max_length=8, max_target_length=LENGTH
        ),
        gaps=lambda max_length: collator.MLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=max_length),
    )


def network() -> Any:
    """Small, in fp64."""
    torch.manual_seed(0)
    net = model.MLMTransformer(vocab_size=VOCAB, max_length=16, d_model=16, n_layers=2, n_heads=2)
    return net.double().eval()


def in_order(net: Any, **options: Any) -> predictor.MLMPredictor:
    """Positions one after another, by default in random order."""
    return predictor.MLMPredictor(model=net, tokenizer=TOKENIZER, **options)


def texts(**options: Any) -> collator.MLMCollator:
    """Role ``lm``; windows of the toys' strings unless told otherwise."""
    given: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0, "max_length": LENGTH, **options}
    return collator.MLMCollator(**given)


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


def remasking(net: Any) -> predictor.MLMReMDMPredictor:
    """Four steps, in which tokens may be hidden again."""
    return predictor.MLMReMDMPredictor(model=net, tokenizer=TOKENIZER, steps=4, strategy="cap", eta=0.3)


# The objective


def _formula() -> Measured:
    net = network()
    batch: Any = texts(event_space="open", max_length=8)(factories.lm_examples([3, 7, 5, 0], n_letters=4))
    logits = net(batch["input_ids"])
    logits[..., [0, 1, 2]] = -math.inf  # pad, mask, begin
    chosen = masked.hidden(batch)
    expected = F.cross_entropy(logits[chosen], batch["target_ids"][chosen])
    return oracles.equal(loss.MLMLoss(model=net, tokenizer=TOKENIZER).loss_fn(batch)["loss"], expected, 1e-6)


def _many(**options: Any) -> Any:
    """A batch of 20,000 windows of 16 letters."""
    return texts(max_length=16, **options)(factories.lm_examples([16] * 20_000, n_letters=4))


def _fates() -> Measured:
    """Largest deviation of a share, in standard errors of a binomial share."""
    batch = _many(mask_rate=1.0, random_token_rate=0.1, keep_rate=0.1)
    seen, true, n = batch["input_ids"], batch["target_ids"], batch["input_ids"].numel()
    n_generated = len(LETTERS) + 1  # and EOS
    shares = {
        0.8: seen == TOKENIZER.mask_token_id,
        0.1 + 0.1 / n_generated: seen == true,  # a random token may be the true one
        0.1 / n_generated: seen == TOKENIZER.eos_token_id,
    }
    apart = [abs(float(found.double().mean()) - p) / math.sqrt(p * (1 - p) / n) for p, found in shares.items()]
    return Measured(max(apart), 3.5, f"standard errors of shares of {n:,}")


def _fixed_rate() -> Measured:
    chosen = masked.hidden(_many(mask_rate=0.15)).double()
    return oracles.within_error(float(chosen.mean()), 0.15, math.sqrt(0.15 * 0.85 / chosen.numel()))


def _uniform_rate() -> Measured:
    """A row's hidden tokens number k = 0..16, each equally often: mean 8, variance (16^2 + 2 x 16) / 12 = 24."""
    counts = masked.hidden(_many()).sum(1).double()
    apart = abs(float(counts.mean()) - 8) / 8 + abs(float(counts.var()) - 24) / 24
    return Measured(apart, 0.02, "relative difference of the number of hidden tokens")


def _spread() -> Measured:
    """Independent uniform rates give 1; the mean of 32 of them has a variance of 1 / (12 x 32)."""
    batch: Any = texts(max_length=256)(factories.lm_examples([256] * 32 * 50, n_letters=4))
    means = masked.hidden(batch).double().mean(1).reshape(50, 32).mean(1)
    return Measured(
        float(means.var()) * 12 * 32, 0.2, "variance of a batch's mean mask rate / that of independent ones"
    )


def _pseudo() -> Measured:
    net = masked.inconsistent()
    strings = digits(net.n_letters, net.length)
    expected = torch.zeros(len(strings), dtype=torch.float64)
    for i in range(net.length):
        pattern = strings.clone()
        pattern[:, i] = net.n_letters
        log_p = net.log_conditional.detach()[number(pattern, net.n_letters + 1), i]
        expected -= log_p.gather(1, strings[:, i, None])[:, 0]
    result = in_order(net, likelihood="pseudo").log_likelihood(_strings())
    return oracles.equal(result["nll"], expected, unit="nats of difference")


def _strings() -> Any:
    return masked.every_string(mlm_parts())


def _no_likelihood() -> Measured:
    net = masked.exact()
    result = in_order(net, likelihood="pseudo").log_likelihood(_strings())
    above = float((net.table.flatten() * result["nll"]).sum()) - entropy(net.table)
    return Measured(above if result["kind"] == "pseudo" else math.inf, 0.0, "nats above the entropy")


# Faults


def mutations() -> list[Mutation]:
    """Faults of the loss, the masking and the pseudo-log-likelihood that are MLM's own."""
    loss_fn, masking = "xlm_mlm.loss.MLMLoss.loss_fn", "xlm_mlm.masking"
    call, rule = f"{masking}.Masking.__call__", "xlm_mlm.predictor.order.fill_by_rule"
    return [
        Mutation("the loss is divided by all tokens", {loss_fn: _divided_by_all}, FORMULA),
        Mutation("the loss is a mean over rows", {loss_fn: _mean_over_rows}, masked.ADDS_UP),
        Mutation("the mask token stays in the loss's softmax", {"xlm_mlm.loss.suppressed_ids": faults.no_ids}, FORMULA),
        Mutation(
            "the head gets no gradient", {"xlm_mlm.loss.linear_cross_entropy": faults.frozen_head}, masked.GRADIENT
        ),
        Mutation("the first token stays visible", {call: faults.leaking}, masked.NO_LEAK),
        Mutation("prompts are hidden, too", {call: faults.hiding_prompts}, masked.GIVEN_STAYS),
        Mutation("more tokens are chosen than the rate says", {f"{masking}.uniforms": faults.squared}, RATE),
        Mutation("the rate stays below a half", {f"{masking}.low_discrepancy_times": _upper_half}, UNIFORM),
        Mutation("rates are independent", {f"{masking}.low_discrepancy_times": faults.independent}, SPREAD),
        Mutation("random tokens are control tokens, too", {f"{masking}._generated": _everything}, BERT),
        Mutation(
            "the empty gap shows the answer",
            {"xlm_mlm.collator.templates_to_fill": faults.filled},
            masked.ANSWERS_UNSEEN,
        ),
        Mutation("two positions are revealed a call", {rule: _two_at_a_time}, masked.RANDOM_ORDER),
        Mutation("the most certain position comes first", {rule: _most_certain}, masked.RANDOM_ORDER),
        Mutation("the pseudo-log-likelihood hides every token", {"xlm_mlm.predictor.order.pseudo": _bound}, PSEUDO),
        Mutation(
            "the pseudo-log-likelihood calls itself exact", {"xlm_mlm.predictor.order.pseudo": _boasting}, NO_LIKELIHOOD
        ),
    ]


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
