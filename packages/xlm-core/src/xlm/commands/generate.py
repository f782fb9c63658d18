"""``xlm generate``: text from a finished run, for prompts, templates or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from xlm.commands import rundir
from xlm.config.runs import OF_THE_TRAINING
from xlm.errors import UserError

if TYPE_CHECKING:
    from xlm.commands.prompts import Asked

ABOUT = """
Texts go to stdout, one line of counts to stderr: texts; network calls, a call of a batch counted once for each text
that took part in it; tokens that were generated, without EOS and what a canvas holds behind it and without what a
template gives; their ratio; and tokens a second of sampling and decoding, loading not included.
"""
TOP_LEVEL = ("checkpoint", "weights", "seed", "trusted_packages")
KEYS = {
    "predictor": "another sampler of the family",
    "predictor.temperature": "and the sampler's other values: top_p, top_k ...",
}
UNUSED = (*OF_THE_TRAINING, "datamodule", "dataset_manager", "metrics")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Top-level keys of ``xlm generate``."""

    prompt: Annotated[str | None, "a text to go on from, taken literally"] = None
    prompts: Annotated[str | None, 'a JSON Lines file of {"prompt": "..."} or {"template": [...]}'] = None
    template: Annotated[str | None, 'a JSON file: ["The ", {"gap": 5}, " sat."]'] = None
    num_samples: Annotated[int, "texts a prompt"] = 1
    batch_size: Annotated[int, "rows at a time; it changes no row"] = 16
    max_new_tokens: Annotated[int | None, "longest answer, in tokens; the size of a canvas"] = None
    trace: Annotated[bool, "write into output how each text came about, for `xlm replay`"] = False
    output: Annotated[str | None, "a JSON Lines file to write"] = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError("must be at least 1", where=name, value=value, fix="give 1 or more")
        if self.trace and self.output is None:
            raise UserError("is written nowhere", where="trace", value="true", fix="add output=FILE.jsonl")
        given = [name for name in ("prompt", "prompts", "template") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"excludes {given[1]}", where=given[0], fix="give one of prompt, prompts and template")


def run(words: Sequence[str]) -> int:
    """Load, generate, print, and write where asked."""
    from xlm.commands.loading import open_run, run_config
    from xlm.config.top_level import read

    config = run_config(words, Options, unused=UNUSED)
    options = read(Options, config)
    asked, output = _asked(options), rundir.output_file(options.output)
    loaded = open_run(config)
    started = time.perf_counter()
    rows = loaded.generate(
        asked,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        trace=options.trace,
    )
    seconds = time.perf_counter() - started
    _show(rows)
    if output:
        _write(rows, output)
    sys.stdout.flush()
    print(costs(rows, seconds), file=sys.stderr)
    return 0


def costs(rows: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """What the texts cost, in a line; ``ABOUT`` says what its numbers count.

    Example:
        >>> costs([{"n_calls": 6, "n_new_tokens": 8}, {"n_calls": 4, "n_new_tokens": 7}], seconds=0.5)
        '2 texts, 10 network calls (5 a text), 15 tokens (1.5 a call, 30 a second)'
    """
    calls, tokens = (sum(row[name] for row in rows) for name in ("n_calls", "n_new_tokens"))
    a_call = f"{_number(tokens / calls)} a call, " if calls else ""
    texts = f"{len(rows):,} text{'s' if len(rows) > 1 else ''}"
    return (
        f"{texts}, {calls:,} network calls ({_number(calls / len(rows))} a text), "
        f"{tokens:,} tokens ({a_call}{_number(tokens / seconds)} a second)"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _asked(options: Options) -> list[Asked]:
    from xlm.commands.prompts import as_prompt, read_prompts, read_template

    if options.prompts is not None:
        return read_prompts(options.prompts)
    return [read_template(options.template) if options.template is not None else as_prompt(options.prompt)]


def _show(rows: list[dict[str, Any]]) -> None:
    from xlm.commands.tables import visible

    for row in rows:
        if row["prompt"]:
            print(f"> {visible(row['prompt'])}")
        print(visible(row["prediction"]))


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    from xlm.files import write_atomically

    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, lambda file: file.write(text.encode()))
    print(path)
