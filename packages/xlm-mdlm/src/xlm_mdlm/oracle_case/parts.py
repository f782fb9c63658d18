"""How MDLM builds its parts for the toys."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from xlm.noise import LinearSchedule
from xlm.testing.masked import LENGTH, TOKENIZER, VOCAB, MaskedParts

from xlm_mdlm import collator, loss, model, predictor


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
