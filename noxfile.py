"""Every command that a person or CI runs. `nox -l` reads as a manual; plain `nox` is what a change must pass."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"

ROOT = Path(__file__).parent
PACKAGES = {
    path.parent.name.removeprefix("xlm-"): tomllib.loads(path.read_text())["project"]["name"]
    for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
}
DEVICES = [nox.param("cpu", id="cpu"), nox.param("gpu", id="gpu")]
# One thread a process: oversubscribed OpenMP threads are slower than none, and sums do not depend on their number.
TEST_ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONDONTWRITEBYTECODE": None}


def sync(session: nox.Session, *selection: str) -> None:
    """Install exactly the locked versions of a selection, so that a forgotten dependency is missing here too."""
    session.run_install(
        "uv",
        "sync",
        "--locked",
        "--exact",
        "--quiet",
        "--no-default-groups",
        f"--python={session.virtualenv.location}",
        *selection,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )


def require_device(session: nox.Session, device: str) -> None:
    """Skip a GPU session on a machine without one, before anything is installed; fail under XLM_REQUIRE_GPU=1."""
    if device == "cpu":
        return
    found = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.strip()
    if not found and os.environ.get("XLM_REQUIRE_GPU") == "1":
        session.error("XLM_REQUIRE_GPU=1, but nvidia-smi lists no GPU")
    if not found:
        session.skip("nvidia-smi lists no GPU")


def add_package(short: str, package: str) -> None:
    """Make the sessions of one package."""
    folder = f"packages/{package}"

    def tests(session: nox.Session, device: str) -> None:
        require_device(session, device)
        sync(session, f"--package={package}", "--group=test")
        marker = "gpu" if device == "gpu" else "not gpu"
        documented = [f"{folder}/README.md", f"{folder}/src", "--markdown-docs", "--doctest-modules"]
        examples = [] if device == "gpu" else documented
        session.run("pytest", "-m", marker, f"{folder}/tests", *examples, *session.posargs, env=TEST_ENV)

    def mypy(session: nox.Session) -> None:
        sync(session, f"--package={package}", "--group=typing")
        session.run("mypy", f"{folder}/src", *session.posargs, env={"PYTHONDONTWRITEBYTECODE": None})

    tests.__doc__ = f"Test {package} with only its own dependencies: unit tests, oracles, documented examples."
    mypy.__doc__ = f"Check the types of {package} strictly."
    nox.session(name=f"tests-{short}", tags=[short, "tests"])(nox.parametrize("device", DEVICES)(tests))
    nox.session(name=f"mypy-{short}", tags=[short, "mypy"])(mypy)


for _short, _package in PACKAGES.items():
    add_package(_short, _package)


@nox.session(name="tests-together", tags=["tests"])
def tests_together(session: nox.Session) -> None:
    """Test what needs several packages at once: every option in every combination of family and task, the commands."""
    sync(session, "--group=test")
    session.run("pytest", "tests", "README.md", "docs", "--markdown-docs", *session.posargs, env=TEST_ENV)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting, the layers of imports, and that the lock fits the packages."""
    sync(session, "--only-group=lint")
    session.run("uv", "lock", "--check", "--quiet", external=True)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = os.pathsep.join(str(path) for path in sorted(ROOT.glob("packages/*/src")))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


nox.options.sessions = [
    "lint",
    *(f"mypy-{short}" for short in PACKAGES),
    *(f"tests-{short}(cpu)" for short in PACKAGES),
    "tests-together",
]
