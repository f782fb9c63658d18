"""What a page tells its reader to type works, in the order of the page."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
FOLLOW = runpy.run_path(str(ROOT / ".ci" / "follow.py"))
PAGES = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "packages/*/README.md", "packages/*/src/**/README.md")
    for path in sorted(ROOT.glob(pattern))
]
ELSEWHERE = {"docs/add_a_family.md"}  # nox -s new-user: needs an environment of its own
TEMPLATES = {page for page in PAGES if "/scaffold/" in page}
LANGUAGES = {"console", "diff", "json", "python", "text", "toml", "yaml"}
COMMANDS = ("$ ", "xlm ", "pip ", "uv ", "git ", "python ", "pytest ", "nox ")


def blocks(page: str) -> list:
    return FOLLOW["blocks"]((ROOT / page).read_text())


def has_commands(page: str) -> bool:
    return any(block.language == "console" and block.is_tested for block in blocks(page))


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    """The environment of a reader whose first `xlm` comes without the seconds of its imports."""
    forks = str(Path(__file__).with_name("forks.py"))
    with tempfile.TemporaryDirectory(prefix="xlm-") as folder:
        socket, command = f"{folder}/socket", Path(folder, "xlm")
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{forks}" "{socket}" "$@"\n')
        command.chmod(0o755)
        path = os.pathsep.join([folder, str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {name: value for name, value in os.environ.items() if name not in ("XLM_DEBUG", "XLM_MODELS_PATH")}
        env |= {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        with subprocess.Popen([sys.executable, forks, socket], stdout=subprocess.PIPE, text=True, env=env) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield env
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if has_commands(page) and page not in ELSEWHERE | TEMPLATES])
def test_a_reader_can_do_what_the_page_says(page, environment, tmp_path):
    for folder in ("benchmarks", "configs"):  # pages speak of them to someone in a clone
        shutil.copytree(ROOT / folder, tmp_path / folder)
    FOLLOW["follow"](ROOT / page, tmp_path, environment)


@pytest.mark.slow
def test_the_author_of_a_new_package_can_do_what_its_readme_says(environment, tmp_path):
    subprocess.run(["xlm", "scaffold", "my_model"], cwd=tmp_path, env=environment, check=True)
    project = tmp_path / "xlm-my-model"
    FOLLOW["follow"](project / "README.md", project, environment)


def test_xlm_in_a_fork_has_its_own_folder_output_and_exit_code(environment, tmp_path):
    def xlm(*words: str) -> subprocess.CompletedProcess:
        command = [shutil.which("xlm", path=environment["PATH"]), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    said = xlm("scaffold", "my_model")
    assert (tmp_path / "xlm-my-model").is_dir()
    assert (said.returncode, said.stdout.splitlines()[0][:13]) == (0, "xlm-my-model:")
    said = xlm("scaffold", "my model")
    assert (said.returncode, said.stdout, said.stderr[:6]) == (2, "", "error:")


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_where_they_are_run(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}: ```{block.info}"
        if block.language == "text":
            found = [line for line in block.text.splitlines() if line.startswith(COMMANDS)]
            assert not found, f"{page}:{block.line}: {found[0]}: commands stand in ```console"
        if block.language == "console":
            assert block.text.startswith("$ "), f"{page}:{block.line}: commands begin with a dollar sign"


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_does_not_run_follows_a_sentence_that_can_say_why(page):
    lines = (ROOT / page).read_text().splitlines()
    for block in blocks(page):
        before = [line for line in lines[: block.line - 1] if line.strip()]
        if block.language == "console" and not block.is_tested:
            assert before[-1].strip()[0] not in "#`|", f"{page}:{block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_one_that_pytest_markdown_docs_sees(page):
    seen = [token.info for token in MarkdownIt().parse((ROOT / page).read_text()) if token.type == "fence"]
    assert [block.info for block in blocks(page)] == [info.strip() for info in seen]


@pytest.mark.parametrize("package", sorted(path.name for path in ROOT.glob("packages/*")))
def test_code_in_docstrings_is_of_a_kind_that_runs(package):
    for path in sorted((ROOT / "packages" / package / "src").rglob("*.py")):
        text = path.read_text()
        assert not re.search(r"^ *\w+::$", text, re.MULTILINE), f"{path}: a literal block is not run, ```python is"
        assert not re.search(r"^ +```|^```(?!python$|$)", text, re.MULTILINE), f"{path}: ```python is, unindented"
