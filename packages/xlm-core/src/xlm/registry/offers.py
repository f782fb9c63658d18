"""What packages say that they offer: entry points where installed, ``pyproject.toml`` where being written."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from xlm.errors import UserError

CONFIGS = Path("configs") / "lightning_train"
"""Where options lie: in a package, and in the working directory."""

FAMILIES, TASKS, ORACLES, COMMANDS = GROUPS = ("xlm.families", "xlm.tasks", "xlm.oracles", "xlm.commands")
"""Groups of entry points."""

PACKAGES = (FAMILIES, TASKS)
"""Groups whose modules have options, and may be named by configurations."""

LIBRARIES = ("xlm", "torch", "lightning", "transformers", "datasets")
"""Modules that are nobody's offer: the core, and libraries that configurations may name."""

ORACLE_CASE = "oracle_case"
"""Module of a package that says nothing of its oracle case; its function ``case`` makes it."""

MODELS_PATH = "XLM_MODELS_PATH"
PROJECT = "pyproject.toml"


@dataclass(frozen=True)
class Offer:
    """One line of a package's entry points; nothing of the package is imported."""

    group: str
    """Of the entry point: ``xlm.families``, ..."""
    name: str
    """What users call it: ``mdlm``."""
    target: str
    """``xlm_mdlm``, ``xlm_mdlm.oracle_case:case``."""
    distribution: str
    """Who offers it: the distribution's name, or a path of ``XLM_MODELS_PATH``."""
    version: str | None = None
    """None while it is being written."""
    requires: tuple[str, ...] = ()
    """What the distribution needs, as it says it."""
    folder: Path = Path()
    """Of the module, or of the package that it is in; relative where it is not known."""
    root: Path = Path()
    """What must be on ``sys.path``; for a package that is being written."""

    @property
    def module(self) -> str:
        """The module that it names: ``xlm_mdlm.oracle_case``."""
        return self.target.partition(":")[0].strip()

    @property
    def top(self) -> str:
        """Top-level module: ``xlm_mdlm``."""
        return self.module.partition(".")[0]

    @property
    def is_family(self) -> bool:
        """Whether it is a family."""
        return self.group == FAMILIES

    @property
    def configs(self) -> Path:
        """Folder of its options."""
        return self.folder / CONFIGS

    @property
    def label(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version or '(being written)'}"

    @property
    def remedy(self) -> str:
        """What to do about a package that is broken."""
        if self.version is None:
            return f"correct it, or take it out of {MODELS_PATH}"
        return f"pip install --upgrade --force-reinstall {self.distribution}, or uninstall it"


@dataclass(frozen=True)
class Broken:
    """Something that is left out, and why."""

    offer: Offer
    reason: UserError
    """Names the distribution, what is wrong and what to do."""


def installed() -> Iterator[Offer | Broken]:
    """Every entry point of our groups.

    Raises:
        UserError: Python cannot read the entry points of a distribution; nothing that reads any starts, torch neither.
    """
    try:
        entries = metadata.entry_points()
    except (TypeError, ValueError) as error:
        raise _unreadable(error) from error
    for group in GROUPS:
        yield from (_offer(group, entry) for entry in entries.select(group=group))


def _unreadable(error: Exception) -> UserError:
    """The error for entry points that are none; says whose they are."""
    names = []
    for distribution in metadata.distributions():
        try:
            list(distribution.entry_points)
        except (TypeError, ValueError):
            names.append(_about(distribution)[0])
    what = f"the entry points of {' and '.join(names)} cannot be read ({error})"
    return UserError(what, where="entry_points.txt", fix=f"pip uninstall {' '.join(names)}")


def _offer(group: str, entry: metadata.EntryPoint) -> Offer | Broken:
    try:
        distribution = _found_by_name(entry.dist)
        needed = tuple(distribution.requires or ()) if distribution else ()
        return Offer(group, entry.name, entry.value, *_about(distribution), needed)
    except UnicodeDecodeError as error:
        said = re.search(rb"(?m)^Name: *([\w.-]+)", error.object)
        name = said[1].decode() if said else entry.module
        offer = Offer(group, entry.name, entry.value, name, "of an unknown version")
        what = f"the METADATA of {offer.distribution} cannot be read: {error}"
        return Broken(offer, UserError(what, where=group, fix=offer.remedy))


def _found_by_name(distribution: metadata.Distribution | None) -> metadata.Distribution | None:
    """What Python knows by its name: itself, unless an upgrade left it behind (``~lm_left-1.0.0.dist-info``)."""
    about = distribution.metadata if distribution else None
    if about is None or "Name" not in about:
        return distribution
    try:
        return metadata.distribution(about["Name"])
    except (metadata.PackageNotFoundError, ValueError):
        return distribution


def _about(distribution: metadata.Distribution | None) -> tuple[str, str]:
    """(name, version), as far as they are known."""
    unknown = {"Name": "an unnamed distribution", "Version": "of an unknown version"}
    about = distribution.metadata if distribution else unknown
    name, version = (str(about[key]) if key in about else unknown[key] for key in unknown)
    return name, version


def being_written(directory: str) -> Iterator[Offer | Broken]:
    """What the packages in a directory of ``XLM_MODELS_PATH`` offer."""
    what, modules = f"no package with {CONFIGS} in this directory", []
    try:
        modules = _modules_in(Path(directory).expanduser().resolve())
    except (OSError, RuntimeError) as error:  # no such user, links in a circle
        what = f"this directory cannot be read: {error}"
    if not modules:
        fix = "name the package's directory, its project's directory, or the directory that holds it"
        reason = UserError(what, where=MODELS_PATH, value=directory, fix=fix)
        yield Broken(Offer(FAMILIES, Path(directory).name, "", directory), reason)
    for module in modules:
        yield from _offers_of(module)


def _modules_in(directory: Path) -> list[Path]:
    candidates = [directory, *directory.glob("*"), *directory.glob("src/*")]
    return sorted(
        folder
        for folder in candidates
        if os.path.isfile(folder / "__init__.py") and os.path.isdir(folder / CONFIGS)  # False where it is forbidden
    )


def _offers_of(module: Path) -> Iterator[Offer | Broken]:
    """What the project of a module says it offers; without a word, a family or a task of the module's name."""
    group = FAMILIES if os.path.isdir(module / CONFIGS / "model_type") else TASKS
    package = Offer(
        group, module.name.removeprefix("xlm_"), module.name, str(module), folder=module, root=module.parent
    )
    try:
        requires, said = _said(_project_file(module))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = UserError(f"its {PROJECT} cannot be read: {error}", where=str(module), fix=package.remedy)
        yield Broken(package, reason)
        return
    package = replace(package, requires=requires)
    own = [
        replace(package, group=group, name=name, target=target)
        for group, name, target in said
        if target.partition(":")[0].partition(".")[0] == module.name
    ]
    yield from own
    if any(offer.group in PACKAGES for offer in own):
        return
    yield package
    if any(os.path.isfile(module / file) for file in (f"{ORACLE_CASE}.py", f"{ORACLE_CASE}/__init__.py")):
        yield replace(package, group=ORACLES, target=f"{module.name}.{ORACLE_CASE}:case")


def _project_file(module: Path) -> Path | None:
    """The ``pyproject.toml`` beside a module, or above its ``src``."""
    folders = [module.parent, *([module.parent.parent] if module.parent.name == "src" else [])]
    return next((folder / PROJECT for folder in folders if os.path.isfile(folder / PROJECT)), None)


def _said(file: Path | None) -> tuple[tuple[str, ...], list[tuple[str, str, str]]]:
    """(what a project needs, its entry points of our groups)."""
    project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {}) if file else {}
    tables = [(group, project.get("entry-points", {}).get(group, {})) for group in GROUPS]
    lines = [(group, name, str(target)) for group, table in tables for name, target in table.items()]
    needed = project.get("dependencies", [])
    if not isinstance(needed, list):
        raise TypeError("project.dependencies is no list")
    return tuple(map(str, needed)), lines
