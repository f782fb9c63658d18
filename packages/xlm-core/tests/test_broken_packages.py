"""A package that is broken costs its own user one line, and nobody else anything."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from distributions import install, install_toy, write_toy
from xlm import registry
from xlm.cli import main
from xlm.commands import info
from xlm.config import compose, search

OPTIONS = "configs/lightning_train"
MODEL_TYPE = f"{OPTIONS}/model_type/left.yaml"


@pytest.fixture
def site(site, toy):
    """A folder of ``sys.path`` beside the toy family."""
    return site


@pytest.fixture
def xlm(capsys):
    """Run a command; (exit code, stdout, errors and warnings)."""

    def run(*words):
        code = main(list(words))
        out, err = capsys.readouterr()
        return code, out, [line for line in err.splitlines() if line.startswith(("error: ", "left out: "))]

    return run


def without(*keys):
    """A family whose option lacks some lines."""

    def damage(module):
        file = module / MODEL_TYPE
        lines = [line for line in file.read_text().splitlines() if not any(key in line for key in keys)]
        file.write_text("\n".join(lines))

    return damage


def syntax_error(module):
    (module / "parts.py").write_text("import torch\ndef (:\n")


def module_gone(module):
    (module / "parts.py").unlink()


def needs_what_is_not_there(module):
    file = module / "parts.py"
    file.write_text(file.read_text().replace("import torch\n", "import torch\nimport not_there\n", 1))


def fails_when_imported(module):
    (module / "__init__.py").write_text("raise RuntimeError('no such device')")


def package_gone(module):
    shutil.rmtree(module)


def options_gone(module):
    shutil.rmtree(module / OPTIONS)


def options_are_a_file(module):
    options_gone(module)
    (module / OPTIONS).write_text("")


def no_yaml(module):
    (module / MODEL_TYPE).write_text("family: left\nloss: [\n")


def no_text(module):
    (module / MODEL_TYPE).write_bytes(b"family: \xff\n")


def no_model_type(module):
    (module / MODEL_TYPE).unlink()


def option_of_the_core(module):
    (module / OPTIONS / "noise_schedule").mkdir()
    (module / OPTIONS / "noise_schedule" / "loglinear.yaml").write_text("_target_: xlm_left.parts.Schedule\n")


def name_taken(module):
    write_toy(module.parent, "right")
    install(module.parent, "left", "xlm_right", "xlm-right")


def rename(old, new):
    def damage(module):
        file = module.parent / "xlm_left-1.0.0.dist-info" / "entry_points.txt"
        file.write_text(file.read_text().replace(old, new))

    return damage


def metadata_no_text(module):
    with (module.parent / "xlm_left-1.0.0.dist-info" / "METADATA").open("ab") as file:
        file.write(b"Summary: \xff\n")


# What is done to a package, what is said of it, and whether that shows without looking into its code.
BROKEN = {
    "a syntax error": (syntax_error, r"cannot be imported: SyntaxError: .* in \S+/xlm_left/parts\.py:2", False),
    "a module gone": (module_gone, r"\(xlm_left\.parts\.\w+\)", False),
    "a library that is not there": (needs_what_is_not_there, r"No module named 'not_there' in \S+/parts\.py:\d", None),
    "an error while it is imported": (fails_when_imported, r"RuntimeError: no such device in \S+/__init__\.py:1", None),
    "no loss": (without("loss", "_target_"), "xlm-left brings no loss", False),
    "no predictor": (without("predictor:"), "xlm-left brings no predictor", False),
    "no model": (without("/model:"), "xlm-left brings no model", False),
    "no collators": (without("collator"), "xlm-left brings no collators", False),
    "no name": (without("family:"), "xlm-left (brings|sets) no family", False),
    "no model_type": (no_model_type, "offers the family 'left', but no option model_type/left", False),
    "options that are no YAML": (no_yaml, r"xlm-left.* in \S+/model_type/left\.yaml:\d", False),
    "options that are no text": (no_text, r"xlm-left.*can't decode byte 0xff", False),
    "the package gone": (package_gone, "offers 'left', but its module 'xlm_left' is not there", True),
    "an entry point to nothing": (rename("= xlm_left\n", "=\n"), "'left', but its module '' is not there", True),
    "a library's module": (rename("= xlm_left\n", "= torch\n"), "the module 'torch', which is not its own", True),
    "no options": (options_gone, "its options cannot be read: No such file or directory", True),
    "options that cannot be read": (options_are_a_file, "its options cannot be read: Not a directory", True),
    "an option of the core": (option_of_the_core, "both offer the option 'noise_schedule/loglinear'", True),
    "a name taken": (name_taken, r"xlm-(left and xlm-right|right and xlm-left) both offer 'left'", True),
    "a name that is no identifier": (rename("left =", "left-2 ="), "'left-2', which is no name", True),
    "METADATA that is no text": (metadata_no_text, "METADATA of xlm-left cannot be read: .*byte 0xff", True),
    "a core that is too old": (">=99", r"xlm-left 1\.0\.0 needs xlm-core>=99", True),
    "a range that is none": (">=nothing", "does not say which xlm-core it needs", True),
}


@pytest.fixture(params=BROKEN)
def broken(request, site):
    """(what is said, whether it shows at once) of a package that is broken."""
    damage, said, at_once = BROKEN[request.param]
    if isinstance(damage, str):
        install_toy(site, "left", f"xlm-core{damage}")
    else:
        damage(install_toy(site, "left"))
    return said, at_once


def test_whoever_asks_for_it_is_told_in_one_line_which_package_and_what_to_do(broken, site, xlm):
    code, _, lines = xlm("check", "model_type=left", "datamodule=toy_pairs")
    assert (code, len(lines)) == (2, 1), lines
    assert re.search(f"^error: .*{broken[0]}.*; fix: ", lines[0]), lines[0]
    assert "xlm-left" in lines[0]


def test_others_train_with_a_line_at_most(broken, site, xlm):
    said, at_once = broken
    code, out, lines = xlm("check", "model_type=toy", "datamodule=toy_pairs")
    assert code == 0
    assert "gradient norm" in out
    assert len(lines) == bool(at_once), lines
    assert all(re.search(f"^left out: .*{said}.*; fix: ", line) for line in lines), lines


def test_it_is_listed_with_its_reason_beside_the_others(broken, site, xlm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    said, at_once = broken
    code, out, _ = xlm("info")
    assert code == 0
    assert "│ toy " in out
    listed = re.findall(r"│ (?:family|task) \S+.*", out)
    assert any("family left" in line and re.search(said, line) for line in listed) == (at_once is not None), listed
    assert "xlm_left" not in sys.modules


def test_two_distributions_of_one_module_are_refused_though_one_has_written_over_the_other(site):
    install_toy(site, "left")
    install(site, "left", "xlm_left", "left-fork")
    reasons = {str(found.reason).partition(" in ")[0] for found in registry.broken()}
    assert reasons in ({"left-fork and xlm-left both offer 'left'"}, {"xlm-left and left-fork both offer 'left'"})


@pytest.mark.parametrize("version", ["0.9.0", "1.0.0"])
@pytest.mark.parametrize("order", [1, -1], ids=["found last", "found first"])
def test_what_pip_leaves_of_an_upgrade_does_not_count(site, xlm, monkeypatch, version, order):
    install_toy(site, "left")
    left_behind = site / f"~lm_left-{version}.dist-info"
    shutil.copytree(site / "xlm_left-1.0.0.dist-info", left_behind)
    about = (left_behind / "METADATA").read_text().replace("Version: 1.0.0", f"Version: {version}")
    (left_behind / "METADATA").write_text(f"{about}Requires-Dist: xlm-core<0.9\n")
    monkeypatch.setattr("os.listdir", lambda path, real=os.listdir: sorted(real(path), reverse=order < 0))
    assert xlm("check", "model_type=left", "datamodule=toy_pairs")[::2] == (0, [])
    assert [family.label for family in registry.families() if family.name == "left"] == ["xlm-left 1.0.0"]


def test_a_distribution_that_offers_one_name_for_two_modules_is_refused_in_its_own_words(site):
    install_toy(site, "left")
    write_toy(site, "right")
    install(site, "left", "xlm_right", "xlm-left")
    (reason,) = {str(found.reason).partition(" in ")[0] for found in registry.broken()}
    assert reason == "xlm-left offers 'left' more than once"


def test_every_installed_family_is_verified_though_one_cannot_be(site, xlm, monkeypatch):
    syntax_error(install_toy(site, "left"))
    install(site, "left", "xlm_left.parts:case", "xlm-left", group="xlm.oracles")
    monkeypatch.setattr("xlm.testing.generic.generic_oracles", lambda parts: [])
    of_both = [offer for offer in registry.families() if offer.name in ("left", "toy")]
    monkeypatch.setattr(registry, "families", lambda: of_both)
    monkeypatch.setattr(registry, "oracle_cases", lambda: {"left": "xlm_left.parts:case"})
    code, out, _ = xlm("verify", "model_type=left")
    assert code == 2
    code, out, _ = xlm("verify")
    assert code == 1
    assert re.search(r"can be checked .*SyntaxError", out)
    assert "toy: skipped" in out


# What xlm info reads of a package


def option(name, *lines):
    def add(module):
        file = module / OPTIONS / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("\n".join(["# @package _global_", *lines]) + "\n")

    return add


UNREADABLE = {
    "defaults that are a number": option("model_type/left_two", "defaults: 5"),
    "defaults of a number": option("model_type/left_two", "defaults: [{1: x}]"),
    "a list in the defaults": option("model_type/left_two", "defaults: [[left]]"),
    "an option that names itself": option("model_type/left_two", "defaults: [left_two]"),
    "the family's option, itself": option("model_type/left", "defaults: [left]"),
    "a mapping within itself": option("model_type/left_two", "defaults: [left]", "loss: &a {x: *a}"),
    "a task's defaults that are a number": option("datamodule/left_x", "defaults: 5"),
    "a task that names itself": option("datamodule/left_x", "defaults: [left_x]"),
    "a task that names itself from the root": option("datamodule/left_x", "defaults: [/datamodule/left_x]"),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_one_file_that_cannot_be_read_hides_nothing_of_the_others(site, xlm, monkeypatch, damage):
    monkeypatch.setenv("COLUMNS", "1000")
    damage(install_toy(site, "left"))
    code, out, _ = xlm("info")
    assert (code, "│ toy " in out) == (0, True)
    said = r"xlm-left has an option that cannot be read: .* in \S+\.yaml; fix: "
    assert re.search(f"family left, task left .*{said}", out)


def test_what_nobody_thought_of_hides_nothing_of_the_others_either(site, xlm, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    install_toy(site, "left")
    expected = {package.name for package in registry.packages()} - {"left"}
    monkeypatch.setattr("xlm.config.inspection._check_code", lambda package, _: expected.remove(package.name))
    code, out, _ = xlm("info")
    assert (code, "│ toy " in out) == (0, True)
    assert "xlm-left cannot be looked into: KeyError: 'left'" in out


def without_a_list(module):
    """The family's keys in an option of a group of its own."""
    file = module / MODEL_TYPE
    (module / OPTIONS / "left_base").mkdir()
    file.rename(module / OPTIONS / "left_base" / "all.yaml")


def in_a_group(module):
    without_a_list(module)
    option("model_type/left", "defaults: [/left_base@_global_: all, _self_]")(module)


def in_a_group_that_says_where(module):
    without_a_list(module)
    option("model_type/left", "defaults: [/left_base: all]")(module)


def in_a_group_chosen_by_a_value(module):
    without_a_list(module)
    option("model_type/left", "defaults: [/left_base@_global_: '${left_size}']", "left_size: all")(module)


def template(module):
    folder = module / "templates"
    folder.mkdir()
    (folder / "__init__.py").write_text("class {{name}}: pass\n")


UNUSUAL = {
    "from the root": option("model_type/left_two", "defaults: [/model_type/left, _self_]"),
    "in a group": in_a_group,
    "in a group that says where": in_a_group_that_says_where,
    "in a group chosen by a value": in_a_group_chosen_by_a_value,
    "a template": template,
    "a task from the root": option("datamodule/left_x", "defaults: [/datamodule/left_pairs, _self_]"),
}


@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
def test_a_family_of_an_unusual_make_is_not_called_broken(site, xlm, monkeypatch, change):
    monkeypatch.setenv("COLUMNS", "1000")
    change(install_toy(site, "left"))
    code, out, _ = xlm("info")
    assert (code, "│ left " in out) == (0, True)
    assert "xlm-left has" not in out
    assert not re.search(r"family left\b", out)


@pytest.mark.parametrize("change", [UNUSUAL["from the root"], in_a_group, in_a_group_that_says_where])
def test_its_roles_are_found_wherever_its_collators_are_named(site, change):
    change(install_toy(site, "left"))
    options = search.options()
    for name in sorted(options["model_type"]):
        if name.startswith("left"):
            assert compose([f"model_type={name}", "datamodule=toy_pairs"]).family == "left"
            assert info.roles_of_family(name, options) == ["lm", "seq2seq", "seq2seq_prediction", "unconditional"]


def test_a_task_that_takes_over_another_serves_the_same_roles(site):
    UNUSUAL["a task from the root"](install_toy(site, "left"))
    assert info.roles_of_task("left_x", search.options()) == [["infill", "seq2seq"]]


# Two packages, one name


@pytest.fixture
def two(site):
    """Two families with one option of one name, which one of them uses and the other does not."""
    for name in ("left", "right"):
        module = install_toy(site, name)
        option = module / OPTIONS / "predictor" / "random.yaml"
        option.write_text(f"_target_: xlm_{name}.parts.{name.capitalize()}Predictor\n")
    file = module / MODEL_TYPE.replace("left", "right")
    file.write_text(file.read_text().replace("/predictor: right_plain", "/predictor: random"))
    return site


@pytest.mark.parametrize(
    "words", [["model_type=left", "predictor=random"], ["model_type=right"], ["experiment=right_random"]]
)
def test_an_option_that_two_packages_offer_cannot_be_chosen_whoever_chooses_it(two, xlm, words):
    experiment = two / "xlm_right" / OPTIONS / "experiment" / "right_random.yaml"
    experiment.write_text("# @package _global_\ndefaults: [override /model_type: toy, override /predictor: random]\n")
    code, _, (line,) = xlm("check", *words, *(["datamodule=toy_pairs"] if "experiment" not in words[0] else []))
    assert code == 2
    assert line.startswith("error: xlm-left and xlm-right both offer the option 'predictor/random' in predictor; fix: ")


def test_what_does_not_use_it_works(two):
    for name in ("left", "toy"):
        assert compose([f"model_type={name}", "datamodule=toy_pairs"]).family == name
    chosen = compose(["model_type=right", "predictor=right_plain", "datamodule=toy_pairs"])
    assert chosen.predictor._target_ == "xlm_right.parts.RightPredictor"


def test_it_is_listed_naming_both(two, xlm):
    _, out, _ = xlm("info")
    assert "option predictor/random" in out
    assert "xlm-left and xlm-right both offer" in out


def test_the_working_directory_settles_it(two, toy):
    mine = toy / OPTIONS / "predictor" / "random.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("_target_: xlm_right.parts.RightPredictor\ntemperature: 0.0\n")
    assert compose(["model_type=right", "datamodule=toy_pairs"]).predictor.temperature == 0.0


def test_who_asks_for_something_unknown_is_told_what_was_left_out(site, xlm, monkeypatch):
    monkeypatch.setenv("XLM_MODELS_PATH", str(site / "nowhere"))
    code, _, (warning, error) = xlm("check", "model_type=new", "datamodule=sudoku_4x4")
    assert code == 2
    assert warning.startswith("left out: no package with configs/lightning_train in this directory in XLM_MODELS_PATH")
    assert error.startswith("error: no such option in model_type (new); fix: ")


# A family and a task in one package


def test_a_package_can_offer_a_family_and_a_task(site, xlm):
    install_toy(site, "left")
    code, out, _ = xlm("check", "model_type=left", "datamodule=left_pairs")
    assert code == 0
    assert "test.answers, role seq2seq_prediction" in out
    code, out, _ = xlm("check", "model_type=toy", "datamodule=left_pairs")
    assert code == 0
