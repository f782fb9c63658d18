"""A package that starts from an installed family is that family under another name, and as whole."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from xlm import registry
from xlm.cli import main

FAMILIES = ("arlm", "ilm", "mdlm", "mlm")
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2", "trainer.accelerator=cpu"]
FEW = ["trainer.max_steps=3", "debug=small_data", "trainer.enable_progress_bar=false"]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def copy(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project ``xlm-of-FAMILY``, where it can be found."""
    monkeypatch.chdir(tmp_path)
    assert main(["scaffold", f"of_{family}", f"from={family}"]) == 0
    project = tmp_path / f"xlm-of-{family}"
    monkeypatch.setenv("XLM_MODELS_PATH", str(project))
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == f"xlm_of_{family}"]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if path != str(project / "src")]


def test_the_code_is_the_familys_in_other_words(family, copy):
    theirs = next(package.folder for package in registry.families() if package.name == family)
    ours = copy / "src" / f"xlm_of_{family}"
    files = [path.relative_to(theirs) for path in theirs.rglob("*") if path.suffix in (".py", ".yaml", ".typed")]
    assert len(files) > 15
    for file in files:
        text = (ours / re.sub(rf"\b{family}(?=\b|_)", f"of_{family}", str(file))).read_text()
        back = text.replace(f"of_{family}", family).replace(f"Of{family.capitalize()}", family.upper())
        assert back.replace(f"xlm-of-{family}", f"xlm-{family}") == (theirs / file).read_text(), file


def test_it_names_the_family_in_its_changelog_alone(family, copy):
    for path in (path for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        found = re.findall(rf"(?i)(?<!of.)(?<!of){family}", path.read_text())
        assert bool(found) == (path.name == "CHANGELOG.md"), path


def test_its_oracle_case_and_every_fault_find_what_they_name(family, copy):
    assert registry.oracle_cases()[f"of_{family}"] == f"xlm_of_{family}.oracle_case:case"
    case = importlib.import_module(f"xlm_of_{family}.oracle_case").case()
    assert len(case.oracles) > 10
    for mutation in case.mutations:
        assert case.oracle(mutation.caught_by)
        with mutation.applied():
            pass


def test_it_trains_and_reports_what_the_family_reports(family, copy, tmp_path):
    def test_results(name: str) -> dict:
        words = [f"model_type={name}", "datamodule=star_easy", f"run_dir={tmp_path / name}"]
        assert main(["train", *words, *SMALL, *FEW]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())["test.star"]

    theirs, ours = test_results(family), test_results(f"of_{family}")
    assert ours["nats_per_token"] == theirs["nats_per_token"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["arlm"], indirect=True)  # the cheapest; the others are compared above
def test_it_verifies(family, copy):
    assert main(["verify", f"model_type=of_{family}", "--fast"]) == 0


def test_a_copy_of_an_installed_family_needs_what_it_needs(family, copy):
    assert re.search(r'(?m)^dependencies = \[.*"xlm-core<1.1,>=1.0"', (copy / "pyproject.toml").read_text())


def test_a_name_that_an_installed_family_has_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["scaffold", "mdlm"]) == 2
    assert capsys.readouterr().err == "error: is taken: xlm-mdlm offers mdlm in name (mdlm); fix: choose another name\n"
    assert main(["scaffold", "mdlm_first_hitting"]) == 2
    assert "is taken: there is the option predictor/mdlm_first_hitting" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
