"""Families and tasks are found by entry point, and nothing is imported to find one."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from distributions import install
from xlm import registry
from xlm.commands import info
from xlm.config import compose, search
from xlm.errors import UserError
from xlm.instantiate import construct, locate


def make_package(folder, name):
    """A family's package with an options folder; importing it fails."""
    (folder / name / registry.CONFIGS / "model_type").mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')")
    return folder / name


def found(name):
    """The family of this name."""
    registry.forget()
    return next(family for family in registry.families() if family.name == name)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(registry.MODELS_PATH, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    registry.forget()
    yield
    registry.forget()


def test_a_family_is_found_without_being_imported(monkeypatch, tmp_path):
    make_package(tmp_path, "xlm_quiet")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "quiet", "xlm_quiet", "xlm-quiet")
    family = found("quiet")
    assert (family.name, family.module, family.distribution) == ("quiet", "xlm_quiet", "xlm-quiet")
    assert family.configs == tmp_path / "xlm_quiet" / "configs" / "lightning_train"
    assert "xlm_quiet" not in sys.modules


def test_a_family_inside_a_package_is_found_without_importing_its_parent(monkeypatch, tmp_path):
    make_package(tmp_path / "outer", "inner")
    (tmp_path / "outer" / "__init__.py").write_text("raise RuntimeError('imported')")
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


def why(name):
    """Why the package of this name is left out."""
    registry.forget()
    assert name not in [package.name for package in registry.packages()]
    (reason,) = {str(found.reason) for found in registry.broken() if found.offer.name == name}
    return reason


def test_two_distributions_of_one_name_are_left_out_naming_both(monkeypatch, tmp_path):
    for name in ("one", "two"):
        make_package(tmp_path, f"xlm_{name}")
        install(tmp_path, "same", f"xlm_{name}", f"dist-{name}")
    monkeypatch.syspath_prepend(tmp_path)
    assert re.match(r"dist-(one and dist-two|two and dist-one) both offer 'same' in xlm.families; fix: ", why("same"))


def test_three_distributions_of_one_name_are_all_named(monkeypatch, tmp_path):
    for name in ("one", "two", "three"):
        make_package(tmp_path, f"xlm_{name}")
        install(tmp_path, "same", f"xlm_{name}", f"dist-{name}")
    monkeypatch.syspath_prepend(tmp_path)
    named = why("same").partition(" offer 'same'")[0]
    assert sorted(named.split(", ")) == ["dist-one", "dist-three", "dist-two"]


@pytest.mark.parametrize(
    ("requirement", "fits"),
    [
        ("xlm-core>=1.0,<2", True),
        ("xlm_core>=99", False),
        ("torch", True),
        ("xlm-core>=99; extra == 'new'", True),
        ("xlm-core>=99; python_version > '3'", False),
        ("xlm-core-extras>=99", True),
    ],
)
def test_the_core_range_of_a_package_is_checked(monkeypatch, tmp_path, requirement, fits):
    make_package(tmp_path, "xlm_old")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "old", "xlm_old", "xlm-old", requirement)
    if fits:
        assert found("old").version == "1.0.0"
    else:
        expected = "xlm-old 1.0.0 needs xlm-core>=99 in package xlm-old (xlm-core "
        assert why("old").startswith(f"{expected}{metadata.version('xlm-core')}); fix: pip install --upgrade xlm-old")
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


PROJECT = """
[project]
name = "xlm-new"
dependencies = ["torch", "xlm-core{range}"]
[project.entry-points."xlm.families"]
{name} = "xlm_new"
[project.entry-points."xlm.tasks"]
words = "xlm_new"
not_here = "another"
[project.entry-points."xlm.oracles"]
{name} = "xlm_new.checks:case"
"""


@pytest.mark.parametrize("layout", ["src", "."])
def test_a_package_being_written_offers_what_its_project_says(monkeypatch, tmp_path, layout):
    folder = make_package(tmp_path / layout, "xlm_new")
    (folder / "checks.py").touch()
    (folder / "oracle_case.py").touch()
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(name="newest", range=">=1.0"))
    monkeypatch.setenv(registry.MODELS_PATH, str(tmp_path))
    registry.forget()
    offered = [package for package in registry.packages() if package.folder == folder]
    assert [(package.name, package.is_family) for package in offered] == [("newest", True), ("words", False)]
    assert registry.oracle_cases()["newest"] == "xlm_new.checks:case"


def test_without_a_project_a_package_being_written_has_its_own_oracle_case(monkeypatch, tmp_path):
    folder = make_package(tmp_path, "xlm_new")
    (folder / "oracle_case.py").touch()
    monkeypatch.setenv(registry.MODELS_PATH, str(folder))
    registry.forget()
    assert registry.oracle_cases()["new"] == "xlm_new.oracle_case:case"


def test_the_core_range_of_a_package_being_written_is_checked_before_it_can_be_imported(monkeypatch, tmp_path):
    folder = make_package(tmp_path / "src", "xlm_new")
    (folder / "checks.py").touch()
    (tmp_path / "pyproject.toml").write_text(PROJECT.format(name="new", range="<0.9"))
    monkeypatch.setenv(registry.MODELS_PATH, str(tmp_path))
    assert why("new").startswith(f"{folder} (being written) needs xlm-core<0.9 in package {folder} (xlm-core ")
    assert str(folder.parent) not in sys.path


def test_what_is_installed_and_being_written_is_one_package(monkeypatch, tmp_path):
    folder = make_package(tmp_path, "xlm_new")
    install(tmp_path, "new", "xlm_new", "xlm-new")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.MODELS_PATH, str(folder))
    assert found("new").distribution == "xlm-new"


def test_a_module_being_written_that_another_would_hide_is_left_out(monkeypatch, tmp_path):
    make_package(tmp_path / "installed", "xlm_new")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    folder = make_package(tmp_path / "written", "xlm_new")
    monkeypatch.setenv(registry.MODELS_PATH, str(folder))
    assert f"would be hidden by another module 'xlm_new' in xlm.families ({tmp_path}/installed/xlm_new)" in why("new")


def test_a_directory_without_a_package_is_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv(registry.MODELS_PATH, str(tmp_path))
    assert why(tmp_path.name).startswith("no package with configs/lightning_train in this directory in XLM_MODELS_PATH")


def test_a_directory_that_cannot_be_found_out_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    directories = ("~nosuchuser/new", str(tmp_path / "round"))
    monkeypatch.setenv(registry.MODELS_PATH, ":".join(directories))
    assert why("new").startswith("this directory cannot be read: ")
    assert f"in XLM_MODELS_PATH ({directories[0]}); fix: " in why("new")
    assert f"in XLM_MODELS_PATH ({directories[1]}); fix: " in why("round")  # unreadable, or without a package


COUNTING = """
class Counting:
    def __init__(self, *, split, n=3):
        self.split, self.n = split, n

    def rows(self):
        return [{"text": " ".join(map(str, range(i + 1)))} for i in range(self.n)]
"""


@pytest.fixture
def counting(monkeypatch, tmp_path):
    """A distribution that offers a task, and no more: its code, a datamodule and a data set."""
    options = tmp_path / "counting" / registry.CONFIGS
    for group in ("datamodule", "dataset_manager"):
        (options / group).mkdir(parents=True)
    (tmp_path / "counting" / "__init__.py").touch()
    (tmp_path / "counting" / "data.py").write_text(COUNTING)
    source = "source: {_target_: counting.data.Counting, split: test}"
    (options / "dataset_manager" / "counting_loss.yaml").write_text(
        f"defaults: [base/loss@_here_, _self_]\nroles: [lm]\n{source}\n"
    )
    manager = "/dataset_manager@dataset_managers.train.counting: counting_loss"
    (options / "datamodule" / "counting.yaml").write_text(
        f"defaults:\n  - base/common@_here_\n  - {manager}\n  - _self_\nmax_length: 8\n"
    )
    install(tmp_path, "counting", "counting", "counting-task", group="xlm.tasks")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "counting"]:
        del sys.modules[name]


def test_a_task_of_another_distribution_is_found_without_being_imported_and_is_no_family(counting):
    task = next(package for package in registry.packages() if package.name == "counting")
    assert (task.distribution, task.is_family) == ("counting-task", False)
    assert task not in registry.families()
    assert "counting" not in sys.modules


def test_a_task_of_another_distribution_is_chosen_like_one_of_the_cores(counting):
    assert search.options()["datamodule"]["counting"].is_relative_to(counting)
    config = compose(["datamodule=counting", "datamodule.dataset_managers.train.counting.source.n=2"])
    data = construct(config.datamodule)
    assert data.managers("train")[0].source.rows() == [{"text": "0"}, {"text": "0 1"}]
    assert info.roles_of_task("counting", search.options()) == [["lm"]]


def test_a_task_that_was_written_for_another_core_is_refused(counting):
    install(counting, "counting", "counting", "counting-task", "xlm-core>=99", group="xlm.tasks")
    registry.forget()
    with pytest.raises(UserError, match=r"counting-task 1.0.0 needs xlm-core>=99"):
        compose(["datamodule=counting"])
    with pytest.raises(UserError, match=r"counting-task 1.0.0 needs xlm-core>=99"):
        construct({"_target_": "counting.data.Counting", "split": "test"})
    assert "counting" not in sys.modules


def test_parts_of_a_package_that_offers_both_are_the_familys(monkeypatch, tmp_path):
    make_package(tmp_path, "xlm_both")
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "both", "xlm_both", "xlm-both")
    install(tmp_path, "a_task", "xlm_both", "xlm-both", group="xlm.tasks")
    assert registry.package_of("xlm_both.model.Model").name == "both"
    assert {package.name for package in registry.packages()} >= {"a_task", "both"}


def test_a_package_for_another_core_is_not_imported_though_another_distribution_shares_its_namespace(
    monkeypatch, tmp_path
):
    for name, needed in (("one", "xlm-core>=99"), ("two", "xlm-core")):
        (make_package(tmp_path / "outer", name) / "__init__.py").write_text("")
        (tmp_path / "outer" / name / "parts.py").write_text("class Loss:\n    pass\n")
        install(tmp_path, name, f"outer.{name}", f"dist-{name}", needed)
    monkeypatch.syspath_prepend(tmp_path)
    registry.forget()
    with pytest.raises(UserError, match=r"dist-one 1\.0\.0 needs xlm-core>=99"):
        locate("outer.one.parts.Loss", "loss")
    assert "outer.one" not in sys.modules
    assert locate("outer.two.parts.Loss", "loss").__module__ == "outer.two.parts"
    for name in [name for name in sys.modules if name.partition(".")[0] == "outer"]:
        del sys.modules[name]


def test_a_package_being_written_is_a_family_where_it_has_a_model_type(monkeypatch, tmp_path):
    folder = make_package(tmp_path, "xlm_words")
    (folder / registry.CONFIGS / "model_type").rmdir()
    (folder / registry.CONFIGS / "datamodule").mkdir()
    monkeypatch.setenv(registry.MODELS_PATH, str(folder))
    registry.forget()
    assert "words" in [package.name for package in registry.packages()]
    assert "words" not in [family.name for family in registry.families()]


@pytest.mark.parametrize("text", [b"[xlm.families]\nleft\n", b"[xlm.families]\nleft = \xff\n"])
def test_entry_points_that_python_cannot_read_are_named_with_their_distribution(monkeypatch, tmp_path, text):
    install(tmp_path, "left", "xlm_left", "xlm-left")
    (tmp_path / "xlm_left-1.0.0.dist-info" / "entry_points.txt").write_bytes(text)
    monkeypatch.syspath_prepend(tmp_path)
    registry.forget()
    with pytest.raises(UserError, match=r"the entry points of xlm-left cannot be read .*; fix: pip uninstall xlm-left"):
        registry.packages()


def test_a_distribution_that_does_not_say_its_name_is_left_out(monkeypatch, tmp_path):
    install(tmp_path, "left", "xlm_left", "xlm-left")
    (tmp_path / "xlm_left-1.0.0.dist-info" / "METADATA").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    assert why("left").startswith("an unnamed distribution offers 'left', but its module 'xlm_left' is not there")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[project\n", "Expected"),
        ("project = 3\n", "no attribute"),
        ('[project]\ndependencies = "xlm-core"\n', "project.dependencies is no list"),
        ("[project]\nentry-points = 3\n", "no attribute"),
    ],
)
def test_a_project_that_cannot_be_read_leaves_its_package_out(monkeypatch, tmp_path, text, reason):
    folder = make_package(tmp_path, "xlm_new")
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setenv(registry.MODELS_PATH, str(folder))
    assert re.match(rf"its pyproject.toml cannot be read: .*{reason}.* in {folder}; fix: ", why("new"))


def test_the_working_directory_is_never_looked_at(monkeypatch, tmp_path):
    make_package(tmp_path, "xlm_here")
    monkeypatch.chdir(tmp_path)
    assert "here" not in [family.name for family in registry.families()]
