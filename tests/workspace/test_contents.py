"""What .ci/contents.py finds wrong with a wheel."""

from __future__ import annotations

import runpy
from pathlib import Path
from zipfile import ZipFile

import pytest

faults = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "contents.py"))["faults"]
PROJECT = """
[project]
name = "some-thing"
version = "1.2.0"
license = "MIT"
license-files = ["LICENSE"]
requires-python = ">=3.11"
entry-points."xlm.families".thing = "some_thing"
scripts.thing = "some_thing:main"
"""
METADATA = """Name: some-thing
Version: 1.2.0
Requires-Python: >=3.11
License-Expression: MIT
Requires-Dist: torch>=2
"""
ENTRY_POINTS = """[console_scripts]
thing = some_thing:main
[xlm.families]
thing = some_thing
"""
INFO = "some_thing-1.2.0.dist-info"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    module = tmp_path / "package" / "src" / "some_thing"
    (module / "configs" / "model").mkdir(parents=True)
    (tmp_path / "package" / "pyproject.toml").write_text(PROJECT)
    for name in ("__init__.py", "py.typed", "configs/model/thing_tiny.yaml"):
        (module / name).write_text("")
    return tmp_path / "package"


@pytest.fixture
def entries() -> dict[str, str]:
    """The files of a good wheel."""
    return {
        "some_thing/__init__.py": "",
        "some_thing/py.typed": "",
        "some_thing/configs/model/thing_tiny.yaml": "",
        f"{INFO}/METADATA": METADATA,
        f"{INFO}/WHEEL": "",
        f"{INFO}/RECORD": "",
        f"{INFO}/licenses/LICENSE": "",
        f"{INFO}/entry_points.txt": ENTRY_POINTS,
    }


def packed(folder: Path, entries: dict[str, str], name: str = "some_thing-1.2.0-py3-none-any.whl") -> Path:
    with ZipFile(folder / name, "w") as archive:
        for entry, text in entries.items():
            archive.writestr(entry, text)
    return folder / name


def test_a_wheel_of_the_sources_is_good(package, entries, tmp_path):
    assert faults(packed(tmp_path, entries), package) == []


@pytest.mark.parametrize(
    "entry",
    [
        "some_thing/__init__.py",
        "some_thing/py.typed",
        "some_thing/configs/model/thing_tiny.yaml",
        f"{INFO}/licenses/LICENSE",
        f"{INFO}/entry_points.txt",
    ],
)
def test_a_file_that_was_left_out_is_named(entry, package, entries, tmp_path):
    del entries[entry]
    assert f"it lacks {entry}" in faults(packed(tmp_path, entries), package)


@pytest.mark.parametrize("entry", ["tests/test_loss.py", "some_thing/notes.txt", "hydra_plugins/__init__.py"])
def test_a_file_that_is_no_source_is_named(entry, package, entries, tmp_path):
    entries[entry] = ""
    assert faults(packed(tmp_path, entries), package) == [f"it should not hold {entry}"]


def test_a_package_without_types_is_found_out(package, entries, tmp_path):
    (package / "src" / "some_thing" / "py.typed").unlink()
    del entries["some_thing/py.typed"]
    assert faults(packed(tmp_path, entries), package) == ["some_thing says nothing about its types"]


def test_another_entry_point_is_found_out(package, entries, tmp_path):
    entries[f"{INFO}/entry_points.txt"] = ENTRY_POINTS.replace("thing = some_thing\n", "Thing = some_thing\n")
    assert "its entry points are" in faults(packed(tmp_path, entries), package)[0]


@pytest.mark.parametrize(
    ("line", "changed", "says"),
    [
        ("Requires-Python: >=3.11", "Requires-Python: >=3.9", "Requires-Python is >=3.9"),
        ("License-Expression: MIT\n", "", "License-Expression is None"),
        ("torch>=2", "xlm-core @ file:///somewhere", "a place instead of a version"),
    ],
)
def test_wrong_metadata_is_found_out(line, changed, says, package, entries, tmp_path):
    entries[f"{INFO}/METADATA"] = METADATA.replace(line, changed)
    found = faults(packed(tmp_path, entries), package)
    assert len(found) == 1
    assert says in found[0]


def test_the_wheel_of_another_version_is_found_out(package, entries, tmp_path):
    wheel = packed(tmp_path, entries, "some_thing-0.3.1-py3-none-any.whl")
    assert faults(wheel, package) == ["some_thing-0.3.1-py3-none-any.whl is not the wheel of some-thing 1.2.0"]
