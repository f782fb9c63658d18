"""Where options come from, in order: the working directory, the core, then the installed packages by name."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import xlm
from xlm import registry
from xlm.errors import UserError

HERE = "the working directory"
INSTALL_ONE = "no family is installed: pip install xlm-FAMILY"
PRIMARY = "config"
"""Name of the configuration that all begins with."""

OF_FAMILIES = ("model_type", "model", "predictor", "collator")
"""Groups whose options are families'."""

NAMED = {registry.FAMILIES: OF_FAMILIES, registry.TASKS: ("datamodule", "dataset_manager")}
"""Groups whose options begin with the name of what a package offers."""


@dataclass(frozen=True)
class Source:
    """A folder of options and who offers it."""

    provider: str
    folder: Path
    package: registry.Offer | None = None
    """None for the working directory and the core."""


@cache
def _announce(line: str) -> None:
    """Say a thing once, beside the output and not in it."""
    print(line, file=sys.stderr)


def sources() -> list[Source]:
    """Folders of options, the first that has an option wins."""
    packages = {package.configs: package for package in registry.packages()}
    folders = [
        Source(HERE, Path.cwd() / registry.CONFIGS),
        Source("xlm-core", Path(xlm.__file__).parent / registry.CONFIGS),
        *(Source(package.distribution, folder, package) for folder, package in packages.items()),
    ]
    return [source for source in folders if source.folder.is_dir()]


def source_of(file: Path) -> Source | None:
    """Where a file's option comes from."""
    return next((source for source in sources() if file.is_relative_to(source.folder)), None)


def announce_broken() -> None:
    """Say once of each distribution that it, or a part of it, is left out, and why."""
    first = {found.offer.distribution: found.reason for found in reversed(registry.broken())}
    for reason in first.values():
        _announce(f"left out: {reason}")


def options() -> dict[str, dict[str, Path]]:
    """Every group's options and their files (group "": the primary one), without those that two packages offer.

    An option of the working directory replaces a packaged one, which is printed.
    """
    found: dict[str, dict[str, Path]] = {}
    for (group, name), offered in _offered().items():
        first, *others = offered
        if first.provider == HERE:
            for source in others:
                _announce(f"{group}/{name} of {HERE} replaces that of {source.provider}")
        if first.provider == HERE or not others:
            found.setdefault(group, {})[name] = first.folder / group / f"{name}.yaml"
    return found


def ambiguous() -> dict[str, UserError]:
    """``group/option`` that several packages offer: neither stands for the other, so it cannot be chosen."""
    return {
        f"{group}/{name}": registry.twice(
            [source.provider for source in offered], f"the option '{group}/{name}'", group
        )
        for (group, name), offered in _offered().items()
        if offered[0].provider != HERE and len(offered) > 1
    }


def _offered() -> dict[tuple[str, str], list[Source]]:
    """Who offers each (group, option)."""
    found: dict[tuple[str, str], list[Source]] = {}
    for source in sources():
        for file in sorted(source.folder.rglob("*.yaml")):
            group = file.parent.relative_to(source.folder).as_posix().removeprefix(".")
            found.setdefault((group, file.stem), []).append(source)
    return found


def groups() -> list[str]:
    """Every group that has an option or that the primary configuration chooses from."""
    chosen = [next(iter(entry)) for entry in primary().get("defaults", []) if isinstance(entry, dict)]
    return list(dict.fromkeys([*options(), *(name for name in chosen if not name.startswith("override "))]))


def primary() -> Mapping[str, Any]:
    """The primary configuration as its file says it."""
    return read_yaml(options()[""][PRIMARY])


def read_yaml(file: Path) -> Mapping[str, Any]:
    """A YAML file's plain content; empty where it is no mapping."""
    return _read(file, file.stat().st_mtime_ns)


@cache
def _read(file: Path, changed: int) -> Mapping[str, Any]:
    import yaml

    content = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return content if isinstance(content, dict) else {}


def unreadable(file: str | Path | None, problem: str, line: int | None = None) -> UserError:
    """The error for an option that cannot be read; says whose it is, where it is a package's."""
    place = f"{file}:{line}" if line else str(file) if file else None
    source = source_of(Path(file)) if file else None
    if not source or not source.package:
        return UserError(problem, where=place, fix="correct this line of the file" if line else "correct the file")
    what = f"{source.provider} has an option that cannot be read: {problem}"
    return UserError(what, where=place, fix=source.package.remedy)


def not_utf8() -> Path | None:
    """The first option whose file is no text."""
    for file in (file for files in options().values() for file in files.values()):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return None


def replaced() -> list[str]:
    """``group/option`` of the working directory that stand for a packaged one."""
    here, *packaged = sources()
    if here.provider != HERE:
        return []
    names = [file.relative_to(here.folder) for file in sorted(here.folder.rglob("*.yaml"))]
    return [
        name.with_suffix("").as_posix()
        for name in names
        if any((source.folder / name).is_file() for source in packaged)
    ]


def nearest(word: str, words: Sequence[str], cutoff: float = 0.6) -> str | None:
    """The most similar of ``words``, if any is similar."""
    return next(iter(difflib.get_close_matches(word, words, n=1, cutoff=cutoff)), None)


def unknown_option(group: str, name: str, where: str | None = None) -> UserError:
    """The error for an option that cannot be chosen: of a package that is left out, of two packages, or of none."""
    if f"{group}/{name}" in (twice := ambiguous()):
        return twice[f"{group}/{name}"]
    if left_out := _left_out(group, name):
        return left_out
    announce_broken()
    names = sorted(options().get(group, {}))
    close = nearest(name, names)
    listed = f"choose one of {', '.join(names)}" if names else "no installed package offers an option of this group"
    fix = f"did you mean {close}? Otherwise {listed}" if close else listed
    if hint := _not_installed(group, name):
        fix = f"{fix}; if it belongs to a family that is not installed: {hint}"
    return UserError("no such option", where=where or group, value=name, fix=fix)


def no_model_type(package: registry.Offer) -> UserError:
    """The error for a family that cannot be chosen."""
    what = f"{package.distribution} offers the family '{package.name}', but no option model_type/{package.name}"
    return UserError(what, where=str(package.configs), fix=package.remedy)


def _left_out(group: str, name: str) -> UserError | None:
    """Why a package is left out that has this option, or whose family's name it begins with."""
    for package in registry.families() if group == "model_type" else ():
        if package.name == name:
            return no_model_type(package)
    for offer, reason in ((found.offer, found.reason) for found in registry.broken()):
        has_it = offer.folder.is_absolute() and (offer.configs / group / f"{name}.yaml").is_file()
        named_so = group in NAMED.get(offer.group, ()) and f"{name}_".startswith(f"{offer.name}_")
        if offer.group in registry.PACKAGES and (has_it or named_so):
            return reason
    return None


def _not_installed(group: str, name: str) -> str | None:
    """``pip install xlm-ilm`` for the option ``ilm_x``: a family's options begin with its name."""
    prefix = name.partition("_")[0]
    named_after_one = (prefix == name and group == "model_type") or (
        "_" in name and group in (*OF_FAMILIES, "experiment")
    )
    taken = {option.partition("_")[0] for option in options().get(group, {})}
    known = prefix in taken or any(family.name == prefix for family in registry.families())
    return f"pip install xlm-{prefix}" if named_after_one and not known else None
