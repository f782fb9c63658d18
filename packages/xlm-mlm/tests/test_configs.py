from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from xlm.config import compose
from xlm.instantiate import construct, locate
from xlm.testing.factories import infill_examples, lm_examples, seq2seq_examples, tiny_tokenizer, unconditional_examples

CONTEXT: dict[str, Any] = {
    "tokenizer": tiny_tokenizer(),
    "vocab_size": 12,
    "max_length": 13,
    "max_prompt_length": 8,
    "max_target_length": 5,
    "event_space": "open",
    "seed": 0,
}
ROLES = {"lm", "seq2seq", "seq2seq_prediction", "infill", "infill_prediction", "unconditional"}


def composed(*overrides: str) -> Any:
    return compose(["model_type=mlm", "model=mlm_tiny", *overrides])


def nodes() -> dict[str, Any]:
    config = composed()
    parts = {name: config[name] for name in ("model", "loss")} | dict(config.collators)
    return parts | {name: composed(f"predictor={name}").predictor for name in ("mlm", "mlm_remdm")}


def test_the_family_has_a_collator_for_every_role_and_no_noise_schedule():
    config = compose(["model_type=mlm"])
    assert config.family == "mlm"
    assert set(config.collators) == ROLES
    assert config.noise_schedule is None


@pytest.mark.parametrize("name", sorted(nodes()))
def test_the_keys_are_the_constructors_arguments_with_its_own_values(name):
    node = OmegaConf.to_container(nodes()[name])
    arguments = inspect.signature(locate(node.pop("_target_"), name)).parameters
    assert set(node) == set(arguments)
    sizes = {"d_model", "n_layers", "n_heads", "dropout"} if name == "model" else set()
    for key in set(node) - sizes:
        value = tuple(node[key]) if isinstance(node[key], list) else node[key]
        assert value is None or value == arguments[key].default, key


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 12 * 4 * 256**2), ("small", 12 * 12 * 768**2), ("medium", 12 * 24 * 1024**2)]
)
def test_a_size_has_its_weights_and_heads_of_64(size, parameters):
    with torch.device("meta"):
        model = construct(compose(["model_type=mlm", f"model=mlm_{size}"]).model, **CONTEXT)
    assert sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) == parameters
    assert model.head_dim == 64


BERT = [
    f"collators.{role}.{option}"
    for role in ("lm", "seq2seq", "infill")
    for option in ("mask_rate=0.15", "random_token_rate=0.1", "keep_rate=0.1", "whole_words=true")
]
OPTIONS: list[list[str]] = [
    [],
    BERT,
    ["predictor.order=margin", "predictor.threshold=0.9", "predictor.stop=[ab]", "predictor.min_new_tokens=2"],
    ["predictor.order=entropy", "predictor.gumbel=0.5", "predictor.likelihood=pseudo"],
    ["predictor=mlm_remdm", "predictor.steps=4"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=["defaults", "bert", "threshold", "gumbel", "remdm"])
def test_the_parts_fit_one_another(options):
    config = composed(*options)
    context = dict(CONTEXT)
    context["model"] = construct(config.model, **context).eval()
    loss, sampler = (construct(config[name], **context) for name in ("loss", "predictor"))
    collators = construct(config.collators, **context)
    examples = {"lm": lm_examples([3, 12]), "seq2seq": seq2seq_examples([3, 5], [2, 4]), "infill": infill_examples([9])}
    for role, rows in examples.items():
        batch = collators[role](rows)
        assert loss.loss_fn(batch)["loss"].isfinite()
        assert sampler.log_likelihood(batch)["nll"].isfinite().all()
    for role, rows in {**examples, "unconditional": unconditional_examples(2)}.items():
        if role != "lm":
            batch = collators[role if role == "unconditional" else f"{role}_prediction"](rows)
            assert len(sampler.to_dict(batch, sampler.predict(batch))) == len(rows)
