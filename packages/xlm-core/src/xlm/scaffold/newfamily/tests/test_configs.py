"""The options fit the parts, and one another."""

from __future__ import annotations

import inspect

import pytest
from omegaconf import OmegaConf
from xlm.cli import main
from xlm.config import compose
from xlm.config.search import options
from xlm.instantiate import locate

SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "trainer.accelerator=cpu"]
FEW = ["datamodule.global_batch_size=4", "trainer.max_steps=2", "debug=small_data"]


def test_the_keys_of_every_part_are_the_constructors_arguments():
    chosen = [f"{group}={name}" for group in ("model", "predictor") for name in options()[group] if of_this(name)]
    for choice in chosen:
        config = compose(["model_type=newfamily", choice])
        for name, node in {**config.collators, "model": config.model, "loss": config.loss}.items():
            agree(OmegaConf.to_container(node), name)
        agree(OmegaConf.to_container(config.predictor), choice)


def of_this(name):
    return name == "newfamily" or name.startswith("newfamily_")


def agree(node, name):
    arguments = inspect.signature(locate(node.pop("_target_"), name)).parameters
    assert set(node) == set(arguments), name


@pytest.mark.slow
def test_it_trains_and_generates(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XLM_CACHE_DIR", str(tmp_path / "cache"))
    run = tmp_path / "run"
    task = ["model_type=newfamily", "datamodule=star_easy", f"run_dir={run}"]
    assert main(["train", *task, *SMALL, *FEW]) == 0
    assert main(["generate", f"checkpoint={run}", "prompt=1 2"]) == 0
    assert (run / "results.json").is_file()
