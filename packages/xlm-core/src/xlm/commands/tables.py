"""What commands print at their end."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

WIDE = 160
"""Columns where the output is no terminal."""


def visible(text: str) -> str:
    """Control characters and changes of direction as their escapes, so that a text cannot command the terminal."""
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def show_results(results: Mapping[str, Mapping[str, Any]], console: Console | None = None) -> None:
    """One table an event space: numbers that may be compared stand side by side. Numbers with parts get their own."""
    for space in sorted({str(values.get("event_space", "")) for values in results.values()}, reverse=True):
        rows = {name: values for name, values in results.items() if str(values.get("event_space", "")) == space}
        title = f"event space: {space}" if space else "predictions"
        columns = list(dict.fromkeys(key for values in rows.values() for key in values if _is_shown(key, rows)))
        cells = [[key, *(_known(values, key) for values in rows.values())] for key in columns]
        show_table(title, ["", *rows], cells, console)
    for key in dict.fromkeys(key for values in results.values() for key in values if isinstance(values[key], dict)):
        found = {name: values[key] for name, values in results.items() if key in values}
        parts = sorted({part for values in found.values() for part in values})
        cells = [[part, *(values.get(part) for values in found.values())] for part in parts]
        show_table("", [key, *found], cells, console)


def _is_shown(key: str, rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """The title has the event space; where nothing was drawn there is no Monte-Carlo error."""
    drawn = any(values.get(key) is not None for values in rows.values())
    in_parts = any(isinstance(values.get(key), dict) for values in rows.values())
    return key != "event_space" and (key != "mc_se" or drawn) and not in_parts


def _known(values: Mapping[str, Any], key: str) -> Any:
    """A number that has no value here is n/a, one that nobody asked for is not there."""
    return "n/a" if key in values and values[key] is None else values.get(key)


def show_table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[Any] | None], console: Console | None = None
) -> None:
    """A plain table; None among the rows is a line."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        if row is None:
            table.add_section()
            continue
        table.add_row(*(Text(_cell(value)) for value in row))
    (console or _console()).print(table)


def _console() -> Console:
    """A terminal has its width; a file or a pipe has room."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=WIDE)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def show_paths(paths: Iterable[Path | str]) -> None:
    """What was written, one path a line, ready to be copied."""
    for path in paths:
        print(path)
