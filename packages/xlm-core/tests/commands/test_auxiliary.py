"""A loss with a network of its own, from the command line: one experiment file, no other class."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from xlm.weights import load_weights

EXPERIMENT = "experiment=toy_critic"


@pytest.fixture
def run(xlm, toy):
    xlm("train", EXPERIMENT, "run_dir=run")
    return toy / "run"


def test_an_evaluation_takes_the_trained_second_network(xlm, toy, run, results):
    assert (run / "model_auxiliary.safetensors").exists()
    for source in ("run", "run/model.safetensors"):
        xlm("eval", f"checkpoint={source}", f"run_dir=e{len(source)}")
        assert results(toy / f"e{len(source)}")["test.pairs"] == results(run)["test.pairs"]
    alone = toy / "alone"
    shutil.copytree(run, alone, ignore=shutil.ignore_patterns("checkpoints", "*_auxiliary.safetensors"))
    said = xlm("eval", "checkpoint=alone/model.safetensors", "run_dir=none", code=2)
    assert "no weights of the loss's own network" in said
    xlm("generate", "checkpoint=alone/model.safetensors", "output=texts.jsonl", "num_samples=2")  # the model is enough
    assert len((toy / "texts.jsonl").read_text().splitlines()) == 2


def test_its_optimizer_is_set_beside_the_models(xlm, toy):
    words = ("optimizer.lr=0.0", "optimizer.weight_decay=0.0", "lr_scheduler=constant", "trainer.max_steps=1")
    moved = {}
    for lr in (0.0, 0.5):
        xlm("train", EXPERIMENT, *words, f"run_dir=lr{lr}", f"loss.auxiliary_optimizer.lr={lr}")
        moved[lr] = load_weights(toy / f"lr{lr}")
    assert all((moved[0.5].tensors[name] == tensor).all() for name, tensor in moved[0.0].tensors.items())
    assert (moved[0.5].auxiliary["weight"] != moved[0.0].auxiliary["weight"]).any()
    config = yaml.safe_load((toy / "lr0.5" / "config.yaml").read_text())
    assert config["loss"]["auxiliary_optimizer"]["_target_"] == "xlm.optim.adamw"


def test_a_mistake_in_its_optimizer_is_named_by_its_key(xlm):
    assert "did you mean loss.auxiliary_optimizer.lr?" in xlm(
        "train", EXPERIMENT, "loss.auxiliary_optimizer.lrr=1", code=2
    )


def test_a_check_takes_a_step_of_both(xlm):
    assert "gradient norm" in xlm("check", EXPERIMENT)


def test_a_run_begins_from_another_with_or_without_a_second_network(xlm, toy, run, results):
    xlm("train", "experiment=toy_short", "run_dir=plain")
    words = ("trainer.max_steps=1", "optimizer.lr=0", "loss.auxiliary_optimizer.lr=0", "lr_scheduler=constant")
    for source in ("run", "plain"):
        xlm("train", EXPERIMENT, *words, f"init_from={source}", f"run_dir=from_{source}")
    begun, source = load_weights(toy / "from_run"), load_weights(run)
    assert (begun.auxiliary["weight"] == source.auxiliary["weight"]).all()
    assert (begun.tensors["embed.weight"] == source.tensors["embed.weight"]).all()
    assert (load_weights(toy / "from_plain").auxiliary["weight"] != source.auxiliary["weight"]).any()
    xlm("train", "experiment=toy_short", "init_from=run", "run_dir=without", "trainer.max_steps=1")
    assert "nats_per_token" in json.dumps(results(toy / "without"))
