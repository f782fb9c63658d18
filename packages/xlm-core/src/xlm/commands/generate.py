"""``xlm generate``: text from a finished run, for prompts, templates or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from xlm.commands import rundir
from xlm.config.runs import OF_THE_TRAINING
from xlm.errors import UserError

if TYPE_CHECKING:
    from xlm.commands.prompts import Asked

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
    output: Annotated[str | None, "a JSON Lines file to write"] = None

    def __post_init__(self) -> None:
        for name in ("num_samples", "batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError("must be at least 1", where=name, value=value, fix="give 1 or more")
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
    rows = loaded.generate(
        asked,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
    )
    _show(rows)
    if output:
        _write(rows, output)
    return 0


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
