"""What a text costs, given all but one of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from xlm.testing import masked, oracles
from xlm.testing.oracles import Measured
from xlm.testing.toy import digits, entropy, number

from xlm_mlm.oracle_case.parts import in_order, mlm_parts

PSEUDO = "the pseudo-log-likelihood is of each token given all others"
NO_LIKELIHOOD = "the pseudo-log-likelihood of the exact posterior lies below its entropy, and says what it is"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        PSEUDO: _pseudo,
        NO_LIKELIHOOD: _no_likelihood,
    }


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
