"""Publish packages on an index of this machine and use the last from there: `python .ci/publish.py PACKAGE...`.

Everything that a release does but for who allows it. Needs pypiserver.
"""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pypiserver
from wheels import build, install, refusal, run, use

ANYONE = {"UV_PUBLISH_USERNAME": "anyone", "UV_PUBLISH_PASSWORD": "anything"}
UPLOAD = ("uv", "publish", "--quiet", "--trusted-publishing=never", "--publish-url")
INDEX = """
[[tool.uv.index]]
name = "ours"
url = "{url}/simple/"
explicit = true

[tool.uv.sources]
"""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """An index on loopback that keeps what it is given in a folder: its address, and the requests that it answered."""
    requests: list[str] = []

    class Handler(WSGIRequestHandler):
        def log_message(self, format: str, *values: Any) -> None:
            requests.append(format % values)

    app = pypiserver.app(roots=[folder], authenticate=[], password_file=".", disable_fallback=True)
    with make_server("127.0.0.1", 0, app, handler_class=Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()


def main(packages: list[str], folder: Path) -> None:
    """Publish each, and use the last where nothing but the index is known."""
    index = folder / "index"
    index.mkdir()
    with serving(index) as (url, requests):
        wheels = [build(package, folder / "built") for package in packages]
        for wheel in wheels:
            files = sorted(wheel.parent.glob(f"{wheel.name.partition('-py3')[0]}[-.]*"))
            run(*UPLOAD, url, *files, **ANYONE)
        said = refusal(*UPLOAD, url, wheels[-1], **ANYONE)
        if "409 Conflict" not in said:
            sys.exit(said)
        print(f"{wheels[-1].name}: refused a second time")
        sources = "".join(f'{package} = {{ index = "ours" }}\n' for package in packages)
        again = [f"--refresh-package={package}" for package in packages]  # other bytes may have had this address
        python = install(wheels, folder, again, INDEX.format(url=url) + sources)
        missing = [wheel.name for wheel in wheels if not any(f"/{wheel.name} " in line for line in requests)]
        if missing:
            sys.exit(f"installed, but not from the index: {', '.join(missing)}")
    use(python, folder, index, packages[-1])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix=f"{sys.argv[-1]}-") as name:
        main(sys.argv[1:], Path(name))
