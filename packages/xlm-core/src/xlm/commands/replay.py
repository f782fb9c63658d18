"""``xlm replay``: how a text came about, step by step, in the terminal."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from xlm.commands.tables import visible
from xlm.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

ABOUT = """
Plays a row of a file that `xlm generate trace=true output=FILE` wrote. In a terminal the text changes in place; into a
file or a pipe goes one line a step: its number, how many tokens it wrote and hid again, and the text.

  xlm generate checkpoint=RUN num_samples=3 trace=true output=texts.jsonl
  xlm replay file=texts.jsonl checkpoint=RUN row=2
"""
HIDDEN, END = "·", "∎"
"""How the mask token and the end of a text are shown."""

STYLES = {"given": "cyan", "hidden": "bright_black", "new": "bold black on green", "remasked": "bold white on red"}
"""Of tokens by what they are; ``new`` and ``remasked`` are of the step shown."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys of ``xlm replay``."""

    file: Annotated[str, "what `xlm generate trace=true output=FILE` wrote"]
    checkpoint: Annotated[str, "the run that generated it: its tokenizer reads the tokens"]
    row: Annotated[int, "which text of the file, from 0"] = 0
    delay: Annotated[int | float, "seconds between two steps"] = 0.1

    def __post_init__(self) -> None:
        if self.row < 0:
            raise UserError("must not be negative", where="row", value=self.row, fix="the first row is 0")
        if not 0 <= self.delay < math.inf:
            raise UserError("must be 0 or more", where="delay", value=self.delay, fix="use 0 for no delay")


@dataclass(frozen=True)
class Frame:
    """What stands in a row after a step."""

    step: int | None
    """The sampler's number of it, from 0; None: before the first."""
    ids: list[int]
    kinds: list[str]
    """Of each token: a key of ``STYLES``, or "old"."""
    written: int
    remasked: int


def run(words: Sequence[str]) -> int:
    """Read the row, and play it."""
    options = _options(words)
    from rich.console import Console

    from xlm.config.runs import find_run
    from xlm.data import tokenizers

    row, title = read_row(options.file, options.row)
    tokenizer = tokenizers.load(find_run(options.checkpoint, where="checkpoint") / "tokenizer")
    _check(row, tokenizer, options)
    play(row, tokenizer, title, float(options.delay), Console())
    return 0


def _options(words: Sequence[str]) -> Options:
    from xlm.config.top_level import read, typed

    given = typed(Options, words)
    missing = [key for key in ("file", "checkpoint") if not given.get(key)]
    if missing:
        fix = "add file=OUT.jsonl checkpoint=RUN: what was generated, and the run that generated it"
        raise UserError(f"missing: {', '.join(missing)}", fix=fix)
    return read(Options, given)


# Reading


def read_row(file: str, row: int) -> tuple[dict[str, Any], str]:
    """One traced row of a file, and which of how many it is."""
    from xlm.data.sources import read_text

    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError("there is no such file", where="file", value=file, fix="check the path")
    lines = [(n, line) for n, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if row >= len(lines):
        has = f"{file} has {len(lines)}" if lines else f"{file} is empty"
        raise UserError(f"there is no such row, {has}", where="row", value=row, fix="rows are counted from 0")
    number, line = lines[row]
    try:
        content = json.loads(line)
    except ValueError as error:
        raise UserError(f"no JSON: {error}", where=f"{file}:{number}", fix="generate the file anew") from error
    if not isinstance(content, dict) or not {"trace", "start_ids"} <= content.keys():
        fix = "generate it with trace=true"
        raise UserError("does not say how the text came about", where=f"{file}:{number}", fix=fix)
    return content, f"row {row} of {len(lines)}"


def _check(row: Mapping[str, Any], tokenizer: Any, options: Options) -> None:
    """Refuse events that do not fit their row, and tokens of another run."""
    if not _fits(row):
        where = f"{options.file}, row {options.row}"
        raise UserError("holds events that do not fit its text", where=where, fix="generate the file anew")
    ids = row["ids"]
    tokens = {*ids, *row["start_ids"], *(event["token"] for event in row["trace"])}
    if not tokens <= {*range(len(tokenizer))} or not _begins(tokenizer, ids, row["prediction"]):
        what, fix = "has another tokenizer than the run that generated the file", "give that run"
        raise UserError(what, where="checkpoint", value=options.checkpoint, fix=fix)


def _fits(row: Mapping[str, Any]) -> bool:
    """Whether the events can be replayed, and the other columns are what they are called."""
    from xlm.trace import ADDS, Action

    try:
        length, last, numbers = len(row["start_ids"]), 0, [row["n_calls"], *row["start_ids"], *row["ids"]]
        for event in row["trace"]:
            length += event["action"] in ADDS
            numbers += [event["step"], event["token"], event["position"]]
            if event["action"] not in get_args(Action) or not 0 <= event["position"] < length or event["step"] < last:
                return False
            last = event["step"]
    except (KeyError, TypeError):
        return False
    return isinstance(row.get("prediction"), str) and all(type(number) is int for number in numbers)


def _begins(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    decoded: str = tokenizer.decode(ids, skip_special_tokens=True)
    return decoded.startswith(text)


# Playing


def frames(row: Mapping[str, Any], mask_id: int | None) -> Iterator[Frame]:
    """The states of a row: what it started from, then one a step in which something happened."""
    from xlm.trace import replay

    events, start = row["trace"], row["start_ids"]
    happened = Counter(event["step"] for event in events)
    remasked = Counter(event["step"] for event in events if event["action"] == "remask")
    steps = [None, *dict.fromkeys(event["step"] for event in events)]
    numbered = [{**event, "token": number} for number, event in enumerate(events)]
    writers = replay(numbered, [-1] * len(start))  # the number of the event that wrote each token
    for step, ids, wrote in zip(steps, replay(events, start), writers, strict=True):
        kinds = [_kind(token, mask_id, None if n < 0 else events[n], step) for token, n in zip(ids, wrote, strict=True)]
        yield Frame(step, ids, kinds, happened[step] - remasked[step], remasked[step])


def _kind(token: int, mask_id: int | None, event: Mapping[str, Any] | None, step: int | None) -> str:
    if event is not None and event["step"] == step:
        return "remasked" if event["action"] == "remask" else "new"
    if token == mask_id:
        return "hidden"
    return "given" if event is None else "old"


def play(row: Mapping[str, Any], tokenizer: Any, title: str, delay: float, console: Console) -> None:
    """Show every state, in place in a terminal and line by line elsewhere."""
    from rich.live import Live

    states = list(frames(row, tokenizer.mask_token_id))
    last = max((event["step"] for event in row["trace"]), default=0)
    title = f"{title}: {row['n_calls']} network calls"
    if not console.is_terminal or console.is_dumb_terminal:
        console.print(f"{title}; {HIDDEN} is hidden, {END} ends the text", soft_wrap=True, highlight=False)
        for state in states:
            console.print(_line(state, tokenizer), soft_wrap=True, highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        for n, state in enumerate(states):
            if n and delay:
                time.sleep(delay)
            live.update(_panel(state, tokenizer, title, last), refresh=True)


def _line(state: Frame, tokenizer: Any) -> Text:
    from rich.text import Text

    step = "start" if state.step is None else f"{state.step:>5}"
    text = shown(tokenizer, state).plain.replace("\n", "\\n").replace("\t", "\\t")
    return Text(f"{step} {f'+{state.written}':>4} {f'-{state.remasked}':>3}  {text}")


def _panel(state: Frame, tokenizer: Any, title: str, last: int) -> Panel:
    from rich.panel import Panel
    from rich.text import Text

    step = "start" if state.step is None else f"step {state.step} of {last}"
    legend = [(f" {name} ", STYLES[name]) for name in ("given", "new")]
    legend += [(f" {HIDDEN} {name} ", STYLES[name]) for name in ("hidden", "remasked")]
    counts = Text.assemble(f"{step}: +{state.written} -{state.remasked} ", *legend)
    return Panel(shown(tokenizer, state), title=title, subtitle=counts, title_align="left", subtitle_align="left")


def shown(tokenizer: Any, state: Frame) -> Text:
    """The text of a state, styled, hidden tokens as dots and control characters as their escapes."""
    from rich.text import Text

    marks = {tokenizer.bos_token_id: "", tokenizer.eos_token_id: END, tokenizer.mask_token_id: HIDDEN}
    tokens = [(token, marks.get(token), kind) for token, kind in zip(state.ids, state.kinds, strict=True)]
    text, before = Text(), None
    for (mark, kind), run_ in groupby(tokens, key=lambda token: token[1:]):
        ids = [token for token, _, _ in run_]
        piece = _behind(tokenizer, before, ids)
        text.append(piece if mark is None else piece.replace(tokenizer.decode(ids[:1]), mark), STYLES.get(kind))
        before = ids[-1]
    return text


def _behind(tokenizer: Any, before: int | None, ids: Sequence[int]) -> str:
    """Tokens as they read behind the one before them: a word tokenizer puts a space between two words."""
    left = [] if before is None else [before]
    whole, head = tokenizer.decode([*left, *ids]), tokenizer.decode(left)
    text: str = whole.removeprefix(head) if whole.startswith(head) else tokenizer.decode(ids)
    return visible(text)
