"""Say what a tag releases: `python .github/released.py xlm-arlm-v1.0.0`, in an environment with nox.

Prints two outputs of a GitHub job: `package`, and `sessions`, a list of `{"session", "python"}` that test it. One line
and exit code 1 where the tag, the version in pyproject.toml and the topmost heading of CHANGELOG.md do not agree.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

from changed import ROOT, jobs, lowest_python, nox_sessions

TAG = re.compile(r"(?P<package>[a-z0-9-]+)-v(?P<version>\d[\w.]*)")


def released(tag: str, root: Path = ROOT) -> str:
    """The package that a tag releases.

    Raises:
        SystemExit: with what does not agree.
    """
    named = TAG.fullmatch(tag)
    if named is None:
        raise SystemExit(f"{tag} is no release: name a package and its version, as in xlm-arlm-v1.0.0")
    package, version = named["package"], named["version"]
    packages = sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))
    if package not in packages:
        raise SystemExit(f"{tag} releases {package}, which is none of {', '.join(packages)}")
    folder = Path("packages") / package
    declared = tomllib.loads((root / folder / "pyproject.toml").read_text())["project"]["version"]
    if declared != version:
        raise SystemExit(f"{tag} releases {version}, but the version in {folder}/pyproject.toml is {declared}")
    lines = (root / folder / "CHANGELOG.md").read_text().splitlines()
    heading = next((line for line in lines if line.startswith("## ")), "missing")
    if not re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        wanted = f"'## {version} (YEAR-MONTH-DAY)'"
        raise SystemExit(f"{tag}: the first heading in {folder}/CHANGELOG.md is '{heading}', not {wanted}")
    return package


def main(tag: str) -> None:
    """Print the outputs."""
    package = released(tag)
    sessions = nox_sessions()
    own = [entry for entry in sessions if package.removeprefix("xlm-") in entry["tags"]]
    print(f"package={package}")
    print(f"sessions={json.dumps(jobs(own, 'cpu', lowest_python(sessions)))}")


if __name__ == "__main__":
    main(sys.argv[1])
