from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from xlm.config import compose
from xlm.instantiate import construct, locate
from xlm.noise import LogLinearSchedule
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
PREDICTORS = ["mdlm_first_hitting", "mdlm_ancestral", "mdlm_top_probability", "mdlm_remdm"]


def composed(*overrides: str) -> Any:
    return compose(["model_type=mdlm", "model=mdlm_tiny", *overrides])


def nodes() -> dict[str, Any]:
    config = composed()
    parts = {name: config[name] for name in ("model", "loss")} | dict(config.collators)
    return parts | {name: composed(f"predictor={name}").predictor for name in PREDICTORS}


def test_the_family_has_a_collator_for_every_role_and_the_papers_schedule():
    config = compose(["model_type=mdlm"])
    assert config.family == "mdlm"
    assert set(config.collators) == ROLES
    assert isinstance(construct(config.noise_schedule), LogLinearSchedule)


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
        model = construct(compose(["model_type=mdlm", f"model=mdlm_{size}"]).model, **CONTEXT)
    assert sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) == parameters
    assert model.head_dim == 64


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("options", [[], ["model.condition_on_mask_rate=true", "noise_schedule=cosine"]], ids=str)
def test_the_parts_fit_one_another(predictor, options):
    config = composed(f"predictor={predictor}", *options)
    context = {**CONTEXT, "noise_schedule": construct(config.noise_schedule)}
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
