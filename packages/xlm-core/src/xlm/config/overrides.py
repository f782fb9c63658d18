"""The words after ``xlm train``: quoted, parsed and, for a sweep, expanded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from xlm.config import search
from xlm.errors import UserError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

LITERAL = frozenset(
    "prompt prompts template checkpoint run_dir runs output resume init_from datamodule.path".split()  # noqa: SIM905
)
"""Keys whose value is text: taken as typed, never read as a list, a number, a sweep or an interpolation."""


def quote(argument: str) -> str:
    """``key=text`` with the text quoted for Hydra's grammar, where the key is a literal one."""
    key, equals, text = argument.partition("=")
    if not equals or key.lstrip("+") not in LITERAL:
        return argument
    from hydra.core.override_parser.types import Quote, QuotedString

    escaped = re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + r"\${", text)
    return f"{key}={QuotedString(escaped, Quote.single).with_quotes()}"


def unquote(line: str) -> str:
    """A line of Hydra's grammar as the word that ``quote`` would turn into it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(line)
    if override.key_or_group not in LITERAL or override.is_delete():
        return line
    text = re.sub(r"(\\*)\\\$\{", lambda match: match[1][: len(match[1]) // 2] + "${", str(override.value()))
    return f"{override.key_or_group}={text}"


def parse(arguments: Sequence[str]) -> list[Override]:
    """Overrides in order; mistakes of grammar are refused."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed = []
    for argument in arguments:
        try:
            override = parser.parse_override(quote(argument))
        except HydraException as error:
            raise UserError(
                "cannot read this override", value=argument, fix="write key=value; quote a text: 'key=\"a, b\"'"
            ) from error
        if argument.endswith("=") and override.key_or_group not in LITERAL and not override.is_delete():
            raise UserError("empty value", where=override.key_or_group, fix="give a value, or null for none")
        parsed.append(override)
    return parsed


def is_group(override: Override) -> bool:
    """Whether an override chooses an option, rather than setting a value."""
    key = override.key_or_group
    return override.package is not None or "/" in key or key in search.groups()


def is_value(override: Override) -> bool:
    """Whether an override sets or deletes a value of ours."""
    return not is_group(override) and not override.is_hydra_override()


def refuse_sweeps(overrides: Sequence[Override]) -> None:
    """A single run has one value for each key."""
    for override in overrides:
        if override.is_sweep_override():
            raise UserError(
                "several values",
                where=override.key_or_group,
                value=str(override.input_line).partition("=")[2],
                fix="put a list in brackets, a text with commas in quotes, or add --multirun to try each",
            )


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The words of each run of a sweep: every combination of the values given."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    (runs,) = BasicSweeper.split_arguments(parse(arguments), None)
    return [[unquote(line) for line in run] for run in runs]
