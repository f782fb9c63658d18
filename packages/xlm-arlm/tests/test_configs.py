from __future__ import annotations

import inspect

import pytest
import torch
from omegaconf import OmegaConf
from xlm.config import compose
from xlm.instantiate import construct, locate
from xlm.testing.factories import seq2seq_examples, tiny_tokenizer
from xlm_arlm.collator import ARLMSeq2SeqCollator

CONTEXT = {
    "tokenizer": tiny_tokenizer(),
    "vocab_size": 12,
    "max_length": 16,
    "max_prompt_length": 8,
    "max_target_length": 5,
    "event_space": "open",
    "noise_schedule": None,
    "seed": 0,
}


def parts():
    config = compose(["model_type=arlm", "model=arlm_tiny"])
    return {**{name: config[name] for name in ("model", "loss", "predictor")}, **dict(config.collators)}


def test_the_family_has_these_roles():
    assert set(compose(["model_type=arlm"]).collators) == {"lm", "seq2seq", "seq2seq_prediction", "unconditional"}
    assert compose(["model_type=arlm"]).family == "arlm"


@pytest.mark.parametrize("name", sorted(parts()))
def test_the_keys_are_the_constructors_arguments_with_its_own_values(name):
    node = OmegaConf.to_container(parts()[name])
    arguments = inspect.signature(locate(node.pop("_target_"), name)).parameters
    assert list(node) == list(arguments)
    for key in {"predictor": node, "seq2seq": {"loss_on_prompt": None}}.get(name, {}):
        if node[key] is not None:
            default = arguments[key].default
            assert node[key] == (list(default) if key == "stop" else default)


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 12 * 4 * 256**2), ("small", 12 * 12 * 768**2), ("medium", 12 * 24 * 1024**2)]
)
def test_a_size_has_its_weights(size, parameters):
    with torch.device("meta"):
        model = construct(compose(["model_type=arlm", f"model=arlm_{size}"]).model, **CONTEXT)
    matrices = sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2)
    assert matrices == parameters
    assert model.head_dim == 64


def test_the_parts_fit_one_another():
    config = compose(
        ["model_type=arlm", "model=arlm_tiny", "collators.seq2seq.loss_on_prompt=true", "predictor.top_k=1"]
    )
    model = construct(config.model, **CONTEXT)
    loss, predictor = (construct(config[name], model=model, **CONTEXT) for name in ("loss", "predictor"))
    collators = construct(config.collators, **CONTEXT)
    assert isinstance(collators["seq2seq"], ARLMSeq2SeqCollator)
    examples = seq2seq_examples([3, 5], [2, 4])
    assert loss.loss_fn(collators["seq2seq"](examples))["loss_denominator"] == 3 + 3 + 5 + 5
    batch = collators["seq2seq_prediction"](examples)
    assert predictor.predict(batch)["lengths"].max() <= 5  # from max_target_length
