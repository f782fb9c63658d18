"""The average of the weights, and summaries of likelihoods."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import nn

from xlm import likelihood
from xlm.callbacks import ema
from xlm.testing import oracles
from xlm.testing.oracles import Measured

AVERAGE = "the average of the weights is its recursion"
RATIO = "nats a token are a ratio of sums, and the standard error is the delta method's"
UNITS = "perplexity is exp(nats a token), bits a byte are nats / (bytes x ln 2)"

NLL, TOKENS = [10.0, 40.0, 22.0, 8.0], [4, 20, 10, 3]


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        AVERAGE: _average,
        RATIO: _ratio,
        UNITS: _units,
    }


class _AtStep(pl.Trainer):
    """Knows the number of the step, and nothing else."""

    global_step = 0

    def __init__(self) -> None:
        pass


class _Weights(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))


def _average() -> Measured:
    callback, trainer, module = ema.EMA(decay=0.5), _AtStep(), _Weights()
    average, expected = copy.deepcopy(module), torch.zeros(3, dtype=torch.float64)
    callback._average_model = cast(Any, SimpleNamespace(module=average))
    for step in range(1, 8):
        nn.init.constant_(module.weight, step)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, 0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach()
    return oracles.equal(average.weight, expected)


def _summary() -> likelihood.LikelihoodSummary:
    return likelihood.summarise(
        torch.tensor(NLL, dtype=torch.float64),
        torch.tensor(TOKENS),
        n_bytes=torch.tensor([9, 50, 21, 8]),
        kind="exact",
        estimator="chain_rule",
        event_space="open",
        n_calls=1,
    )


def _ratio() -> Measured:
    """The delta method by hand: sqrt(n / (n - 1) x sum of (nll - r tokens)^2) / tokens, r the ratio of the sums."""
    summary, r = _summary(), sum(NLL) / sum(TOKENS)
    squares = sum((nll - r * n) ** 2 for nll, n in zip(NLL, TOKENS, strict=True))
    error = math.sqrt(len(NLL) / (len(NLL) - 1) * squares) / sum(TOKENS)
    apart = max(abs(summary.nats_per_token - r), abs((summary.nats_per_token_se or math.inf) - error))
    return Measured(apart, 1e-12, "nats a token")


def _units() -> Measured:
    summary, none = _summary(), math.inf
    perplexity, bits = math.exp(sum(NLL) / sum(TOKENS)), sum(NLL) / (88 * math.log(2))
    apart = [abs((summary.perplexity or none) / perplexity - 1), abs((summary.bits_per_byte or none) / bits - 1)]
    return Measured(max(apart), 1e-12, "relative difference")
