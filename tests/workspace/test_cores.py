"""Which cores .ci/cores.py tries a family with, and from which sources it builds them."""

from __future__ import annotations

import runpy
import subprocess
import tomllib
from dataclasses import astuple
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".ci")
    return runpy.run_path(str(ROOT / ".ci" / "cores.py"))


@pytest.mark.parametrize(
    ("requirement", "ends"),
    [
        ("xlm-core>=1.0,<1.1", ("0.999.999", "1.0.0", "1.0.999", "1.1.0")),
        ("xlm-core>=1.2.3,<2", ("1.2.2", "1.2.3", "1.999.999", "2.0.0")),
        ("xlm-core<1.10,>=1.8", ("1.7.999", "1.8.0", "1.9.999", "1.10.0")),
    ],
)
def test_the_ends_of_a_range_lie_on_both_sides_of_its_bounds(requirement, ends, script):
    assert astuple(script["cores"](["torch>=2", requirement])) == ends
    allowed = Requirement(requirement).specifier
    assert [allowed.contains(version) for version in ends] == [False, True, True, False]


@pytest.mark.parametrize(
    "dependencies", [[], ["xlm-core"], ["xlm-core>=1.0"], ["xlm-core==1.0"], ["xlm-core-more>=1,<2"]]
)
def test_a_range_with_one_end_is_refused(dependencies, script):
    with pytest.raises(SystemExit, match=r"write a range, such as xlm-core>=1\.0,<1\.1"):
        script["cores"](dependencies)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A core whose 1.0.0 was released before its sources changed."""
    root = tmp_path / "repository"
    (folder := root / "packages" / "xlm-core").mkdir(parents=True)

    def git(*words: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)

    git("init", "-q")
    for version in ("1.0.0", "1.0.1"):
        (folder / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n[tool.other]\nversion = "7"\n')
        git("add", ".")
        git("commit", "-qm", version)
        if version == "1.0.0":
            git("tag", "xlm-core-v1.0.0")
            (folder / "new.py").write_text("")
    return root


@pytest.mark.parametrize(("version", "is_todays"), [("1.0.0", False), ("1.0.999", True)])
def test_a_released_core_is_that_of_its_tag_and_another_todays(version, is_todays, script, repository, tmp_path):
    folder = script["sources"](version, tmp_path, repository)
    declared = tomllib.loads((folder / "pyproject.toml").read_text())
    assert declared == {"project": {"version": version}, "tool": {"other": {"version": "7"}}}
    assert (folder / "new.py").exists() == is_todays
