"""What is learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.nn import functional as F
from xlm.testing import factories, masked, oracles
from xlm.testing.masked import LETTERS, TOKENIZER
from xlm.testing.oracles import Measured

from xlm_mlm import loss
from xlm_mlm.oracle_case.parts import network, texts

FORMULA = "the loss is the mean cross-entropy of the chosen tokens"
BERT = "of the chosen tokens 80 % are hidden, 10 % random, 10 % as they were"
RATE = "a fixed mask rate is the share of tokens that are chosen"
UNIFORM = "the uniform mask rate has the mean and the variance of a uniform number"
SPREAD = "mask rates are spread several times more evenly than independent ones"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        FORMULA: _formula,
        BERT: _fates,
        RATE: _fixed_rate,
        UNIFORM: _uniform_rate,
        SPREAD: _spread,
    }


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
