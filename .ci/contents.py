"""Compare what a wheel holds with the sources of its package: `python .ci/contents.py WHEELS PACKAGE`."""

from __future__ import annotations

import configparser
import sys
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any
from zipfile import ZipFile


def faults(wheel: Path, package: Path) -> list[str]:
    """Say what is wrong with the wheel of a package folder; an empty list is a good wheel."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    name = project["name"].replace("-", "_")
    info = f"{name}-{project['version']}.dist-info"
    if wheel.name != f"{name}-{project['version']}-py3-none-any.whl":
        return [f"{wheel.name} is not the wheel of {project['name']} {project['version']}"]
    with ZipFile(wheel) as archive:
        held = {entry for entry in archive.namelist() if not entry.endswith("/")}
        texts = {entry: archive.read(entry).decode() for entry in held if entry.startswith(info)}
    wanted = sources(package / "src") | {f"{info}/{entry}" for entry in described(project)}
    found = [f"it lacks {entry}" for entry in sorted(wanted - held)]
    found += [f"it should not hold {entry}" for entry in sorted(held - wanted)]
    modules = {entry.partition("/")[0] for entry in wanted} - {info}
    found += [f"{module} says nothing about its types" for module in modules if f"{module}/py.typed" not in wanted]
    found += wrong_entry_points(texts.get(f"{info}/entry_points.txt", ""), project)
    return found + wrong_metadata(Parser().parsestr(texts.get(f"{info}/METADATA", "")), project)


def sources(folder: Path) -> set[str]:
    """Every file below a source folder: modules, YAML, py.typed."""
    caches = {"__pycache__", ".ruff_cache"}
    files = (path for path in folder.rglob("*") if path.is_file() and not caches & set(path.parts))
    return {path.relative_to(folder).as_posix() for path in files}


def described(project: dict[str, Any]) -> set[str]:
    """What stands beside the modules."""
    licences = {f"licenses/{name}" for name in project["license-files"]}
    entry_points = {"entry_points.txt"} if wanted_entry_points(project) else set()
    return {"METADATA", "WHEEL", "RECORD"} | licences | entry_points


def wanted_entry_points(project: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Entry points by group, commands among them."""
    groups: dict[str, dict[str, str]] = {**project.get("entry-points", {})}
    return groups | ({"console_scripts": project["scripts"]} if "scripts" in project else {})


def wrong_entry_points(text: str, project: dict[str, Any]) -> list[str]:
    """A family without its entry point is installed and never found."""
    parser = configparser.ConfigParser(delimiters="=", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names keep their case
    parser.read_string(text)
    offered = {group: dict(parser[group]) for group in parser.sections()}
    wanted = wanted_entry_points(project)
    return [] if offered == wanted else [f"its entry points are {offered}, not {wanted}"]


def wrong_metadata(metadata: Message, project: dict[str, Any]) -> list[str]:
    """Name, version, Python and licence are the project's; no requirement points into the workspace."""
    wanted = {
        "Name": project["name"],
        "Version": project["version"],
        "Requires-Python": project["requires-python"],
        "License-Expression": project["license"],
    }
    found = [f"{key} is {metadata[key]}, not {value}" for key, value in wanted.items() if metadata[key] != value]
    local = [line for line in metadata.get_all("Requires-Dist", []) if "@" in line]
    return found + [f"it requires a place instead of a version: {line}" for line in local]


if __name__ == "__main__":
    wheels, package = Path(sys.argv[1]), Path(sys.argv[2])
    found = {wheel.name: faults(wheel, package) for wheel in wheels.glob(f"{package.name.replace('-', '_')}-*.whl")}
    if not found:
        sys.exit(f"{wheels} holds no wheel of {package.name}")
    for wheel_name, problems in found.items():
        print(f"{wheel_name}: " + ("; ".join(problems) or "as its sources are"))
    sys.exit(1 if any(found.values()) else 0)
