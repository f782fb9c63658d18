"""What installed packages offer, found by entry point; nothing is imported to find it, and what is broken is left out.

A package offers itself with lines of its ``pyproject.toml``:

- ``xlm.families``, ``xlm.tasks``: a module whose options lie in ``configs/lightning_train`` beside its ``__init__.py``;
- ``xlm.oracles``: the function that makes an oracle case for ``xlm verify`` (``mdlm = "xlm_mdlm.oracle_case:case"``);
- ``xlm.commands``: a module like those of ``xlm.commands``, which ``xlm NAME`` runs.

``XLM_MODELS_PATH`` (directories, separated as in ``PATH``) adds packages that are being written and not installed yet.
Their ``pyproject.toml`` is read for the same lines. Without it those that offer a ``model_type`` are families, the
others tasks, of their module's name; their oracle case is ``case`` in ``oracle_case.py``.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from xlm.errors import UserError
from xlm.registry.checks import checked, twice, whole, without_twins
from xlm.registry.offers import (
    COMMANDS,
    CONFIGS,
    FAMILIES,
    LIBRARIES,
    MODELS_PATH,
    ORACLE_CASE,
    ORACLES,
    PACKAGES,
    TASKS,
    Broken,
    Offer,
    being_written,
    installed,
)

__all__ = [
    "COMMANDS",
    "CONFIGS",
    "FAMILIES",
    "LIBRARIES",
    "MODELS_PATH",
    "ORACLES",
    "ORACLE_CASE",
    "PACKAGES",
    "TASKS",
    "Broken",
    "Offer",
    "broken",
    "commands",
    "families",
    "forget",
    "importing",
    "oracle_cases",
    "package_of",
    "packages",
    "refuse_broken",
    "twice",
]


def packages() -> list[Offer]:
    """Families and tasks that can be used, in name order."""
    return _offered(*PACKAGES)


def families() -> list[Offer]:
    """Families that can be used, in name order."""
    return _offered(FAMILIES)


def commands() -> dict[str, Offer]:
    """Commands of packages by name, in name order."""
    return {offer.name: offer for offer in _offered(COMMANDS)}


def oracle_cases() -> dict[str, str]:
    """Oracle cases by name, each as ``module:function``, in name order."""
    return {offer.name: offer.target for offer in _offered(ORACLES)}


def broken() -> list[Broken]:
    """What is left out, and why."""
    return [found for found in _found(_models_path()) if isinstance(found, Broken)]


def refuse_broken(name: str, *groups: str) -> None:
    """Say why something is left out that a user asks for.

    Raises:
        UserError: it is left out.
    """
    for found in broken():
        if found.offer.name == name and found.offer.group in groups:
            raise found.reason


def package_of(target: str) -> Offer | None:
    """The package that a dotted path lies in; None for the core and for other libraries.

    Of packages that share a top-level module, the one whose own module holds the path; of a module that offers both a
    family and tasks, the family.

    Raises:
        UserError: the package is left out, so nothing of it may be imported.
    """
    top = target.partition(".")[0]
    near = []
    for found in () if top in LIBRARIES else _found(_models_path()):
        offer = found.offer if isinstance(found, Broken) else found
        if offer.top == top and offer.group in PACKAGES:
            inside = len(offer.module) if f"{target}.".startswith(f"{offer.module}.") else 0
            near.append(((inside, isinstance(found, Broken) == bool(inside), offer.is_family), found))
    if not near:
        return None
    _, nearest = max(near, key=lambda ranked: ranked[0])
    if isinstance(nearest, Broken):
        raise nearest.reason
    return nearest


@contextmanager
def importing(offer: Offer) -> Iterator[None]:
    """What code of a package stumbles over while it is imported is a mistake of the package.

    Raises:
        UserError: its code cannot be imported.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
            raise  # the process is being terminated
        if isinstance(error, SyntaxError):
            message, place = error.msg, f"{error.filename}:{error.lineno}"
        else:
            frames = traceback.extract_tb(error.__traceback__)
            inside = [frame for frame in frames if Path(frame.filename).is_relative_to(offer.folder)]
            message, place = str(error), f"{inside[-1].filename}:{inside[-1].lineno}" if inside else offer.module
        what = f"{offer.distribution} cannot be imported: {type(error).__name__}: {message}"
        raise UserError(what, where=place, fix=offer.remedy) from error


def forget() -> None:
    """Look again: packages were added or removed."""
    _found.cache_clear()


def _models_path() -> str:
    return os.environ.get(MODELS_PATH, "")


def _offered(*groups: str) -> list[Offer]:
    found = [offer for offer in _found(_models_path()) if isinstance(offer, Offer) and offer.group in groups]
    return sorted(found, key=lambda offer: (offer.name, offer.group))


@cache
def _found(models_path: str) -> Sequence[Offer | Broken]:
    importlib.invalidate_caches()
    said: list[Offer | Broken] = [*installed()]
    for directory in filter(None, models_path.split(os.pathsep)):
        said += being_written(directory)
    looked_at = [checked(offer) if isinstance(offer, Offer) else offer for offer in dict.fromkeys(said)]
    left_out = [offer for offer in looked_at if isinstance(offer, Broken)]
    fitting = [offer for offer in looked_at if isinstance(offer, Offer)]
    for folder in dict.fromkeys(offer.folder for offer in fitting if offer.version is None and offer.group in PACKAGES):
        print(f"{MODELS_PATH}: using {folder.name} from {folder}", file=sys.stderr)
    return tuple(whole([*left_out, *without_twins(fitting)]))
