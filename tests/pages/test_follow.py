"""How .ci/follow.py reads a page."""

from __future__ import annotations

import os
import runpy
from pathlib import Path

import pytest

FOLLOW = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "follow.py"))
PageError = FOLLOW["PageError"]
XLM = """#!/bin/sh
echo "xlm $*"
[ "$2" = modle_type=mdlm ] || exit 0
echo "error: unknown key in modle_type (mdlm); fix: did you mean model_type?"
exit 2
"""


@pytest.fixture
def read(tmp_path: Path):
    """Do what a little page says in an empty folder, where `xlm` prints its words; what was printed."""
    folder, command = tmp_path / "folder", tmp_path / "bin" / "xlm"
    folder.mkdir()
    command.parent.mkdir()
    command.write_text(XLM)
    command.chmod(0o755)

    def follow(text: str) -> str:
        page = tmp_path / "page.md"
        page.write_text(text)
        return FOLLOW["follow"](page, folder, {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"})

    return follow


def test_commands_run_in_order_in_one_shell_and_output_is_not_looked_at(read):
    said = read(
        "```console\n$ word=one\nwhat it prints\n```\nText.\n```console\n$ echo $word > a; cat a\nnot one\n```\n"
    )
    assert said.splitlines() == ["", "page.md:2: $ word=one", "", "page.md:7: $ echo $word > a; cat a", "one"]


def test_a_command_goes_on_in_the_next_line(read, tmp_path):
    read("```console\n$ echo one \\\n    two > a\n$ echo three >> a\n```\n")
    assert (tmp_path / "folder" / "a").read_text() == "one two\nthree\n"


def test_a_block_in_a_list_is_one(read, tmp_path):
    read("1. First:\n\n    ```console\n    $ touch a\n    ```\n")
    assert (tmp_path / "folder" / "a").exists()


@pytest.mark.parametrize("info", ["console notest", "text", "diff notest", "python", "bash"])
def test_other_blocks_are_left_alone(read, info):
    assert read(f"```{info}\n$ exit 3\n```\n") == ""


def test_a_titled_block_is_a_file(read, tmp_path):
    text = 'said = "it\'s"\n\nif said:\n    print(f"{said} $HOME \\\\")\n'
    read(f'```python title="a/b/c.py" notest\n{text}```\n```yaml title="d.yaml"\ne: 1\n```\n')
    assert (tmp_path / "folder" / "a" / "b" / "c.py").read_text() == text
    assert (tmp_path / "folder" / "d.yaml").read_text() == "e: 1\n"


DIFF = "```diff\n--- a/b.txt\n+++ a/b.txt\n@@ -1,9 +1,9 @@\n one\n-{}\n+zwei\n three\n```\n"


def test_a_diff_is_applied(read, tmp_path):
    read('```text title="a/b.txt"\none\ntwo\nthree\n```\n' + DIFF.format("two"))
    assert (tmp_path / "folder" / "a" / "b.txt").read_text() == "one\nzwei\nthree\n"


def test_a_diff_of_other_lines_stops_the_reader(read):
    with pytest.raises(PageError, match=r"page.md:5: \$ git apply\nerror: patch failed: a/b.txt:1"):
        read('```text title="a/b.txt"\none\nthree\n```\n' + DIFF.format("two"))


@pytest.mark.parametrize("command", ["false", "false && true", "false; true", "false | cat", "(exit 3)", "no_such"])
def test_a_command_that_fails_stops_the_reader(read, tmp_path, command):
    with pytest.raises(PageError):
        read(f"```console\n$ {command}\n$ touch further\n```\n")
    assert not (tmp_path / "folder" / "further").exists()


def test_who_is_stuck_says_where_and_shows_what_was_printed_there_alone(read):
    with pytest.raises(PageError) as stuck:
        read("# Title\n```console\n$ echo before\n$ echo one \\\n  two; exit 3\n```\n")
    assert str(stuck.value) == "page.md:4: $ echo one \\\n  two; exit 3\none two\n"


MISTAKE = "```console\n$ xlm train modle_type=mdlm\nerror: unknown key in modle_type{}\n```\n"


@pytest.mark.parametrize("rest", [" (mdlm); fix: did you mean model_type?", " (...); fix: ... model_type?"])
def test_an_error_that_a_page_shows_is_wanted_of_the_command_as_it_stands_there(read, rest):
    assert read(MISTAKE.format(rest)).splitlines()[2] == "xlm train modle_type=mdlm"


@pytest.mark.parametrize("rest", ["", " (mdlm)", " (arlm); fix: did you mean model_type?", " [mdlm]*"])
def test_another_error_stops_the_reader(read, rest):
    with pytest.raises(PageError, match="the page says: error: unknown key in modle_type"):
        read(MISTAKE.format(rest))


def test_an_error_that_a_page_shows_and_no_command_makes_stops_the_reader(read):
    with pytest.raises(PageError, match="the page says that this fails"):
        read("```console\n$ echo error: of echo\nerror: of echo\n```\n")


@pytest.mark.parametrize("command", ["train", "eval", "verify"])
def test_what_shortens_a_command_stands_around_its_words(read, command):
    said = read(f'```console\n$ if true; then xlm {command} trainer.max_steps=900 "prompt=a b" | cat; fi\n```\n')
    before, behind = FOLLOW["SHORTER"][command]
    words = ["xlm", command, *before, "trainer.max_steps=900", "prompt=a b", *behind]
    assert said.splitlines()[-1] == " ".join(words)


@pytest.mark.parametrize("words", ["", "info", "compare runs=[a,b]"])
def test_other_commands_are_as_they_stand(read, words):
    assert read(f"```console\n$ xlm {words}\n```\n").splitlines()[-1] == f"xlm {words}"
