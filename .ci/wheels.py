"""Build packages and use the last outside the workspace: `python .ci/wheels.py PACKAGE...`, what it needs first.

What is installed beside them has the locked versions and hashes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
WORKSPACE = ("VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON")  # they would lead uv and Python back
CHECKS = ("train", "evaluate", "verify")
PROJECT = """[project]
name = "reader"
version = "0"
requires-python = ">=3.11"
dependencies = [{}]
"""


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run a command, its output in between."""
    subprocess.run([str(word) for word in command], cwd=cwd, env=_outside() | variables, check=True)


def refusal(*command: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run a command that must be refused; what it says."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=_outside() | variables, capture_output=True, text=True)
    if done.returncode == 0:
        sys.exit(f"this should have been refused: {' '.join(words)}")
    return done.stderr


def _outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in WORKSPACE}


def build(package: str, folder: Path) -> Path:
    """Build a package of the workspace and compare what its wheel holds with the sources; the wheel."""
    run("uv", "build", "--quiet", "--no-sources", f"--package={package}", "--out-dir", folder)
    run(sys.executable, ".ci/contents.py", folder, f"packages/{package}")
    return next(folder.glob(f"{package.replace('-', '_')}-*.whl"))


def locked(package: str, folder: Path) -> Path:
    """A file of what a package needs from others, with versions and hashes."""
    file = folder / "locked.txt"
    needed = ("--no-default-groups", "--no-emit-workspace", "--output-file")
    run("uv", "export", "--locked", "--quiet", f"--package={package}", *needed, file)
    return file


def pin(wheels: Sequence[Path], file: Path) -> list[str]:
    """Add wheels to a file of versions and hashes; each as a requirement."""
    pinned = []
    with file.open("a") as stream:
        for wheel in wheels:
            name, version = wheel.name.split("-")[:2]
            pinned.append(f"{name.replace('_', '-')}=={version}")
            stream.write(f"{pinned[-1]} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return pinned


def environment(folder: Path) -> Path:
    """An empty environment with this Python; its interpreter."""
    run("uv", "venv", "--quiet", "--python", sys.executable, folder / "environment")
    return folder / "environment" / "bin" / "python"


def install(wheels: Sequence[Path], folder: Path, offer: Sequence[str | Path], sources: str = "") -> Path:
    """Install these wheels and nothing but what they need, as a project elsewhere does; the interpreter that has them.

    Arguments:
        wheels: what must arrive, by hash; that they are found where they should be is up to offer and sources.
        folder: an empty place.
        offer: options that say where the wheels are.
        sources: more of the project's pyproject.toml, to the same end.
    """
    file = locked(wheels[-1].name.partition("-")[0].replace("_", "-"), folder)
    pinned = pin(wheels, file)
    (folder / "pyproject.toml").write_text(PROJECT.format(", ".join(f'"{line}"' for line in pinned)) + sources)
    python = environment(folder)
    hashed = ("--require-hashes", "--constraint", file, "--requirements", "pyproject.toml")
    run("uv", "pip", "install", "--quiet", "--python", python, *offer, *hashed, cwd=folder)
    return python


def use(python: Path, folder: Path, wheels: Path, package: str, checks: Sequence[str] = CHECKS) -> None:
    """Let an interpreter outside the workspace check its origin and work."""
    shutil.copy(ROOT / ".ci" / "shipped.py", folder)
    short = package.removeprefix("xlm-")
    run(python, "-I", "shipped.py", wheels, short, *(["core"] if short == "core" else checks), cwd=folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix=f"{sys.argv[-1]}-") as name:
        place = Path(name)
        built = [build(package, place / "wheels") for package in sys.argv[1:]]
        use(install(built, place, ["--find-links", "wheels"]), place, place / "wheels", sys.argv[-1])
