from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from xlm import registry
from xlm.config import search


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """The toy family as a package that is being written, in an empty working directory with a cache of its own."""
    monkeypatch.setenv("XLM_MODELS_PATH", str(Path(__file__).parent / "families"))
    monkeypatch.setenv("XLM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("XLM_RUN_DIR", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def site(monkeypatch, tmp_path) -> Iterator[Path]:
    """A folder of ``sys.path`` for packages ``xlm_left`` and ``xlm_right``, which are forgotten afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.delenv("XLM_MODELS_PATH", raising=False)
    registry.forget()
    search._announce.cache_clear()
    yield folder
    for name in [name for name in set(sys.modules) - before if name.startswith(("xlm_left", "xlm_right"))]:
        del sys.modules[name]
    registry.forget()
