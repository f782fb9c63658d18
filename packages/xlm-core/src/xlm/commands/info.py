"""``xlm info``: installed families and tasks, which go together, and versions. Reads files; imports no family."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from xlm import registry
from xlm.commands import external
from xlm.config import search
from xlm.config.defaults import Entry, Options, content, followed
from xlm.config.inspection import inspect
from xlm.errors import UserError

LIBRARIES = ("torch", "lightning", "hydra-core", "transformers", "datasets")
KINDS = {
    registry.FAMILIES: "family",
    registry.TASKS: "task",
    registry.ORACLES: "oracle case",
    registry.COMMANDS: "command",
}
COLLATORS, TRAINING = "collators.", "dataset_managers.train."


def run(words: Sequence[str]) -> int:
    """Print tables of what can be used, and of what cannot and why."""
    if words:
        raise UserError("takes no keys", value=words[0], fix="write xlm info")
    from xlm.commands.tables import show_table

    options = search.options()
    wrong = {package: reason for package in registry.packages() if (reason := inspect(package, options))}
    options = {group: _usable(files, wrong) for group, files in options.items()}
    families = {name: roles_of_family(name, options) for name in options.get("model_type", {})}
    offered_by = {family.name: family for family in registry.families()}
    rows = [[name, _origin(offered_by.get(name)), ", ".join(roles)] for name, roles in families.items()]
    show_table("families", ["model_type", "package", "roles"], rows)
    tasks = {name: roles_of_task(name, options) for name in sorted(options.get("datamodule", {}))}
    matrix = [[task, *(view(wanted, roles) for roles in families.values())] for task, wanted in tasks.items()]
    show_table("tasks: the role in which a family is trained", ["datamodule", *families], matrix)
    commands = [[name, summary] for name, summary in external.summaries().items()]
    if commands:
        show_table("commands of packages", ["xlm", "what"], commands)
    if left_out := list(_left_out(wrong)):
        show_table("left out", ["what", "package", "why"], left_out)
    versions = [[name, metadata.version(name)] for name in ("xlm-core", *LIBRARIES) if _installed(name)]
    show_table("versions", ["package", "version"], [["python", platform.python_version()], *versions])
    return 0


def _usable(files: Mapping[str, Path], wrong: Iterable[registry.Offer]) -> dict[str, Path]:
    """Options without those of packages in which something is wrong."""
    folders = [package.configs for package in wrong]
    return {name: file for name, file in files.items() if not any(file.is_relative_to(folder) for folder in folders)}


def _left_out(wrong: Mapping[registry.Offer, UserError]) -> Iterator[list[str]]:
    """What cannot be used, and why; a line a reason."""
    broken = dict.fromkeys([*registry.broken(), *external.left_out()])
    found = [(each.offer, str(each.reason)) for each in broken]
    found += [(package, str(reason)) for package, reason in wrong.items()]
    for package, reason in dict.fromkeys((offer.label, reason) for offer, reason in found):
        names = [
            f"{KINDS[offer.group]} {offer.name}" for offer, why in found if (offer.label, why) == (package, reason)
        ]
        yield [", ".join(names), package, reason]
    for option, twice in search.ambiguous().items():
        yield [f"option {option}", "", str(twice)]


def _installed(distribution: str) -> bool:
    """Whether a distribution is installed."""
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def _origin(package: registry.Offer | None) -> str:
    if package is None:
        return search.HERE
    return package.label


def roles_of_family(name: str, options: Options) -> list[str]:
    """Roles of the collators that a ``model_type`` brings, from its defaults list."""
    places = dict.fromkeys(entry.place for entry in _followed("model_type", name, options))
    return [place.removeprefix(COLLATORS) for place in places if place.startswith(COLLATORS)]


def roles_of_task(name: str, options: Options) -> list[list[str]]:
    """For each training data set of a ``datamodule``, the roles that it can serve, best first."""
    entries = _followed("datamodule", name, options)
    found = {entry.place: entry for entry in entries if entry.place.startswith(TRAINING)}  # the later replaces
    return [_roles(entry.group, entry.option, options) for entry in found.values()]


def _roles(group: str, name: str, options: Options) -> list[str]:
    roles: list[str] = []
    for entry in _followed(group, name, options):
        if entry.file and not entry.place and (own := content(entry.file).get("roles")):
            roles = [str(role) for role in own] if isinstance(own, list) else []
    return roles


def _followed(group: str, name: str, options: Options) -> Iterator[Entry]:
    return followed(Entry(group, name, "", options.get(group, {}).get(name)), options)


def view(wanted: list[list[str]], available: list[str]) -> str:
    """The role in which a family sees a task; empty where it cannot."""
    chosen = [next((role for role in roles if role in available), "") for roles in wanted]
    return ", ".join(dict.fromkeys(chosen)) if chosen and all(chosen) else ""
