"""Families are found by entry point, and nothing is imported to find one."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
from xlm import registry
from xlm.errors import UserError


def make_package(folder, name):
    """A package with an options folder; importing it fails."""
    (folder / name / registry.CONFIGS).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    return folder / name


def install(folder, family, module, distribution, *requires):
    """What pip leaves of a distribution that offers a family, in a folder of ``sys.path``."""
    about = folder / f"{distribution.replace('-', '_')}-1.0.0.dist-info"
    about.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0.0"]
    (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {name}" for name in requires), ""]))
    (about / "entry_points.txt").write_text(f"[xlm.families]\n{family} = {module}\n")


def found(name):
    """The family of this name."""
    registry._packages.cache_clear()
    return next(family for family in registry.families() if family.name == name)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(registry.MODELS_PATH, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry._packages.cache_clear()
    yield
    registry._packages.cache_clear()


def test_a_family_is_found_without_being_imported(monkeypatch, tmp_path):
    make_package(tmp_path, "xlm_quiet")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "quiet", "xlm_quiet", "xlm-quiet")
    family = found("quiet")
    assert (family.name, family.module, family.distribution) == ("quiet", "xlm_quiet", "xlm-quiet")
    assert family.configs == tmp_path / "xlm_quiet" / "configs" / "lightning_train"
    assert "xlm_quiet" not in sys.modules


def test_a_family_inside_a_package_is_found_without_importing_its_parent(monkeypatch, tmp_path):
    make_package(tmp_path, "outer")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "inner", "outer.inner", "outer-dist")
    assert found("inner").folder == tmp_path / "outer" / "inner"
    assert "outer" not in sys.modules


def test_families_come_in_name_order(monkeypatch, tmp_path):
    for name in ("b", "a"):
        make_package(tmp_path, f"xlm_{name}")
        install(tmp_path, name, f"xlm_{name}", f"xlm-{name}")
    monkeypatch.syspath_prepend(tmp_path)
    names = [family.name for family in registry.families()]
    assert {"a", "b"} <= set(names)
    assert names == sorted(names)


def test_two_distributions_of_one_name_are_refused_by_name(monkeypatch, tmp_path):
    for name in ("one", "two"):
        make_package(tmp_path, f"xlm_{name}")
        install(tmp_path, "same", f"xlm_{name}", f"dist-{name}")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"dist-(one and dist-two|two and dist-one) both offer 'same'"):
        registry.packages()


def test_an_entry_point_without_its_package_names_the_distribution(monkeypatch, tmp_path):
    install(tmp_path, "gone", "xlm_gone_for_good", "xlm-gone")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"xlm-gone offers 'gone'.*not there"):
        registry.packages()


@pytest.mark.parametrize(
    ("requirement", "fits"), [("xlm-core>=1.0,<2", True), ("xlm_core>=99", False), ("torch", True)]
)
def test_the_core_range_of_a_family_is_checked(monkeypatch, tmp_path, requirement, fits):
    make_package(tmp_path, "xlm_old")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "old", "xlm_old", "xlm-old", requirement)
    family = found("old")
    if fits:
        family.check_core()
    else:
        with pytest.raises(UserError, match=f"xlm-old 1.0.0 needs xlm-core>=99.*{metadata.version('xlm-core')}"):
            family.check_core()
    assert "xlm_old" not in sys.modules


@pytest.mark.parametrize("layout", ["the package", "its project", "the folder that holds it"])
def test_a_package_being_written_is_found_and_said(monkeypatch, tmp_path, capsys, layout):
    folder = make_package(tmp_path / "xlm-new" / "src", "xlm_new")
    named = {"the package": folder, "its project": tmp_path / "xlm-new", "the folder that holds it": folder.parent}
    monkeypatch.setenv(registry.MODELS_PATH, str(named[layout]))
    family = found("new")
    assert family.folder == folder
    assert f"using xlm_new from {folder}" in capsys.readouterr().err
    assert sys.path[-1] == str(folder.parent)  # after all that is installed
    assert registry.package_of("xlm_new.parts.Model") is family


def test_a_directory_without_a_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv(registry.MODELS_PATH, str(tmp_path))
    with pytest.raises(UserError, match=registry.MODELS_PATH):
        registry.packages()


def test_the_working_directory_is_never_looked_at(monkeypatch, tmp_path):
    make_package(tmp_path, "xlm_here")
    monkeypatch.chdir(tmp_path)
    assert "here" not in [family.name for family in registry.families()]
