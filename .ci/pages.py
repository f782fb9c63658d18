"""A hook of mkdocs: READMEs of packages are pages too; links between files of the repository lead from page to page."""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>[^)]*)\)")
NOTEST = re.compile(r"^( *`{3,}[^`\n]+) notest$", re.MULTILINE)
"""What a block says to the tests, and what keeps the site's Markdown from seeing that it is one."""


def readmes() -> dict[str, str]:
    """Page of each package's README."""
    packages = sorted(path.parent.name for path in ROOT.glob("packages/*/README.md"))
    return {f"packages/{name}.md": f"packages/{name}/README.md" for name in packages}


def page_of(path: str) -> str | None:
    """The page of a file or folder of the repository, or None."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return next((page for page, readme in readmes().items() if path in (readme, os.path.dirname(readme))), None)


def relinked(markdown: str, page: str) -> str:
    """The text of a page whose links to files of the repository lead to their pages, or are plain text without one."""
    source = readmes().get(page, f"docs/{page}")

    def lead(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(source), link["path"]))
        target = page_of(path)
        if target is None:
            return link["text"] if (ROOT / path).exists() else link[0]
        return f"[{link['text']}]({os.path.relpath(target, os.path.dirname(page))}{link['anchor']})"

    return LINK.sub(lead, markdown)


def on_files(files: Files, config: Any) -> Files:
    """Add the READMEs."""
    from mkdocs.structure.files import File

    for page, readme in readmes().items():
        files.append(File.generated(config, page, content=(ROOT / readme).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Follow links between files; one to nothing stays as it is, and fails the strict build."""
    return relinked(NOTEST.sub(r"\1", markdown), page.file.src_uri)
