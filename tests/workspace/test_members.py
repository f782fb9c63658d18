"""Every package is in the workspace's lists that name packages: what is left out is not installed, or not checked."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())
TOOLS = WORKSPACE["tool"]
CONTRACTS = {contract["name"]: contract for contract in TOOLS["importlinter"]["contracts"]}
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
FAMILIES = [name for name in PACKAGES if name != "xlm-core"]


def module(package: str) -> str:
    (folder,) = (path for path in (ROOT / "packages" / package / "src").iterdir() if path.is_dir())
    return folder.name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_installed_with_the_workspace_and_its_shapes_are_checked(package):
    required = {re.split(r"[^\w-]", line)[0] for line in WORKSPACE["project"]["dependencies"]}
    (hook,) = (word for word in TOOLS["pytest"]["ini_options"]["addopts"] if word.startswith("--jaxtyping-packages="))
    assert package in required
    assert TOOLS["uv"]["sources"][package] == {"workspace": True}
    assert module(package) in re.split("[=,]", hook)
    assert module(package) in TOOLS["importlinter"]["root_packages"]


@pytest.mark.parametrize("package", FAMILIES)
@pytest.mark.parametrize(
    ("contract", "key"),
    [
        ("The core names no family", "forbidden_modules"),
        ("Families do not know each other", "modules"),
        ("The parts of a family do not know each other, and not their oracle case", "containers"),
        ("A family stands on levels 0 to 2 of the core, and on its padding", "source_modules"),
    ],
)
def test_the_imports_of_a_family_are_checked(contract, key, package):
    assert module(package) in CONTRACTS[contract][key]
