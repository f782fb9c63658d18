"""Commands of other packages, offered through the entry point ``xlm.commands``; found without importing them.

A command is a module like those beside this one: ``run(words)``, and what it has of ``Options``, ``ABOUT``, ``KEYS``,
``FLAGS`` and ``BARE``. Its docstring's first line is its summary.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from xlm.commands import COMMANDS
from xlm.errors import UserError

if TYPE_CHECKING:
    from xlm.registry import Broken, Offer

GROUP, MODELS_PATH = "xlm.commands", "XLM_MODELS_PATH"
RESERVED = (*COMMANDS, "help")
"""Names that are the core's: ``xlm help`` prints what ``xlm --help`` does."""


def offered() -> dict[str, Offer]:
    """Commands by name; a name of the core's is never another's."""
    if not _may_be_some():
        return {}
    from xlm import registry

    return {name: offer for name, offer in registry.commands().items() if name not in RESERVED}


def summaries() -> dict[str, str]:
    """Commands with what they say of themselves and who offers them."""
    return {name: f"{_summary(offer)} ({offer.distribution})".lstrip() for name, offer in offered().items()}


def left_out() -> list[Broken]:
    """Commands that cannot be run, and why."""
    if not _may_be_some():
        return []
    from xlm import registry

    taken = [offer for name, offer in registry.commands().items() if name in RESERVED]
    reasons = [registry.twice(("xlm-core", offer.distribution), f"'{offer.name}'", GROUP) for offer in taken]
    broken = [found for found in registry.broken() if found.offer.group == GROUP]
    return [*map(registry.Broken, taken, reasons), *broken]


def refuse_broken(name: str) -> None:
    """Say why a command is left out that a user asks for.

    Raises:
        UserError: it is left out.
    """
    if _may_be_some():
        from xlm import registry

        registry.refuse_broken(name, GROUP)


def load(name: str) -> ModuleType:
    """The module of a command, the core's or another package's.

    Raises:
        UserError: it cannot be imported, or has no ``run``.
    """
    if name in COMMANDS:
        return importlib.import_module(f"xlm.commands.{name}")
    from xlm import registry

    offer = offered()[name]
    with registry.importing(offer):
        module = importlib.import_module(offer.module)
    if not callable(getattr(module, "run", None)):
        what = f"{offer.distribution} offers the command '{name}', but its module has no function run(words)"
        raise UserError(what, where=offer.module, fix=offer.remedy)
    return module


def _may_be_some() -> bool:
    """Whether to load ``importlib.metadata``, which takes longer than all else that ``xlm --help`` does."""
    if os.environ.get(MODELS_PATH):
        return True
    return any(GROUP in _entry_points(folder, name) for folder in sys.path for name in _listed(folder))


def _listed(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder or ".") if name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return []


def _entry_points(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name, "entry_points.txt"), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _summary(offer: Offer) -> str:
    """The first line of a module's docstring, read and not imported."""
    import ast

    names = offer.module.split(".")
    is_package = offer.folder.parts[-len(names) :] == tuple(names)
    file = offer.folder / ("__init__.py" if is_package else f"{names[-1]}.py")
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, SyntaxError):
        return ""
    return text.splitlines()[0].rstrip(".") if text else ""
