"""Every command that a person or CI runs. `nox -l` reads as a manual; plain `nox` is what a change must pass.

Plain `nox` tests on the Python that runs nox, or on those that `XLM_PYTHONS="3.11 3.13"` names; `nox -t full` runs all.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
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
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = sorted({"3.11", "3.12", "3.13", HERE})  # an interpreter that this machine lacks is skipped by name
USUAL_PYTHONS = os.environ.get("XLM_PYTHONS", HERE).split()
DEVICES = [nox.param("cpu", id="cpu"), nox.param("gpu", id="gpu")]
# One thread a process: oversubscribed OpenMP threads are slower than none, and sums do not depend on their number.
TEST_ENV = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONDONTWRITEBYTECODE": None}
# A process a core, except where they would share a GPU: `-- -n0` is one process, for a debugger. A process that is done
# takes tests of one that is not: half of a family's time lies in one file, its oracles.
PARALLEL = ["-n", "logical", "--maxprocesses=8", "--dist=worksteal"]


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


def test(session: nox.Session, package: str, device: str) -> None:
    """Run the tests of one package and the examples in its documentation."""
    folder = f"packages/{package}"
    examples = [f"{folder}/README.md", f"{folder}/src", "--markdown-docs", "--doctest-modules"]
    only = ["-m", "gpu"] if device == "gpu" else ["-m", "not gpu", *PARALLEL, *examples]
    session.run("pytest", f"{folder}/tests", *only, *session.posargs, env=TEST_ENV)


def add_package(short: str, package: str) -> None:
    """Make the sessions of one package."""
    with_core = list(dict.fromkeys([PACKAGES["core"], package]))

    def tests(session: nox.Session, device: str) -> None:
        require_device(session, device)
        sync(session, f"--package={package}", "--group=test")
        test(session, package, device)

    def lowest(session: nox.Session) -> None:
        editable = [f"--editable=packages/{name}" for name in with_core]
        group = f"--group=packages/{package}/pyproject.toml:test"
        session.install("--resolution=lowest-direct", "--upgrade", "--quiet", *editable, group)
        test(session, package, "cpu")

    def mypy(session: nox.Session) -> None:
        sync(session, f"--package={package}", "--group=typing")
        session.run("mypy", f"packages/{package}/src", *session.posargs, env={"PYTHONDONTWRITEBYTECODE": None})
        if short == "core":  # the package that `xlm scaffold` makes is checked as one
            with tempfile.TemporaryDirectory(prefix="scaffold-") as folder:
                session.run("xlm", "scaffold", "my_model", f"output={folder}/xlm-my-model", silent=True)
                with session.chdir(f"{folder}/xlm-my-model"):
                    session.run("mypy", "src")

    def wheel(session: nox.Session) -> None:
        session.run(sys.executable, ".ci/wheels.py", *with_core, external=True)

    def publish(session: nox.Session) -> None:
        sync(session, "--only-group=publish")
        session.run("python", ".ci/publish.py", *with_core)

    def cores(session: nox.Session) -> None:
        session.run(sys.executable, ".ci/cores.py", package, external=True)

    tests.__doc__ = f"Test {package} with only its own dependencies: unit tests, oracles, documented examples."
    lowest.__doc__ = f"Test {package} with the lowest version of every dependency that it allows."
    mypy.__doc__ = f"Check the types of {package} strictly."
    wheel.__doc__ = f"Build {package}, check what is in the wheel, and use it outside the workspace."
    publish.__doc__ = f"Publish {package} on an index of this machine, install it from there, and use it."
    cores.__doc__ = f"Use {package} with the lowest and the highest core that it allows; refuse those just outside."
    tags = [short, "full"]
    cases = nox.parametrize("device", DEVICES)(tests)
    nox.session(name=f"tests-{short}", python=PYTHONS, tags=[*tags, "tests"])(cases)
    nox.session(name=f"tests-lowest-{short}", python=PYTHONS[0], tags=[*tags, "lowest"])(lowest)
    nox.session(name=f"mypy-{short}", tags=[*tags, "mypy"])(mypy)
    nox.session(name=f"wheel-{short}", venv_backend="none", tags=[*tags, "wheel"])(wheel)
    nox.session(name=f"publish-{short}", tags=[*tags, "publish"])(publish)
    if short != "core":
        nox.session(name=f"cores-{short}", venv_backend="none", tags=[*tags, "cores"])(cores)


for _short, _package in PACKAGES.items():
    add_package(_short, _package)


@nox.session(name="tests-together", python=PYTHONS, tags=["tests", "full"])
def tests_together(session: nox.Session) -> None:
    """Test what needs several packages at once: every option in every combination of family and task, the commands."""
    sync(session, "--group=test")
    session.run("pytest", "tests", "README.md", "docs", "--markdown-docs", *PARALLEL, *session.posargs, env=TEST_ENV)


@nox.session(name="new-user", tags=["publish", "full"])
def new_user(session: nox.Session) -> None:
    """Do what docs/add_a_family.md says, with wheels and an index: from a name to a package installed elsewhere."""
    sync(session, "--only-group=publish")
    session.run("python", ".ci/new_user.py")


@nox.session(tags=["full"])
def lint(session: nox.Session) -> None:
    """Check style, formatting, the layers of imports, and that the lock fits the packages."""
    sync(session, "--only-group=lint")
    session.run("uv", "lock", "--check", "--quiet", external=True)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    sources = os.pathsep.join(str(path) for path in sorted(ROOT.glob("packages/*/src")))
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": sources})


@nox.session(tags=["full"])
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; a broken link is an error. Not --quiet: --strict counts what is said."""
    sync(session, "--only-group=docs")
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(tags=["full"])
def workflows(session: nox.Session) -> None:
    """Check the workflows of GitHub Actions: their schema, and what an attacker could do with them."""
    sync(session, "--only-group=workflows")
    places = (".github/workflows/*.yml", "packages/xlm-core/src/xlm/scaffold/*/.github/workflows/*.yml")
    files = [str(path) for place in places for path in sorted(ROOT.glob(place))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    session.run("check-jsonschema", "--builtin-schema", "vendor.dependabot", ".github/dependabot.yml")
    session.run("zizmor", "--offline", "--quiet", "--persona=pedantic", ".github/dependabot.yml", *files)


nox.options.sessions = [
    "lint",
    "workflows",
    "docs",
    *(f"mypy-{short}" for short in PACKAGES),
    *(f"tests-{short}-{python}(cpu)" for python in USUAL_PYTHONS for short in PACKAGES),
    *(f"tests-together-{python}" for python in USUAL_PYTHONS),
    "wheel-core",
    "publish-mdlm",  # the quickstart's family stands for the others, at a minute each
    "cores-mdlm",
]
