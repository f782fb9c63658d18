"""Follow docs/add_a_family.md with wheels and an index, and nothing else of this folder. Needs pypiserver."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from publish import serving
from wheels import ROOT, build, run

PAGE = ROOT / "docs" / "add_a_family.md"
EXPORT = ("uv", "export", "--locked", "--quiet", "--all-groups", "--no-emit-workspace", "--no-hashes", "--output-file")


def main(folder: Path) -> None:
    """Be its reader; what was published must have been installed."""
    index, reader = folder / "index", folder / "reader"
    index.mkdir()
    reader.mkdir()
    build("xlm-core", folder / "wheels")
    run(*EXPORT, folder / "locked.txt")
    with serving(index) as (url, requests):
        run(
            *(sys.executable, ROOT / ".ci" / "follow.py", PAGE),
            cwd=reader,
            INDEX=url,
            UV_FIND_LINKS=str(folder / "wheels"),
            UV_CONSTRAINT=str(folder / "locked.txt"),
            XLM_CACHE_DIR=str(folder / "cache"),
            OMP_NUM_THREADS="1",
            HF_HUB_OFFLINE="1",
        )
    if not any("GET /packages/xlm_my_model-" in line for line in requests):
        sys.exit("the package was not installed from the index")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="new-user-") as name:
        main(Path(name))
