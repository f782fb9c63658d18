from __future__ import annotations

from pathlib import Path

import pytest


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
