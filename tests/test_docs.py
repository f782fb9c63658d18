"""The page of tasks knows every task and shows what its rows look like; the reference knows every public module."""

from __future__ import annotations

import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import xlm
from xlm.config import search

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "tasks.md").read_text()
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
NOT_TASKS = {"Is it learnt at all?", "What samples are like", "A task of your own"}


@pytest.mark.parametrize("task", sorted(search.options()["datamodule"]))
def test_every_task_is_named_in_a_section_that_shows_a_row(task):
    (section,) = [text for title, text in SECTIONS.items() if f"`{task}`" in text and title not in NOT_TASKS]
    code = "".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    assert "rows()" in code
    assert "assert " in code


PRIVATE = {"cli", "commands", "files", "oracle_case", "ranks", "resume", "scaffold", "window"}
"""Modules of the core that nobody outside imports."""
COVERED_BY_THEIR_PACKAGE = ("xlm.callbacks.", "xlm.config.", "xlm.registry.", "xlm.testing.masked.", "xlm.metrics")
WORKS_BEHIND = {"xlm.data.cache", "xlm.data.storage", "xlm.testing.generic"}


def public_modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(xlm.__path__, "xlm.") if m.name.split(".")[1] not in PRIVATE]
    packages = {name.rpartition(".")[0] for name in found}  # of these the modules are shown
    return [n for n in found if n not in packages | WORKS_BEHIND and not n.startswith(COVERED_BY_THEIR_PACKAGE)]


@pytest.mark.parametrize("module", public_modules())
def test_every_public_module_is_in_the_reference(module):
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert re.search(rf"^::: {re.escape(module)}$", pages, flags=re.MULTILINE)


def test_pictures_are_as_their_script_draws_them():
    drawn = runpy.run_path(str(DOCS / "assets" / "draw.py"))["pictures"]()
    assert {name: (DOCS / "assets" / f"{name}.svg").read_text() for name in drawn} == drawn
