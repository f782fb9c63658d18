from __future__ import annotations

import json
import os

import pytest
from xlm import cli


@pytest.fixture
def xlm(toy, capsys):
    """Run a command as the command line does; fails with what it printed when it does not end as expected."""

    def run(*words, code=0):
        ended = cli.main(list(words))
        out, err = capsys.readouterr()
        assert ended == code, err[-3000:]
        return (out + err) if code else out

    return run


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(_trained, xlm, toy):
    """A finished run of three steps; trained once, only to be read."""
    run = _trained / "run"
    if not (run / "results.json").exists():
        xlm("train", "experiment=toy_short", "harness.ema_decay=0.9", f"run_dir={run}")
    return run


@pytest.fixture
def results():
    def read(folder):
        return json.loads((folder / "results.json").read_text())

    return read


@pytest.fixture(autouse=True)
def no_jobs(monkeypatch):
    """Neither a cluster's job nor the rank of another test."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
