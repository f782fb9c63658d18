"""How MLM builds its parts for the toys."""

from __future__ import annotations

from typing import Any

import torch
from xlm.testing.masked import LENGTH, TOKENIZER, VOCAB, MaskedParts

from xlm_mlm import collator, loss, model, predictor


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


def texts(**options: Any) -> collator.MLMCollator:
    """Role ``lm``; windows of the toys' strings unless told otherwise."""
    given: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0, "max_length": LENGTH, **options}
    return collator.MLMCollator(**given)


def in_order(net: Any, **options: Any) -> predictor.MLMPredictor:
    """Positions one after another, by default in random order."""
    return predictor.MLMPredictor(model=net, tokenizer=TOKENIZER, **options)


def remasking(net: Any) -> predictor.MLMReMDMPredictor:
    """Four steps, in which tokens may be hidden again."""
    return predictor.MLMReMDMPredictor(model=net, tokenizer=TOKENIZER, steps=4, strategy="cap", eta=0.3)
