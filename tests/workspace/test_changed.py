"""Which sessions .github/changed.py chooses."""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
changed = runpy.run_path(str(ROOT / ".github" / "changed.py"))
NEEDS = {"core": set(), "arlm": {"core"}, "mdlm": {"core"}, "pairs": {"mdlm"}}


def session(name: str, *tags: str, python: str | None = None, device: str | None = None) -> dict:
    return {
        "session": name,
        "tags": [*tags, "full"],
        "python": python,
        "call_spec": {"device": device} if device else {},
    }


SESSIONS = [
    session("tests-core-3.12(cpu)", "core", "tests", python="3.12", device="cpu"),
    session("tests-core-3.12(gpu)", "core", "tests", python="3.12", device="gpu"),
    session("tests-arlm-3.12(cpu)", "arlm", "tests", python="3.12", device="cpu"),
    session("tests-lowest-arlm", "arlm", "lowest", python="3.11"),
    session("wheel-arlm", "arlm", "wheel"),
    session("publish-arlm", "arlm", "publish"),
    session("cores-arlm", "arlm", "cores"),
    session("lint"),
]


@pytest.mark.parametrize(
    ("file", "packages"),
    [
        ("packages/xlm-core/src/xlm/noise.py", {"core", "arlm", "mdlm", "pairs"}),
        ("packages/xlm-mdlm/tests/test_loss.py", {"mdlm", "pairs"}),
        ("packages/xlm-arlm/README.md", {"arlm"}),
        ("uv.lock", {"core", "arlm", "mdlm", "pairs"}),
        (".github/workflows/ci.yml", {"core", "arlm", "mdlm", "pairs"}),
        ("docs/tasks.md", set()),
        ("tests/test_commands.py", set()),
        ("packages/xlm-mdlm-large/src/xlm_mdlm_large/loss.py", set()),
    ],
)
def test_a_change_touches_its_package_and_those_that_need_it(file, packages):
    assert changed["affected"]([file, "README.md"], NEEDS) == packages


def test_sessions_of_other_packages_and_those_of_the_night_are_left_out():
    chosen = changed["chosen"](SESSIONS, NEEDS, {"arlm"})
    assert [entry["session"] for entry in chosen] == ["tests-arlm-3.12(cpu)", "wheel-arlm", "cores-arlm", "lint"]


def test_sessions_of_no_package_always_run():
    assert [entry["session"] for entry in changed["chosen"](SESSIONS, NEEDS, set())] == ["lint"]


def test_everything_runs_at_night():
    assert changed["chosen"](SESSIONS, NEEDS, None) == SESSIONS


def test_a_job_has_the_python_of_its_session_or_the_usual_one():
    assert changed["jobs"](SESSIONS[2:], "cpu", "3.11") == [
        {"session": "tests-arlm-3.12(cpu)", "python": "3.12"},
        {"session": "tests-lowest-arlm", "python": "3.11"},
        {"session": "wheel-arlm", "python": "3.11"},
        {"session": "publish-arlm", "python": "3.11"},
        {"session": "cores-arlm", "python": "3.11"},
        {"session": "lint", "python": "3.11"},
    ]


def test_gpu_sessions_are_jobs_of_their_own():
    assert changed["jobs"](SESSIONS, "gpu", "3.11") == [{"session": "tests-core-3.12(gpu)", "python": "3.12"}]


def test_every_family_of_this_workspace_needs_the_core():
    needs = changed["requirements"](ROOT)
    assert needs.pop("core") == set()
    assert needs
    assert all(needed == {"core"} for needed in needs.values())


def test_files_are_those_since_the_base_and_an_unknown_base_is_told_apart(tmp_path):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "old.py").write_text("a = 1\n" * 20)
    git("add", ".")
    git("commit", "-qm", "one")
    base = git("rev-parse", "HEAD")
    git("mv", "old.py", "new.py")
    git("commit", "-qm", "two")
    files = changed["changed_files"]
    assert files(base, tmp_path) == ["new.py", "old.py"]
    assert files("0" * 40, tmp_path) is None
