"""Installed families and tasks, found by entry point; nothing is imported to find one.

A package offers itself with one line of its ``pyproject.toml``, in the group ``xlm.families`` or ``xlm.tasks``; its
options lie in ``configs/lightning_train`` beside its ``__init__.py``. A line in ``xlm.oracles`` names the function that
makes its oracle case (``mdlm = "xlm_mdlm.oracle_case:case"``), which ``xlm verify`` calls.

``XLM_MODELS_PATH`` (directories, separated as in ``PATH``) adds packages that are being written and not installed yet;
those that offer a ``model_type`` are families, and their oracle case is ``case`` in ``oracle_case.py``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from xlm.errors import UserError

CONFIGS = Path("configs") / "lightning_train"
"""Where options lie: in a package, and in the working directory."""

GROUPS = ("xlm.families", "xlm.tasks")
ORACLES = "xlm.oracles"
ORACLE_CASE = "oracle_case"
"""Module of a package that is being written; its function ``case`` makes the oracle case."""

MODELS_PATH = "XLM_MODELS_PATH"


@dataclass(frozen=True)
class Package:
    """A family's or a task's package, not imported."""

    name: str
    """What the entry point calls it: ``mdlm``."""
    module: str
    """Top-level module: ``xlm_mdlm``."""
    folder: Path
    """Folder of the module."""
    distribution: str
    """Who offers it: the distribution's name, or a path of ``XLM_MODELS_PATH``."""
    version: str | None = None
    requires_core: str = ""
    """Range of ``xlm-core`` versions that the distribution asks for; empty is any."""
    is_family: bool = True

    @property
    def configs(self) -> Path:
        """Folder of its options."""
        return self.folder / CONFIGS

    def check_core(self) -> None:
        """Refuse a package that was written for another version of the core."""
        from packaging.specifiers import SpecifierSet

        core = metadata.version("xlm-core")
        if not SpecifierSet(self.requires_core, prereleases=True).contains(core):
            raise UserError(
                f"{self.distribution} {self.version} needs xlm-core{self.requires_core}",
                where=f"package {self.distribution}",
                value=f"xlm-core {core}",
                fix=f"pip install --upgrade {self.distribution} xlm-core",
            )


def packages() -> list[Package]:
    """Every family and task package in name order; two of one name, kind and different origin are refused."""
    return _packages(os.environ.get(MODELS_PATH, ""))


def families() -> list[Package]:
    """Installed families in name order."""
    return [package for package in packages() if package.is_family]


def oracle_cases() -> dict[str, str]:
    """Oracle cases by name, each as ``module:function``, in name order.

    Raises:
        UserError: two distributions offer a case of one name.
    """
    found: dict[str, metadata.EntryPoint] = {}
    for entry in metadata.entry_points(group=ORACLES):
        other = found.setdefault(entry.name, entry)
        if other.value != entry.value:
            offered = " and ".join(e.dist.name if e.dist else e.value for e in (other, entry))
            raise UserError(f"{offered} both offer '{entry.name}'", where=ORACLES, fix="uninstall one of them")
    cases = {name: entry.value for name, entry in found.items()}
    for package in packages():
        places = (f"{ORACLE_CASE}.py", f"{ORACLE_CASE}/__init__.py")
        if package.version is None and any((package.folder / place).is_file() for place in places):
            cases[package.name] = f"{package.module}.{ORACLE_CASE}:case"
    return dict(sorted(cases.items()))


def package_of(target: str) -> Package | None:
    """The package whose module a dotted path starts with; None for the core and for other libraries.

    Of a module that offers both a family and tasks, the family.
    """
    top = target.partition(".")[0]
    found = [package for package in packages() if package.module == top]
    return next((package for package in found if package.is_family), found[0] if found else None)


@cache
def _packages(models_path: str) -> list[Package]:
    found = [_from_entry_point(group, entry) for group in GROUPS for entry in metadata.entry_points(group=group)]
    found += _being_written(models_path)
    by_name: dict[tuple[str, bool], Package] = {}
    for package in found:
        other = by_name.setdefault((package.name, package.is_family), package)
        if (other.distribution, other.folder) != (package.distribution, package.folder):
            raise UserError(
                f"{other.distribution} and {package.distribution} both offer '{package.name}'",
                where=GROUPS[0] if package.is_family else GROUPS[1],
                fix=f"uninstall one of them, or take it out of {MODELS_PATH}",
            )
    return [by_name[key] for key in sorted(by_name)]


def _from_entry_point(group: str, entry: metadata.EntryPoint) -> Package:
    top, *rest = entry.value.partition(":")[0].strip().split(".")
    spec = find_spec(top)  # of the top-level package: finding a submodule would import its parent
    distribution = entry.dist.name if entry.dist else "an unnamed distribution"
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{distribution} offers '{entry.name}', but its package '{top}' is not there",
            where=group,
            fix=f"pip install --force-reinstall {distribution}",
        )
    return Package(
        name=entry.name,
        module=top,
        folder=Path(next(iter(spec.submodule_search_locations))).joinpath(*rest),
        distribution=distribution,
        version=entry.dist.version if entry.dist else None,
        requires_core=_core_range(entry.dist.requires or []) if entry.dist else "",
        is_family=group == GROUPS[0],
    )


def _core_range(requirements: list[str]) -> str:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    parsed = map(Requirement, requirements)
    return next((str(r.specifier) for r in parsed if canonicalize_name(r.name) == "xlm-core" and not r.marker), "")


def _being_written(models_path: str) -> list[Package]:
    """Packages in the directories of ``XLM_MODELS_PATH``, made importable after everything that is installed."""
    found = []
    for name in filter(None, models_path.split(os.pathsep)):
        directory = Path(name).expanduser().resolve()
        modules = _modules_in(directory)
        if not modules:
            raise UserError(
                f"no package with {CONFIGS} in this directory",
                where=MODELS_PATH,
                value=name,
                fix="name the package's directory, its project's directory, or the directory that holds it",
            )
        for module in modules:
            print(f"{MODELS_PATH}: using {module.name} from {module}", file=sys.stderr)
            if str(module.parent) not in sys.path:
                sys.path.append(str(module.parent))
            is_family = (module / CONFIGS / "model_type").is_dir()
            name = module.name.removeprefix("xlm_")
            found.append(Package(name, module.name, module, str(module), is_family=is_family))
    return found


def _modules_in(directory: Path) -> list[Path]:
    candidates = [directory, *directory.glob("*"), *directory.glob("src/*")]
    return sorted(folder for folder in candidates if (folder / "__init__.py").is_file() and (folder / CONFIGS).is_dir())
