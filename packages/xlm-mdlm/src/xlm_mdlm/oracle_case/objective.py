"""What is learnt."""

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
from xlm.testing.masked import LENGTH, TOKENIZER
from xlm.testing.oracles import Measured

from xlm_mdlm import collator, loss
from xlm_mdlm.oracle_case.parts import network

CUT = 0.25

FORMULA = "the loss is the paper's formula on logits everywhere"
EXPECTED = "the expected loss is the any-order bound"
CUT_BOUND = f"with t_min = {CUT} the expected loss misses its part of the bound and no more"
OWN_WEIGHT = "the weight of the bound is (1 - t_min) / u of the row's own rate"
TOLD_RATE = "tokens are hidden at the rate that the network is told"
SPREAD = "times are spread several times more evenly than independent ones"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        FORMULA: _formula,
        EXPECTED: _expected_loss,
        "the expected loss of a cosine schedule is the same bound": partial(_expected_loss, CosineSchedule()),
        CUT_BOUND: _cut_loss,
        OWN_WEIGHT: _own_weight,
        TOLD_RATE: _told_rate,
        SPREAD: _spread,
    }


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
