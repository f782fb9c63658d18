"""What is wrong inside a package, as far as its files tell: nothing of it is imported, and nothing composed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from xlm.config import search
from xlm.config.defaults import Entry, Options, content, followed
from xlm.config.validation import PARTS, targets
from xlm.errors import UserError
from xlm.registry import Offer

NEEDED = ("family", *PARTS)
"""What a ``model_type`` sets, itself or by its defaults."""


def inspect(package: Offer, options: Options) -> UserError | None:
    """The first thing wrong with a family or a task; None where nothing is seen."""
    try:
        named = dict(_check_options(package, options))
        _check_code(package, named)
        if package.is_family:
            _check_parts(package, options)
    except UserError as reason:
        return reason
    except Exception as error:  # of one package's files: the others are shown all the same
        what = f"{package.distribution} cannot be looked into: {type(error).__name__}: {error}"
        return UserError(what, where=str(package.folder), fix=package.remedy)
    return None


def _check_options(package: Offer, options: Options) -> Iterator[tuple[str, Path]]:
    """Every option can be read; gives the paths in the package that they name, each with a file that does."""
    for file in sorted(package.configs.rglob("*.yaml")):
        group = file.parent.relative_to(package.configs).as_posix().removeprefix(".")
        for _ in followed(Entry(group, file.stem, "", file), options):
            pass
        try:
            named = [node["_target_"] for _, node in targets(content(file), "")]
        except RecursionError as error:
            raise search.unreadable(file, "it contains itself") from error
        inside = f"{package.module}."
        yield from ((name, file) for name in named if isinstance(name, str) and name.startswith(inside))


def _check_code(package: Offer, named: dict[str, Path]) -> None:
    """Modules that options name are there, and are Python."""
    modules = {package.folder / "__init__.py": None}
    for target, file in named.items():
        first, *inner = target.removeprefix(f"{package.module}.").split(".")
        if inner and not _is_module(package.folder / first):
            what = f"{package.distribution} has no module {package.module}.{first}"
            raise UserError(what, where=str(file), value=target, fix=package.remedy)
        place = package.folder
        for name in (first, *inner):
            place = place / name
            modules |= {place.with_name(f"{name}.py"): None, place / "__init__.py": None}
    for module in filter(Path.is_file, modules):
        try:
            ast.parse(module.read_bytes())
        except SyntaxError as error:
            what = f"{package.distribution} cannot be imported: SyntaxError: {error.msg}"
            raise UserError(what, where=f"{module}:{error.lineno}", fix=package.remedy) from error
        except (ValueError, OSError) as error:
            what = f"{package.distribution} cannot be imported: {error}"
            raise UserError(what, where=str(module), fix=package.remedy) from error


def _is_module(path: Path) -> bool:
    return path.is_dir() or any(path.parent.glob(f"{path.name}.*"))  # .py, or compiled


def _check_parts(package: Offer, options: Options) -> None:
    """A family brings what a family brings."""
    file = package.configs / "model_type" / f"{package.name}.yaml"
    if not file.is_file():
        raise search.no_model_type(package)
    brought = set(_brought(Entry("model_type", package.name, "", file), options))
    if missing := [part for part in NEEDED if part not in brought]:
        what = f"{package.distribution} brings no {' and no '.join(missing)}"
        raise UserError(what, where=str(file), fix=package.remedy)


def _brought(option: Entry, options: Options) -> Iterator[str]:
    """Top-level keys that an option sets, itself or by its defaults; all, where they cannot be followed."""
    for entry in followed(option, options):
        if entry.place:
            yield entry.place.partition(".")[0]
        elif entry.file:
            yield from (key for key, value in content(entry.file).items() if value not in (None, {}))
        else:
            yield from NEEDED
