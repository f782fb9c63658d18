"""The page of tasks knows every task and shows what its rows look like; its code runs with the documented examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from xlm.config import search

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
SECTIONS = {text.partition("\n")[0]: text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
NOT_TASKS = {"Is it learnt at all?", "What samples are like", "A task of your own"}


@pytest.mark.parametrize("task", sorted(search.options()["datamodule"]))
def test_every_task_is_named_in_a_section_that_shows_a_row(task):
    (section,) = [text for title, text in SECTIONS.items() if f"`{task}`" in text and title not in NOT_TASKS]
    code = "".join(re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL))
    assert "rows()" in code
    assert "assert " in code
