"""Commands of other packages: found cheaply, run like the core's, and never in their place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from distributions import install, install_toy, write_toy
from xlm.cli import main

PROJECT = """
[project]
name = "xlm-left"
[project.entry-points."xlm.families"]
left = "xlm_left"
[project.entry-points."xlm.commands"]
hello = "xlm_left.hello"
"""


@pytest.fixture
def run(capsys):
    def run(*words):
        code = main(list(words))
        return code, *capsys.readouterr()

    return run


def test_a_command_is_listed_with_its_summary_and_whose_it_is_without_being_imported(site, run):
    install_toy(site, "left", command="hello")
    _, out, _ = run("--help")
    assert "  hello         Say hello to a name (xlm-left)\n" in out
    assert not [name for name in sys.modules if name.startswith("xlm_left")]


@pytest.mark.parametrize("words", [["hello", "you"], ["hello", "name=you"], ["job_type=hello", "name=you"]])
def test_a_command_runs_like_those_of_the_core(site, run, words):
    install_toy(site, "left", command="hello")
    assert run(*words) == (0, "hello you\n", "")


def test_a_dash_in_what_is_typed_is_an_underscore_of_a_command(site, run):
    install_toy(site, "left", command="say_hello")
    assert run("say-hello", "you")[:2] == (0, "hello you\n")


def test_its_help_has_its_docstring_and_keys(site, run):
    install_toy(site, "left", command="hello")
    code, out, _ = run("hello", "--help")
    assert code == 0
    assert out.startswith("usage: xlm hello NAME [key=value ...]\n\nSay hello to a name.\n\n  name  ")
    assert "whom to greet" in out


def test_its_mistakes_are_one_line_and_it_runs_once(site, run):
    install_toy(site, "left", command="hello")
    assert run("hello") == (2, "", "error: no name in name; fix: write xlm hello NAME\n")
    code, _, err = run("hello", "name=a", "-m")
    assert (code, err.partition(";")[0]) == (2, "error: runs once (xlm hello --multirun)")


def test_a_command_of_a_package_being_written_is_found_in_its_project(tmp_path, site, run, monkeypatch):
    write_toy(tmp_path / "xlm-left" / "src", "left")
    (tmp_path / "xlm-left" / "pyproject.toml").write_text(PROJECT)
    monkeypatch.setenv("XLM_MODELS_PATH", str(tmp_path / "xlm-left"))
    assert "hello         Say hello to a name" in run("--help")[1]
    assert run("hello", "you")[:2] == (0, "hello you\n")


def test_a_misspelt_command_of_a_package_is_corrected(site, run):
    install_toy(site, "left", command="hello")
    assert "did you mean hello? the commands are train, " in run("helo")[2]


@pytest.mark.parametrize("name", ["train", "info", "help"])
def test_a_command_of_the_core_stays_the_cores_and_the_other_is_said_to_be_left_out(site, run, name):
    install_toy(site, "left", command=name)
    _, out, _ = run("--help")
    assert out.count(f"\n  {name} ") == (name != "help")
    assert f"  left out: xlm-core and xlm-left both offer '{name}' in xlm.commands; fix: " in out
    assert f"both offer '{name}' in xlm.commands" in run("info")[1]
    assert "Say hello" not in run(name, "--help")[1]


def test_a_command_that_two_packages_offer_is_refused_naming_both(site, run):
    for name in ("left", "right"):
        install_toy(site, name, command="hello")
    code, _, err = run("hello", "you")
    assert code == 2
    assert err.startswith("error: xlm-left and xlm-right both offer 'hello' in xlm.commands; fix: ")
    _, out, _ = run("--help")
    assert "left out: xlm-left and xlm-right both offer 'hello'" in out
    assert "\n  hello" not in out


def no_run(module):
    (module / "hello.py").write_text('"""Nothing."""\n')


def syntax_error(module):
    (module / "hello.py").write_text("def (:\n")


def leaves(module):
    (module / "__init__.py").write_text("import sys\nsys.exit('bye')\n")


def no_package(module):
    (module / "__init__.py").write_text("import not_there\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_run, "xlm-left offers the command 'hello', but its module has no function run(words) in xlm_left.hello"),
        (syntax_error, "xlm-left cannot be imported: SyntaxError: "),
        (no_package, "xlm-left cannot be imported: ModuleNotFoundError: No module named 'not_there' in "),
        (leaves, "xlm-left cannot be imported: SystemExit: bye in "),
        (lambda module: (module / "hello.py").unlink(), "'hello', but its module 'xlm_left.hello' is not there"),
    ],
    ids=["no run", "a syntax error", "a package that cannot be imported", "a package that leaves", "no module"],
)
def test_a_broken_command_is_one_line_and_the_others_run(site, run, damage, said):
    damage(install_toy(site, "left", command="hello"))
    code, _, err = run("hello", "you")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: xlm-left")
    assert said in err
    assert run("--help")[0] == 0
    assert run("replay", "--help")[0] == 0


def test_who_is_terminated_while_a_package_is_imported_is_not_told_that_it_is_broken(site, run):
    module = install_toy(site, "left", command="hello")
    (module / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    assert run("hello", "you") == (143, "", "")


@pytest.mark.parametrize("where", ["hello.py", "hello/__init__.py"])
def test_a_module_that_says_nothing_has_no_summary_though_another_of_its_name_or_its_package_has(site, run, where):
    module = install_toy(site, "left", command="hello")
    (module / "__init__.py").write_text('"""The family of the left."""\n')
    (module / "hello.py").unlink()
    (module / where).parent.mkdir(exist_ok=True)
    (module / where).write_text("def run(words):\n    pass\n")
    if where != "hello.py":
        (module / "hello" / "hello.py").write_text('"""Another."""\n')
    assert "\n  hello         (xlm-left)\n" in run("--help")[1]


@pytest.mark.parametrize(("name", "said"), [("say hello", "is no name"), ("class", "is no name")])
def test_a_command_that_cannot_be_typed_is_left_out(site, run, name, said):
    install_toy(site, "left", command=name)
    assert said in run("--help")[1]


def test_a_command_for_another_core_is_not_imported(site, run):
    install_toy(site, "left", "xlm-core>=99", command="hello")
    code, _, err = run("hello", "you")
    assert (code, err.partition(" in ")[0]) == (2, "error: xlm-left 1.0.0 needs xlm-core>=99")
    assert "xlm_left" not in sys.modules


def test_a_module_of_its_own_can_be_a_command(site, run):
    (site / "greeting.py").write_text('"""Greet."""\n\n\ndef run(words):\n    print("good day")\n')
    install(site, "greet", "greeting", "greeter", group="xlm.commands")
    assert "  greet         Greet (greeter)" in run("--help")[1]
    assert run("greet") == (0, "good day\n", "")
    del sys.modules["greeting"]


def test_help_loads_what_finds_commands_only_where_a_package_has_some(site):
    code = "import sys; from xlm.cli import main; main(['--help']); print('importlib.metadata' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(site)}

    def loaded():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
        return done.stdout.splitlines()[-1] == "True"

    install_toy(site, "left")
    assert not loaded()
    install(site, "hello", "xlm_left.hello", "xlm-left", group="xlm.commands")
    assert loaded()
