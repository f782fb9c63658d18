"""What is wrong inside a package, as far as its files tell: nothing of it is imported, and nothing composed."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xlm.config import search
from xlm.errors import UserError
from xlm.registry import Offer

NEEDED = ("family", "model", "loss", "predictor", "collators")
"""What a ``model_type`` sets, itself or by its defaults."""


def inspect(package: Offer) -> UserError | None:
    """The first thing wrong with a family or a task; None where nothing is seen."""
    checks = (_check_code, _check_options, *([_check_parts] if package.is_family else []))
    for check in checks:
        try:
            check(package)
        except UserError as reason:
            return reason
    return None


def _check_code(package: Offer) -> None:
    for file in sorted(_code(package.folder)):
        try:
            ast.parse(file.read_bytes())
        except SyntaxError as error:
            what = f"{package.distribution} cannot be imported: SyntaxError: {error.msg}"
            raise UserError(what, where=f"{file}:{error.lineno}", fix=package.remedy) from error
        except (ValueError, OSError) as error:
            what = f"{package.distribution} cannot be imported: {error}"
            raise UserError(what, where=str(file), fix=package.remedy) from error


def _code(folder: Path) -> Iterator[Path]:
    """Python files, without those that lie among data."""
    yield from folder.glob("*.py")
    for init in folder.glob("*/__init__.py"):
        yield from _code(init.parent)


def _check_options(package: Offer) -> None:
    """Every option can be read, and names code of the package that is there."""
    for file in sorted(package.configs.rglob("*.yaml")):
        for target in _targets(_read(file)):
            top, _, inner = target.partition(".")
            module = inner.partition(".")[0]
            if top == package.module and "." in inner and not _is_module(package.folder / module):
                what = f"{package.distribution} has no module {top}.{module}"
                raise UserError(what, where=str(file), value=target, fix=package.remedy)


def _is_module(path: Path) -> bool:
    return path.is_dir() or any(path.parent.glob(f"{path.name}.*"))  # .py, or compiled


def _targets(node: Any) -> Iterator[str]:
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield node["_target_"]
    for child in children:
        yield from _targets(child)


def _check_parts(package: Offer) -> None:
    """A family brings what a family brings."""
    file = package.configs / "model_type" / f"{package.name}.yaml"
    if not file.is_file():
        raise search.no_model_type(package)
    brought = set(_brought(file))
    if missing := [part for part in NEEDED if part not in brought]:
        what = f"{package.distribution} brings no {' and no '.join(missing)}"
        raise UserError(what, where=str(file), fix=package.remedy)


def _brought(file: Path) -> Iterator[str]:
    """Top-level keys that an option sets, itself or through the groups of its defaults list."""
    content = _read(file)
    yield from (key for key, value in content.items() if value not in (None, {}))
    for entry in content.get("defaults") or ():
        for key, option in entry.items() if isinstance(entry, dict) else [("", entry)]:
            group, _, place = key.removeprefix("override ").lstrip("/").partition("@")
            if option is not None:
                yield (place or group).partition(".")[0]
            if not key and (sibling := file.with_name(f"{option}.yaml")).is_file():
                yield from _brought(sibling)


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    try:
        return search.read_yaml(file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise search.unreadable(file, str(error.problem), mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise search.unreadable(file, str(error)) from error
