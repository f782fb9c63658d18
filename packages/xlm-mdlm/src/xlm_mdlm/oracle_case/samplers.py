"""What MDLM's samplers claim to draw."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from xlm.noise import LinearSchedule
from xlm.testing import factories, masked, oracles
from xlm.testing.laws import ancestral_law
from xlm.testing.masked import LENGTH, TOKENIZER, Claim
from xlm.testing.oracles import Measured

from xlm_mdlm import predictor
from xlm_mdlm.oracle_case.parts import ancestral, in_order, mdlm_parts

STEPS = (1, 4, 16)
PLAIN = "mdlm_top_probability order=margin"
REMASKED = "mdlm_remdm strategy=cap eta=0.3"
HEATED = "mdlm_top_probability tokens_per_step=2 temperature=0.7"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        "the ancestral sampler calls the network only where something is revealed": _calls,
    }


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


def _calls() -> Measured:
    batch: Any = mdlm_parts().canvases(LENGTH)(factories.unconditional_examples(200))
    n = ancestral(masked.inconsistent(), steps=1000).predict(batch)["n_calls"]
    return oracles.none_of(int((n - LENGTH).clamp_min(0).sum()), "calls beyond one a token")
