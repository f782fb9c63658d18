"""What .github/released.py lets a tag release, and what the workflow allows whom."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def released(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / ".github")
    return runpy.run_path(str(ROOT / ".github" / "released.py"))["released"]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two packages, of which xlm-pairs is ready for its release."""
    for name, heading in (("xlm-pairs", "1.2.0 (2026-12-01)"), ("xlm-core", "1.0.0 (unreleased)")):
        (folder := tmp_path / "packages" / name).mkdir(parents=True)
        (folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\nversion = "{heading.split()[0]}"\n')
        (folder / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n- New.\n\n## 0.9.0 (2026-01-01)\n")
    return tmp_path


def test_a_tag_that_agrees_with_version_and_changelog_releases_its_package(released, workspace):
    assert released("xlm-pairs-v1.2.0", workspace) == "xlm-pairs"


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("v1.2.0", "v1.2.0 is no release: name a package and its version, as in xlm-arlm-v1.0.0"),
        ("xlm-pairs-v", "xlm-pairs-v is no release: name a package and its version, as in xlm-arlm-v1.0.0"),
        ("xlm-pairs-v1.2/0", "xlm-pairs-v1.2/0 is no release: name a package and its version, as in xlm-arlm-v1.0.0"),
        ("xlm-pair-v1.2.0", "xlm-pair-v1.2.0 releases xlm-pair, which is none of xlm-core, xlm-pairs"),
        (
            "xlm-pairs-v1.2.1",
            "xlm-pairs-v1.2.1 releases 1.2.1, but the version in packages/xlm-pairs/pyproject.toml is 1.2.0",
        ),
        (
            "xlm-core-v1.0.0",
            "xlm-core-v1.0.0: the first heading in packages/xlm-core/CHANGELOG.md is '## 1.0.0 (unreleased)', "
            "not '## 1.0.0 (YEAR-MONTH-DAY)'",
        ),
    ],
)
def test_a_tag_that_does_not_is_refused_in_one_line(tag, says, released, workspace):
    with pytest.raises(SystemExit) as refused:
        released(tag, workspace)
    assert refused.value.code == says


@pytest.mark.parametrize(
    "changelog", ["# Changelog\n\n## 0.9.0 (2026-01-01)\n", "# Changelog\n", "## 1.2.00 (2026-12-01)"]
)
def test_a_changelog_without_the_version_on_top_is_refused(changelog, released, workspace):
    (workspace / "packages/xlm-pairs/CHANGELOG.md").write_text(changelog)
    with pytest.raises(SystemExit, match=r"the first heading in packages/xlm-pairs/CHANGELOG.md is '.*', not"):
        released("xlm-pairs-v1.2.0", workspace)


def test_only_the_job_that_publishes_may_say_who_it_is_and_it_runs_nothing_of_the_repository():
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert workflow["permissions"] == {}
    jobs = workflow["jobs"]
    assert {name for name, job in jobs.items() if "id-token" in job["permissions"]} == {"publish"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    assert not [step for step in jobs["publish"]["steps"] if "checkout" in step.get("uses", "")]


def test_nothing_is_published_before_its_tests_have_passed():
    jobs = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
    assert "build" in jobs["publish"]["needs"]
    assert "test" in jobs["build"]["needs"]
    assert jobs["test"]["needs"] == "released"
