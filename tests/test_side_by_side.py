"""Two packages of others beside the four families: each is what it is alone."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from xlm import registry
from xlm.cli import main
from xlm.config import compose, search, validate
from xlm.errors import UserError
from xlm.instantiate import construct
from xlm.testing.generic import CONTEXT

FAMILIES = ("arlm", "ilm", "mdlm", "mlm")
OTHERS = ("left", "right")
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "trainer.accelerator=cpu"]
TASK = ["datamodule=sudoku_4x4", "debug=small_data"]
OPTIONS = "configs/lightning_train"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """Projects by name: one of the template, one of an installed family; both with options of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XLM_MODELS_PATH", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry.forget()
    before = set(sys.modules)
    assert main(["scaffold", "left"]) == 0
    assert main(["scaffold", "right", "from=mdlm"]) == 0
    for name, predictor in (("left", "left"), ("right", "right_ancestral")):
        options = tmp_path / f"xlm-{name}" / "src" / f"xlm_{name}" / OPTIONS
        (options / "predictor" / f"{name}_cold.yaml").write_text(f"defaults: [{predictor}]\n\ntemperature: 0.5\n")
        for group, task in (("datamodule", f"{name}_grids"), ("predictor", "random")):
            source = {"datamodule": "defaults: [sudoku_4x4]\n", "predictor": f"defaults: [{predictor}]\n"}[group]
            (options / group).mkdir(exist_ok=True)
            (options / group / f"{task}.yaml").write_text(source)
    yield {name: tmp_path / f"xlm-{name}" for name in OTHERS}
    for module in [module for module in set(sys.modules) - before if module.startswith(("xlm_left", "xlm_right"))]:
        del sys.modules[module]
    registry.forget()


@pytest.fixture
def use(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Make some of them known: the first is installed, the second is being written."""

    def known(*names: str) -> None:
        monkeypatch.setattr(sys, "path", [path for path in sys.path if "xlm-left" not in path])
        monkeypatch.setenv("XLM_MODELS_PATH", str(made["right"]) if "right" in names else "")
        if "left" in names:
            about = made["left"] / "src" / "xlm_left-0.1.0.dist-info"
            about.mkdir(exist_ok=True)
            (about / "METADATA").write_text("Name: xlm-left\nVersion: 0.1.0\nRequires-Dist: xlm-core>=1.0,<1.1\n")
            offers = {"families": "xlm_left", "tasks": "xlm_left", "oracles": "xlm_left.oracle_case:case"}
            lines = [f"[xlm.{group}]\nleft = {target}\n" for group, target in offers.items()]
            (about / "entry_points.txt").write_text("".join(lines))
            sys.path.insert(0, str(made["left"] / "src"))
        registry.forget()

    return known


def composed(family: str, *words: str) -> dict[str, Any]:
    config = compose([f"model_type={family}", *TASK, *words])
    validate(config)
    found = OmegaConf.to_container(config)
    assert isinstance(found, dict)
    return found


def built(family: str) -> dict[str, Any]:
    """Weights and classes of a family's parts."""
    config = compose([f"model_type={family}", *SMALL])
    context = {**CONTEXT, "noise_schedule": construct(config.noise_schedule) if config.noise_schedule else None}
    torch.manual_seed(0)
    model = construct(config.model, where="model", **context)
    parts = {"loss": config.loss, "predictor": config.predictor}
    made = {name: type(construct(node, where=name, model=model, **context)) for name, node in parts.items()}
    weights = b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())
    return {"weights": hashlib.sha256(weights).hexdigest(), **made}


@pytest.mark.slow
def test_every_family_composes_and_builds_as_without_the_others(use):
    use()
    alone = {family: (composed(family), built(family)) for family in FAMILIES}
    for name in OTHERS:
        use(name)
        alone[name] = (composed(name), built(name))
    use(*OTHERS)
    assert {package.name for package in registry.families()} >= {*FAMILIES, *OTHERS}
    assert registry.broken() == []
    assert {name: (composed(name), built(name)) for name in alone} == alone
    assert len({parts["loss"] for _, parts in alone.values()}) == len(alone)


def test_options_of_both_stand_side_by_side(use):
    use(*OTHERS)
    for name in OTHERS:
        assert composed(name, f"predictor={name}_cold")["predictor"]["temperature"] == 0.5
        assert composed("mdlm", f"datamodule={name}_grids")["choices"]["datamodule"] == f"{name}_grids"
    with pytest.raises(UserError, match="belongs to family right, the loss to left"):
        composed("left", "predictor=right_cold")


def test_an_option_of_one_name_is_neither_ones_and_goes_with_one_of_them_again(use):
    use("left")
    assert composed("left", "predictor=random")["predictor"]["_target_"].startswith("xlm_left.")
    use("right")
    assert composed("right", "predictor=random")["predictor"]["_target_"].startswith("xlm_right.")
    use(*OTHERS)
    for family in (*OTHERS, "mdlm"):
        with pytest.raises(UserError, match=r"xlm-left and \S+xlm_right both offer the option 'predictor/random'"):
            composed(family, "predictor=random")
    assert "random" not in search.options()["predictor"]


def test_nobody_takes_an_option_or_the_name_of_a_shipped_family_silently(use, made):
    use("left")
    both = r"(xlm-left and xlm-mdlm|xlm-mdlm and xlm-left) both offer"
    taken = made["left"] / "src" / "xlm_left" / OPTIONS / "predictor" / "mdlm_ancestral.yaml"
    taken.write_text("defaults: [left]\n")
    with pytest.raises(UserError, match=f"{both} the option 'predictor/mdlm_ancestral'"):
        composed("mdlm", "predictor=mdlm_ancestral")
    assert composed("mdlm")["choices"]["predictor"] == "mdlm_first_hitting"
    with (made["left"] / "src" / "xlm_left-0.1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write("[xlm.families]\nmdlm = xlm_left\n")
    registry.forget()
    with pytest.raises(UserError, match=f"{both} 'mdlm'"):
        composed("mdlm")
    assert composed("arlm")["family"] == "arlm"


@pytest.mark.slow
def test_both_take_a_step_and_are_listed(use, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    use(*OTHERS)
    for name in OTHERS:
        assert main(["check", f"model_type={name}", *TASK, *SMALL]) == 0
        assert "gradient norm" in capsys.readouterr().out
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "xlm-left 0.1.0" in out
    assert "xlm_right (being written)" in out
