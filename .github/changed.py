"""Say which nox sessions a change needs: `python .github/changed.py [BASE]`, in an environment with nox.

Prints two outputs of a GitHub job, `cpu` and `gpu`: lists of `{"session", "python"}`. The packages that changed since
the commit BASE are tested, and those that need them; without BASE, everything, at lowest versions and published too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What decides how everything is tested. Other files outside the packages concern sessions that always run.
FOR_ALL = ("noxfile.py", "pyproject.toml", "uv.lock", ".github/", ".ci/")
NIGHTLY = {"lowest", "publish"}  # tags of sessions that install other versions of everything, or repeat a wheel's


def requirements(root: Path) -> dict[str, set[str]]:
    """Packages of the workspace by short name, each with those that it needs."""
    projects = [tomllib.loads(path.read_text())["project"] for path in root.glob("packages/*/pyproject.toml")]
    short = {project["name"]: project["name"].removeprefix("xlm-") for project in projects}
    return {
        short[project["name"]]: {short[name] for name in map(_name, project["dependencies"]) if name in short}
        for project in projects
    }


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else ""


def affected(files: Iterable[str], needs: Mapping[str, set[str]]) -> set[str]:
    """Short names of the packages that the changed files can break."""
    files = list(files)
    if any(file.startswith(FOR_ALL) for file in files):
        return set(needs)
    found = {short for short in needs if any(file.startswith(f"packages/xlm-{short}/") for file in files)}
    while more := {short for short, needed in needs.items() if needed & found} - found:
        found |= more
    return found


def chosen(
    sessions: Iterable[dict[str, Any]], packages: Iterable[str], wanted: set[str] | None
) -> list[dict[str, Any]]:
    """Sessions of nox that test the wanted packages, and those of no package; all where None is said to be wanted."""
    if wanted is None:
        return list(sessions)
    unwanted = NIGHTLY | set(packages) - wanted
    return [entry for entry in sessions if not unwanted & set(entry["tags"])]


def jobs(sessions: Iterable[dict[str, Any]], device: str, usual_python: str) -> list[dict[str, str]]:
    """One job a session of a device; what runs on any Python gets the usual one."""
    return [
        {"session": entry["session"], "python": entry["python"] or usual_python}
        for entry in sessions
        if entry["call_spec"].get("device", "cpu") == device
    ]


def changed_files(base: str, root: Path) -> list[str] | None:
    """Files that differ from a commit; None where git does not have it, as after a forced push."""
    git = ["git", "diff", "--name-only", "--no-renames", f"{base}...HEAD"]
    done = subprocess.run(git, cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else None


def nox_sessions() -> list[dict[str, Any]]:
    """Every session of nox."""
    nox = [sys.executable, "-m", "nox", f"--noxfile={ROOT / 'noxfile.py'}", "--tags=full", "--list", "--json"]
    found: list[dict[str, Any]] = json.loads(subprocess.run(nox, check=True, capture_output=True, text=True).stdout)
    return found


def lowest_python(sessions: Iterable[dict[str, Any]]) -> str:
    """The usual Python."""
    return min(entry["python"] for entry in sessions if entry["python"])


def main(base: str) -> None:
    """Print the outputs."""
    sessions = nox_sessions()
    needs = requirements(ROOT)
    files = changed_files(base, ROOT) if base else None
    selection = chosen(sessions, needs, None if files is None else affected(files, needs))
    for device in ("cpu", "gpu"):
        print(f"{device}={json.dumps(jobs(selection, device, lowest_python(sessions)))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
