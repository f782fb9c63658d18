from __future__ import annotations

from pathlib import Path

import pytest

TEXT = "the quick brown fox jumps over the lazy dog while seven wizards box a jolly judge"


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred paragraphs of words in a changing order."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    words = TEXT.split()
    paragraphs = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 40)) for i in range(200)]
    path.write_text("\n\n".join(paragraphs))
    return path
