"""Each package declares what it imports: in the workspace a forgotten one is there all the same."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

PACKAGES = sorted((Path(__file__).parents[2] / "packages").iterdir())
OURS = {module.name: [package.name] for package in PACKAGES for module in (package / "src").iterdir()}
DISTRIBUTIONS = packages_distributions() | OURS  # what is editable has no list of its modules
BY_THE_TESTS = {"pytest"}  # xlm.testing is imported by tests, which have it


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: Path) -> set[str]:
    """Top-level names of all absolute imports, those inside functions too; templates of projects are data."""
    templates = {path.parent for path in folder.rglob("pyproject.toml")}
    files = [path for path in folder.rglob("*.py") if templates.isdisjoint(path.parents)]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def declared(project: dict) -> set[str]:
    extras = project.get("optional-dependencies", {}).values()
    requirements = [*project["dependencies"], *itertools.chain.from_iterable(extras)]
    return {normal(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_package_declares_what_it_imports(package: Path):
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    known = declared(project) | {project["name"]}
    names = imported(package / "src") - BY_THE_TESTS
    assert {name for name in names if not known & set(map(normal, DISTRIBUTIONS.get(name, [name])))} == set()
