"""Whether a family works with the lowest and the highest core that it allows and refuses those just outside.

`python .ci/cores.py PACKAGE`. A core that was released is built from its tag, where git has it; the others are today's
sources under another version.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from wheels import ROOT, build, environment, locked, refusal, run, use

CORE = "xlm-core"
LAST = 999
"""Stands for the highest number that a part of a version will reach."""


@dataclass(frozen=True)
class Cores:
    """Versions of the core at both ends of a range, inside and outside."""

    below: str
    lowest: str
    highest: str
    above: str


def cores(dependencies: list[str]) -> Cores:
    """The ends of the range of cores that a package declares, which must be `>=A,<B`."""
    declared = next((found for found in map(Requirement, dependencies) if found.name == CORE), None)
    bounds = {part.operator: Version(part.version).release for part in declared.specifier} if declared else {}
    if set(bounds) != {">=", "<"}:
        raise SystemExit(f"it asks for {declared or f'no {CORE}'}: write a range, such as {CORE}>=1.0,<1.1")
    lowest, above = ((*release, 0, 0)[:3] for release in (bounds[">="], bounds["<"]))
    return Cores(*(".".join(map(str, v)) for v in (_before(lowest), lowest, _before(above), above)))


def _before(version: tuple[int, ...]) -> tuple[int, ...]:
    """The last version before another one."""
    place = max(index for index, number in enumerate(version) if number)
    return (*version[:place], version[place] - 1, *[LAST] * (len(version) - place - 1))


def sources(version: str, folder: Path, root: Path = ROOT) -> Path:
    """The core's sources of a version that was released, or today's under that version."""
    tag = f"refs/tags/{CORE}-v{version}"
    archive = ["git", "archive", "--format=tar", f"--output={folder}/core.tar", tag, f"packages/{CORE}"]
    if subprocess.run(archive, cwd=root, capture_output=True).returncode == 0:
        print(f"{CORE} {version} as it was released")
        shutil.unpack_archive(folder / "core.tar", folder / version, filter="data")
        return folder / version / "packages" / CORE
    print(f"{CORE} {version}: today's sources")
    copy = folder / version / CORE
    shutil.copytree(root / "packages" / CORE, copy, ignore=shutil.ignore_patterns("__pycache__", ".*_cache", "tests"))
    file = copy / "pyproject.toml"
    file.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', file.read_text(), count=1))
    return copy


def main(package: str, folder: Path) -> None:
    """Build four cores, and try the package with each in one environment."""
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())["project"]
    ends = cores(project["dependencies"])
    file, python = locked(package, folder), environment(folder)
    run("uv", "pip", "install", "--quiet", "--python", python, "--require-hashes", "--requirements", file, cwd=folder)
    family = build(package, folder / "family")
    for version, allowed in ((ends.lowest, True), (ends.highest, True), (ends.below, False), (ends.above, False)):
        place = folder / f"with-{version}"
        place.mkdir()
        shutil.copy(family, place)
        core = ("uv", "build", "--quiet", "--no-sources", "--wheel", "--out-dir", place, sources(version, place))
        run(*core, cwd=folder)
        both = (f"{package}=={project['version']}", f"{CORE}=={version}")
        command = ("uv", "pip", "install", "--quiet", "--python", python, "--no-index", "--find-links", place)
        if allowed:
            run(*command, *both, cwd=folder)
            use(python, place, place, package, ["train"])
            continue
        said = refusal(*command, *both, cwd=folder)
        if not re.search(rf"depends? on {CORE}", said):
            sys.exit(said)
        run(*command, "--no-deps", "--reinstall-package", package, *both, cwd=folder)
        use(python, place, place, package, ["refuse"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix=f"{sys.argv[1]}-cores-") as name:
        main(sys.argv[1], Path(name))
