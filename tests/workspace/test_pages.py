"""How .ci/pages.py leads from page to page of the documentation."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

HOOK = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "pages.py"))
relinked = HOOK["relinked"]


@pytest.mark.parametrize(
    ("page", "link", "leads_to"),
    [
        ("index.md", "tasks.md", "tasks.md"),
        ("index.md", "samplers/blocks.md#law", "samplers/blocks.md#law"),
        ("index.md", "../packages/xlm-arlm", "packages/xlm-arlm.md"),
        ("packages/xlm-core.md", "../../docs/index.md", "../index.md"),
        ("packages/xlm-core.md", "../xlm-mdlm", "xlm-mdlm.md"),
        ("samplers/blocks.md", "../../packages/xlm-mdlm/README.md", "../packages/xlm-mdlm.md"),
        ("samplers/blocks.md", "order.md", "order.md"),
        ("tasks.md", "plot.png", "plot.png"),
        ("tasks.md", "../no/such/file.py", "../no/such/file.py"),
        ("tasks.md", "https://example.org/docs/tasks.md", "https://example.org/docs/tasks.md"),
        ("tasks.md", "#sudoku", "#sudoku"),
    ],
)
def test_a_link_between_files_of_the_repository_leads_to_their_pages(page, link, leads_to):
    text = "See [this]({}) and ![that]({}), of course (docs/tasks.md)."
    assert relinked(text.format(link, link), page) == text.format(leads_to, leads_to)


def test_a_link_to_a_file_without_a_page_is_its_text():
    assert relinked("By [the command](../noxfile.py).", "tasks.md") == "By the command."


@pytest.mark.parametrize("fence", ["```console", '```python title="a.py"', "    ```python"])
def test_the_site_does_not_read_what_a_block_says_to_the_tests(fence):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="tasks.md"))
    text = "A notest\n{}\nit is notest\n```\n"
    assert HOOK["on_page_markdown"](text.format(f"{fence} notest"), page) == text.format(fence)
