"""Do what a page says, as its reader would: `python .ci/follow.py PAGE` in an empty folder.

One bash takes a page from top to bottom and stops at the first thing that fails:

- ```console: lines that begin with `$ ` are commands, which go on in the next line after a `\\`; the others are what a
  command prints, for the reader. Where they begin with `error:`, the command must fail and print that line (`...` in it
  stands for anything).
- ```console notest: not run. The text before says why.
- ```diff: applied with `git apply -p0`; the counts of lines in its headers need not be right.
- title="PATH" after ```python, ```yaml, ...: the block is written to that file. In ```python title="PATH" notest the
  last word speaks to pytest-markdown-docs, which runs every other ```python.

Commands are shortened: words of `SHORTER` go before the words of the page, where they are a default, and behind them,
where they win.
"""

from __future__ import annotations

import glob
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^ *(?P=ticks)`* *$", re.M | re.S)
TITLE = re.compile(r'title="([^"]+)"')
PROMPT, ERROR = "$ ", "error:"

ONE_BATCH = ["trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "trainer.enable_progress_bar=false"]
SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=2"]
SHORTER = {
    "train": ([], ["trainer.max_steps=2", "trainer.val_check_interval=null", *ONE_BATCH, *SMALL]),
    "eval": ([], ONE_BATCH),
    "verify": (["model_type=core"], ["fast=true"]),
}
PREAMBLE = """
set -euo pipefail
at() { printf '\\n%s: $ %s\\n' "$1" "$2"; }
refused() {
    local said status=0
    said=$(xlm() { command xlm "$@"; }; eval "$2" 2>&1) || status=$?
    printf '%s\\n' "$said"
    [ $status != 0 ] || { echo "the page says that this fails"; exit 1; }
    [[ $'\\n'$said$'\\n' == *$'\\n'$1$'\\n'* ]] || { echo "the page says: $3"; exit 1; }
}
"""


class Block(NamedTuple):
    """A fenced block: the line of its fence, the words behind it, and its text."""

    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        """The first word."""
        return self.info.partition(" ")[0]

    @property
    def title(self) -> str | None:
        """The file that the block is."""
        found = TITLE.search(self.info)
        return found[1] if found else None

    @property
    def is_tested(self) -> bool:
        """Whether the page lets it run."""
        return "notest" not in self.info.split()


class Command(NamedTuple):
    """What a reader types: its line in the page, the text, and the error line that the page shows."""

    line: int
    text: str
    error: str | None


class PageError(Exception):
    """A reader gets no further: where, and what was printed there."""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    return [
        Block(page.count("\n", 0, found.start()) + 1, found["info"].strip(), textwrap.dedent(found["text"]))
        for found in FENCE.finditer(page)
    ]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block."""
    lines = block.text.splitlines()
    while lines:
        line, first = block.line + 1 + len(block.text.splitlines()) - len(lines), lines.pop(0)
        if not first.startswith(PROMPT):
            continue
        typed = [first.removeprefix(PROMPT)]
        while typed[-1].endswith("\\") and lines:
            typed.append(lines.pop(0))
        error = lines[0] if lines and lines[0].startswith(ERROR) else None
        yield Command(line, "\n".join(typed), error)


def steps(block: Block, page: str) -> Iterator[str]:
    """Lines of bash that do what a block says."""
    text = shlex.quote(block.text)
    if block.title:
        yield f"mkdir -p {shlex.quote(str(Path(block.title).parent))}; printf %s {text} > {shlex.quote(block.title)}"
    elif block.language == "diff" and block.is_tested:
        yield f"at {page}:{block.line} 'git apply'; printf %s {text} | git apply -p0 --recount"
    elif block.language == "console" and block.is_tested:
        for command in commands(block):
            yield f"at {page}:{command.line} {shlex.quote(command.text)}"
            if command.error:
                line = glob.escape(command.error.replace("\\", "\\\\")).replace("...", "*")
                yield " ".join(["refused", *map(shlex.quote, (line, command.text, command.error))])
            else:
                yield f"{command.text}\n[ $? = 0 ] || exit 1"  # `a && b` alone ends nothing


def script(page: Path) -> str:
    """All of a page as one program."""
    cases = (
        f'{command}) set -- {" ".join([command, *before])} "${{@:2}}" {" ".join(behind)};;'
        for command, (before, behind) in SHORTER.items()
    )
    short_xlm = f'xlm() {{ case "${{1-}}" in {" ".join(cases)} esac; command xlm "$@"; }}'
    name = shlex.quote(page.name)
    return "\n".join(
        [PREAMBLE, short_xlm, *(step for block in blocks(page.read_text()) for step in steps(block, name))]
    )


def follow(page: Path, folder: Path, env: dict[str, str]) -> str:
    """Do in a folder what a page says; what was printed.

    Raises:
        PageError: Something failed. The message is its place in the page, the command, and what it printed.
    """
    done = subprocess.run(
        ["bash", "-c", script(page)],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise PageError(re.split(rf"^(?={re.escape(page.name)}:\d+: )", done.stdout, flags=re.MULTILINE)[-1])
    return done.stdout


if __name__ == "__main__":
    sys.exit(subprocess.run(["bash", "-c", script(Path(sys.argv[1]))], stdin=subprocess.DEVNULL).returncode)
