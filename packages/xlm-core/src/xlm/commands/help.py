"""``xlm COMMAND --help``: the keys of a command and what they mean, and the options of every group."""

from __future__ import annotations

import inspect
from types import ModuleType

from xlm.commands import COMMANDS
from xlm.config import search
from xlm.config.top_level import TopLevel, defaults, meanings

TAKES_GROUPS = ("train", "check", "prepare_data")


GROUPS = {"model_type": "the family", "datamodule": "the task"}
"""What a run must be told, and what it means."""


def describe(name: str, module: ModuleType) -> str:
    """The help text of a command."""
    composes = name in TAKES_GROUPS
    options = getattr(module, "Options", None)
    keys = {key: meanings(TopLevel)[key] for key in getattr(module, "TOP_LEVEL", ())}
    keys |= meanings(options) if options else {}
    needed = [f"  {group:28} {meaning}: {_installed(group)}" for group, meaning in GROUPS.items() if composes]
    given = defaults(TopLevel) | (defaults(options) if options else {})
    lines = [f"  {key + _default(given.get(key)):28} {meaning}" for key, meaning in keys.items()]
    lines += [f"  {key:28} {meaning}" for key, meaning in getattr(module, "KEYS", {}).items()]
    bare = f" {module.BARE.upper()}" if hasattr(module, "BARE") else ""
    usage = f"usage: xlm {name}{' model_type=FAMILY datamodule=TASK' if composes else bare} [key=value ...]"
    about = inspect.cleandoc(getattr(module, "ABOUT", ""))
    summary = COMMANDS.get(name) or next(iter(inspect.cleandoc(module.__doc__ or "").splitlines()), "")
    parts = [[usage], [summary], [about], [*needed, *lines], _groups() if composes else []]
    return "\n\n".join("\n".join(part) for part in parts if any(part))


def _default(value: object) -> str:
    return "" if value is None else f"={str(value).lower() if isinstance(value, bool) else value}"


def _groups() -> list[str]:
    """Groups with their options; those that only other options use are left out."""
    listed = {group: names for group, names in search.options().items() if group and "/" not in group}
    lines = [f"  {group:16} {', '.join(sorted(names))}" for group, names in sorted(listed.items())]
    return ["groups (group=option):", *lines]


def _installed(group: str) -> str:
    return " | ".join(sorted(search.options().get(group, {}))) or search.INSTALL_ONE
