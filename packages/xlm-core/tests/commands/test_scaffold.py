"""A package for a new family: complete, its own in every word, and never half written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest
import yaml
from xlm import cli
from xlm.commands.renaming import Renaming, class_prefix, read_files
from xlm.errors import UserError

WORKSPACE = '[tool.uv.workspace]\nmembers = ["packages/*"]\n'


@pytest.fixture(autouse=True)
def _forget():
    """What a test made importable is so in no other test."""
    before = set(sys.modules)
    yield
    sys.path[:] = [path for path in sys.path if "xlm-my-model" not in path]
    for name in [name for name in set(sys.modules) - before if name.partition(".")[0] == "xlm_my_model"]:
        del sys.modules[name]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_package_has_every_part_and_no_word_of_the_template(xlm, toy):
    xlm("scaffold", "my_model")
    found = files(toy / "xlm-my-model")
    parts = ("__init__", "types", "model", "loss", "predictor", "collator", "oracle_case")
    assert {f"src/xlm_my_model/{part}.py" for part in parts} < set(found)
    assert {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"} < set(found)
    assert {".github/workflows/ci.yml", ".github/workflows/release.yml"} < set(found)
    assert {"src/xlm_my_model/py.typed", "tests/test_parts.py", "tests/test_oracle_case.py"} < set(found)
    assert "src/xlm_my_model/configs/lightning_train/model_type/my_model.yaml" in found
    for path in found:
        assert not re.search("new_?family", path + (toy / "xlm-my-model" / path).read_text(), re.IGNORECASE), path
    assert "class MyModelLoss(" in (toy / "xlm-my-model/src/xlm_my_model/loss.py").read_text()
    assert 'name = "xlm-my-model"' in (toy / "xlm-my-model/pyproject.toml").read_text()


def test_it_says_where_the_idea_goes_and_what_to_type(xlm, toy):
    out = xlm("scaffold", "my_model")
    places = re.findall(r"  (\S+):(\d+): ", out)
    assert 3 <= len(places) <= 5
    for path, line in places:
        assert "YOUR IDEA: " in (toy / path).read_text().splitlines()[int(line) - 1]
    assert f"export XLM_MODELS_PATH={toy}/xlm-my-model" in out
    assert "xlm train model_type=my_model datamodule=star_easy" in out
    assert "xlm verify model_type=my_model" in out
    assert "pytest xlm-my-model" in out


def test_the_name_stands_alone_or_with_its_key(xlm, toy, monkeypatch):
    xlm("scaffold", "name=first")
    monkeypatch.setattr(sys, "argv", ["xlm-scaffold", "second"])
    assert cli.scaffold() == 0
    assert files(toy / "xlm-first") == [path.replace("second", "first") for path in files(toy / "xlm-second")]
    assert "neither key=value nor a flag (b)" in xlm("scaffold", "a", "b", code=2)
    assert "neither key=value nor a flag (b)" in xlm("scaffold", "b", "name=a", code=2)
    assert "neither key=value nor a flag (b)" in xlm("info", "b", code=2)


def test_help_shows_the_keys_as_they_are_typed(xlm):
    out = xlm("scaffold", "--help")
    assert "usage: xlm scaffold NAME" in out
    assert re.search(r"^  from  ", out, re.MULTILINE)


def test_in_a_workspace_it_is_made_among_the_packages(xlm, toy, monkeypatch):
    (toy / "pyproject.toml").write_text(WORKSPACE)
    (toy / "docs").mkdir()
    monkeypatch.chdir(toy / "docs")
    assert "uv sync" in xlm("scaffold", "my_model")
    assert (toy / "packages/xlm-my-model/pyproject.toml").is_file()


@pytest.mark.parametrize("project", ["", WORKSPACE.replace("packages", "libs"), "[tool.uv", '[project]\nname = "x"'])
def test_elsewhere_it_is_made_in_the_working_directory(xlm, toy, project):
    (toy / "pyproject.toml").write_text(project)
    assert "pip install -e xlm-my-model" in xlm("scaffold", "my_model")
    assert (toy / "xlm-my-model").is_dir()


def test_output_is_the_folder_to_make(xlm, toy):
    (toy / "pyproject.toml").write_text(WORKSPACE)
    assert "pip install -e deep/er" in xlm("scaffold", "my_model", "output=deep/er")
    assert (toy / "deep/er/src/xlm_my_model").is_dir()
    assert not (toy / "packages").exists()


BAD_NAMES = [
    "MyModel",
    "my-model",
    "my model",
    "3d",
    "class",
    "null",
    "yes",
    "my_",
    "_my",
    "a__b",
    "xlm_my",
    "naïve",
    "../x",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_cannot_be_a_module_and_an_option_is_refused_with_a_better_one(xlm, toy, name):
    error = xlm("scaffold", name, code=2)
    assert error.startswith("error: is no name for a family")
    assert f"({name})" in error
    assert error.count("\n") == 1
    assert list(toy.iterdir()) == []
    xlm("scaffold", error.strip().rpartition("fix: use ")[2])


def test_without_a_name_an_example_is_given(xlm):
    assert "write xlm scaffold my_model" in xlm("scaffold", code=2)


@pytest.mark.parametrize(("name", "reason"), [("toy", r"\S+ offers toy"), ("core", "it is what families share")])
def test_a_name_that_something_has_already_is_refused(xlm, toy, name, reason):
    error = xlm("scaffold", name, code=2)
    assert re.fullmatch(rf"error: is taken: {reason} in name \({name}\); fix: choose another name\n", error), error
    assert list(toy.iterdir()) == []


def test_an_option_that_someone_offers_already_is_refused(xlm, toy):
    mine = toy / "configs/lightning_train/model"
    mine.mkdir(parents=True)
    (mine / "my_model_tiny.yaml").write_text("{}")
    assert "is taken: there is the option model/my_model_tiny" in xlm("scaffold", "my_model", code=2)


def test_a_module_of_that_name_is_refused(xlm, toy, monkeypatch):
    (toy / "xlm_my_model.py").write_text("")
    monkeypatch.syspath_prepend(toy)
    assert "is taken: there is a module xlm_my_model" in xlm("scaffold", "my_model", code=2)


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_left_alone(xlm, toy, kind):
    there = toy / "xlm-my-model"
    {"folder": there.mkdir, "file": there.touch, "dangling link": lambda: there.symlink_to("nowhere")}[kind]()
    error = xlm("scaffold", "my_model", code=2)
    assert error.startswith("error: this folder exists (xlm-my-model); fix: ")
    assert os.listdir(toy) == ["xlm-my-model"]


def test_a_disk_that_is_full_leaves_nothing_behind(xlm, toy, monkeypatch):
    written = []

    def full(path, text, **options):
        written.append(path)
        if len(written) == 7:
            raise OSError(28, "No space left on device")
        return Path.write_bytes(path, text.encode())

    monkeypatch.setattr(Path, "write_text", full)
    error = xlm("scaffold", "my_model", code=2)
    assert error.startswith("error: cannot be written: No space left on device in output (xlm-my-model); fix: ")
    assert list(toy.iterdir()) == []


def test_an_unknown_family_to_start_from_is_refused_with_those_there_are(xlm, toy):
    error = xlm("scaffold", "my_model", "from=nope", code=2)
    assert error.startswith("error: no such family in from (nope); fix: choose from ")
    assert "toy" in error
    assert list(toy.iterdir()) == []


def test_a_family_without_an_oracle_case_is_no_start(xlm, toy):
    error = xlm("scaffold", "my_model", "from=toy", code=2)
    assert "cannot be renamed: its module is not xlm_toy with an oracle_case in from" in error
    assert list(toy.iterdir()) == []


def test_a_family_can_start_from_another_that_is_being_written(xlm, toy, monkeypatch):
    xlm("scaffold", "my_model")
    monkeypatch.setenv("XLM_MODELS_PATH", str(toy / "xlm-my-model"))
    cache = toy / "xlm-my-model/src/xlm_my_model/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "loss.pyc").write_bytes(b"\xff")
    xlm("scaffold", "other", "from=my_model")
    left, right = (files(toy / name) for name in ("xlm-my-model", "xlm-other"))
    cut = {"tests/test_parts.py"} | {path for path in left if "__pycache__" in path}
    assert right == sorted(path.replace("my_model", "other") for path in set(left) - cut)
    for path in set(right) - {"CHANGELOG.md"}:
        assert not re.search("my.?model", (toy / "xlm-other" / path).read_text(), re.IGNORECASE), path
    assert "`xlm scaffold other from=my_model`: a copy of" in (toy / "xlm-other/CHANGELOG.md").read_text()


def test_two_things_of_one_name_are_refused():
    texts = {PurePosixPath("loss.py"): "def mdlm_loss(): ...\ndef my_loss(): ...  # my_parts\nmdlm_parts = 'my_parts'"}
    with pytest.raises(UserError, match="two things called my_loss"):
        Renaming("mdlm", "MDLM", "my").files(texts)


@pytest.mark.parametrize(
    ("code", "reason"), [("class Loss: ...", "other words"), ("class AB: ...\nclass Abs: ...", "AB and")]
)
def test_classes_that_do_not_begin_with_the_familys_name_cannot_be_renamed(code, reason):
    with pytest.raises(UserError, match=f"cannot be renamed safely: its classes begin with {reason}"):
        class_prefix("ab", {PurePosixPath("loss.py"): code})


def test_a_file_that_is_no_text_cannot_be_renamed(tmp_path):
    (tmp_path / "fast.so").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"is no text, so it cannot be renamed in .*fast\.so"):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("tag", "heading", "released"),
    [
        ("v0.1.0", "## 0.1.0 (2030-01-31)", True),
        ("v0.1.0", "## 0.1.0 (unreleased)", False),
        ("v0.1.0", "## 0.2.0 (2030-01-31)", False),
        ("v0.2.0", "## 0.2.0 (2030-01-31)", False),
        ("0.1.0", "## 0.1.0 (2030-01-31)", False),
    ],
)
def test_a_tag_releases_the_version_of_project_and_changelog_alone(xlm, toy, tag, heading, released):
    xlm("scaffold", "my_model")
    project = toy / "xlm-my-model"
    steps = yaml.safe_load((project / ".github/workflows/release.yml").read_text())["jobs"]["build"]["steps"]
    (check,) = [step["run"] for step in steps if step.get("name") == "tag, version and changelog agree"]
    assert '\nversion = "0.1.0"\n' in (project / "pyproject.toml").read_text()
    changelog = project / "CHANGELOG.md"
    assert changelog.read_text().splitlines()[2] == "## 0.1.0 (unreleased)"
    changelog.write_text(changelog.read_text().replace("## 0.1.0 (unreleased)", heading))
    env = {**os.environ, "GITHUB_REF_NAME": tag, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-e", "-c", check], cwd=project, env=env, capture_output=True, text=True)
    assert (done.returncode == 0) == released, done.stdout + done.stderr
    assert "version 0.1.0 in pyproject.toml" in done.stdout


@pytest.mark.parametrize("name", ["ab", "a_family_with_a_long_name"])
def test_a_name_of_any_length_leaves_the_style_as_it_is(xlm, toy, name):
    pytest.importorskip("ruff")
    xlm("scaffold", name)
    project = toy / f"xlm-{name.replace('_', '-')}"
    for words in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, "."], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_types_of_a_new_package_are_strict(xlm, toy):
    pytest.importorskip("mypy")
    xlm("scaffold", "my_model")
    command = [sys.executable, "-m", "mypy", "src"]
    done = subprocess.run(command, cwd=toy / "xlm-my-model", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_a_new_package_passes_its_tests_trains_and_verifies_as_it_is(xlm, toy, monkeypatch, results):
    xlm("scaffold", "my_model")
    project = toy / "xlm-my-model"
    monkeypatch.setenv("XLM_MODELS_PATH", str(project))
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(project)]
    done = subprocess.run(tests, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    small = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "trainer.max_steps=3", "debug=small_data"]
    xlm("train", "model_type=my_model", "datamodule=star_easy", "trainer.accelerator=cpu", *small, "run_dir=run")
    assert results(toy / "run")["test.star"]["kind"] == "bound"
    assert "oracles hold" in xlm("verify", "model_type=my_model", "--fast")
