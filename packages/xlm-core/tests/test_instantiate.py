"""Parts are built from values and their context, and only from trusted packages."""

from __future__ import annotations

import sys

import pytest
import torch
from omegaconf import OmegaConf
from xlm import instantiate
from xlm.errors import UserError
from xlm.instantiate import construct, locate

LINEAR = "torch.nn.Linear"


def test_absent_and_null_arguments_come_from_the_context():
    node = OmegaConf.create({"_target_": LINEAR, "in_features": None, "bias": False})
    layer = construct(node, in_features=3, out_features=2, unrelated="ignored")
    assert (layer.in_features, layer.out_features, layer.bias) == (3, 2, None)


def test_a_given_value_wins_over_the_context():
    assert construct({"_target_": LINEAR, "in_features": 5}, in_features=3, out_features=2).in_features == 5


def test_nested_parts_are_built_first_and_share_the_context():
    node = {"first": {"_target_": LINEAR, "out_features": 2}, "sizes": [1, {"_target_": "torch.nn.ReLU"}]}
    built = construct(node, in_features=3)
    assert built["first"].in_features == 3
    assert isinstance(built["sizes"][1], torch.nn.ReLU)


def test_a_partial_waits_for_its_other_arguments():
    make = construct({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5})
    assert make([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 0.5


def test_what_a_partial_lacks_is_left_to_its_caller_and_not_taken_from_the_context():
    node = {"make": {"_target_": "xlm.optim.adamw", "_partial_": True, "lr": 0.5}}
    make = construct(node, model=torch.nn.Linear(1, 1))["make"]
    network = torch.nn.Linear(2, 2)
    assert make(network).param_groups[0]["params"][0] is network.weight


def test_a_list_becomes_the_tuple_that_the_argument_is():
    make = construct({"_target_": "xlm.optim.adamw", "_partial_": True, "betas": [0.8, 0.9]})
    assert make(torch.nn.Linear(1, 1)).param_groups[0]["betas"] == (0.8, 0.9)


def test_a_wrong_value_names_its_node():
    config = OmegaConf.create({"optimizer": {"_target_": "torch.nn.Dropout", "p": 2.0}})
    with pytest.raises(UserError, match=r"dropout probability.*in optimizer"):
        construct(config.optimizer)


def test_an_unknown_argument_names_its_node():
    with pytest.raises(UserError, match="in here"):
        construct({"_target_": LINEAR, "width": 3}, where="here", in_features=1, out_features=1)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "pathlib.Path.write_text",
        "torch.load",
        "numpy.load",
        "builtins.eval",
        "torch.optim.adamw.torch.load",  # through a module that a trusted one imports
        "xlm.cli.os.system",
        "torch.nn._reduction.get_enum",  # private
        "lightning.fabric.utilities.cloud_io._load",
        "torch.optim",  # neither class nor function
        "torchoptim.x",
        "torch.nn.",
        3,
    ],
)
def test_only_public_classes_and_functions_of_trusted_packages_are_found(target):
    with pytest.raises(UserError, match=r"part\._target_"):
        locate(target, "part")


def test_a_missing_class_of_a_trusted_package_names_the_path():
    with pytest.raises(UserError, match=r"no such class or function in part\._target_ \(torch\.nn\.Nope\)"):
        locate("torch.nn.Nope", "part")


def test_a_package_is_trusted_when_the_user_names_it(monkeypatch):
    monkeypatch.setattr(instantiate, "_named_by_user", set())
    with pytest.raises(UserError, match=r"trusted_packages=\[fractions\]"):
        locate("fractions.Fraction", "part")
    instantiate.trust(["fractions"])
    assert construct({"_target_": "fractions.Fraction", "numerator": 3}) == 3


def test_a_package_is_trusted_by_the_environment(monkeypatch):
    monkeypatch.setenv(instantiate.TRUST_VARIABLE, "fractions,decimal")
    assert locate("fractions.Fraction", "part").__name__ == "Fraction"


def test_an_import_that_fails_inside_a_part_is_not_the_configurations_mistake(monkeypatch, tmp_path):
    (tmp_path / "xlm_broken_part.py").write_text("import a_library_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(instantiate, "_named_by_user", {"xlm_broken_part"})
    with pytest.raises(ModuleNotFoundError, match="a_library_that_is_not_there"):
        locate("xlm_broken_part.Part", "part")


def test_a_family_that_needs_another_core_is_not_imported(monkeypatch, tmp_path):
    from xlm.registry import FAMILIES, Broken, Offer

    late = Offer(FAMILIES, "late", "xlm_late", "xlm-late", "3.0", folder=tmp_path)
    reason = UserError("xlm-late 3.0 needs xlm-core>=99", fix="upgrade")
    monkeypatch.setattr(instantiate.registry, "_found", lambda models_path: [Broken(late, reason)])
    with pytest.raises(UserError, match="needs xlm-core>=99"):
        locate("xlm_late.model.Model", "model")
    assert "xlm_late" not in sys.modules
