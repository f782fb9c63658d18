from __future__ import annotations

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from xlm.data import cache
from xlm.errors import UserError


class Build:
    """Writes a file and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "rows").write_text("content")


def read(folder: Path) -> str:
    return (folder / "rows").read_text()


@pytest.fixture
def build():
    return Build()


def test_a_folder_is_built_once(tmp_path, build):
    assert [cache.kept(tmp_path / "x", build, read) for _ in range(3)] == ["content"] * 3
    assert build.times == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "rows").write_text("cont"),
        lambda folder: (folder / "rows").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"rows": '),
    ],
)
def test_a_damaged_folder_is_rebuilt(tmp_path, build, damage, caplog):
    cache.kept(tmp_path / "x", build, read)
    damage(tmp_path / "x")
    assert cache.kept(tmp_path / "x", build, read) == "content"
    assert build.times == 2
    assert "rebuilt" in caplog.text


def test_a_folder_that_another_version_wrote_and_this_one_cannot_read_is_rebuilt(tmp_path, build):
    def old(folder: Path) -> None:
        (folder / "lines").write_text("content")

    cache.kept(tmp_path / "x", old, lambda folder: None)
    assert cache.kept(tmp_path / "x", build, read) == "content"


def test_what_a_killed_builder_left_is_removed(tmp_path, build):
    def killed(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept(tmp_path / "x", killed, read)
    assert not (tmp_path / "x").exists()
    cache.kept(tmp_path / "x", build, read)
    assert sorted(os.listdir(tmp_path / "x")) == ["manifest.json", "rows"]
    assert not (tmp_path / "x.tmp").exists()


def test_of_many_builders_at_once_one_builds(tmp_path, build):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.kept(tmp_path / "x", build, read), range(8)))
    assert found == ["content"] * 8
    assert build.times == 1


def test_a_mistake_in_the_data_is_passed_on_and_nothing_is_kept(tmp_path):
    def wrong(folder: Path) -> None:
        raise UserError("wrong", fix="correct it")

    with pytest.raises(UserError, match="wrong"):
        cache.kept(tmp_path / "x", wrong, read)
    assert not (tmp_path / "x").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, build):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"datamodule\.cache_dir .*XLM_CACHE_DIR"):
        cache.kept(tmp_path / "file" / "x", build, read)


def test_the_cache_lies_where_the_configuration_or_else_the_environment_says(monkeypatch):
    monkeypatch.setenv("XLM_CACHE_DIR", "/env")
    assert cache.cache_folder("/config") == Path("/config")
    assert cache.cache_folder(None) == Path("/env")
    monkeypatch.delenv("XLM_CACHE_DIR")
    assert cache.cache_folder(None) == Path.home() / ".cache" / "xlm"


def test_a_key_changes_with_each_part_and_with_the_versions_of_libraries(monkeypatch):
    key = cache.key("a", "b")
    assert key == cache.key("a", "b")
    assert len({key, cache.key("ab"), cache.key("b", "a"), cache.key("a", "c")}) == 4
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    assert cache.key("a", "b") != key


def module(path: Path, text: str):
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


def test_a_fingerprint_changes_with_values_class_and_code(tmp_path):
    code = (
        "class {name}:\n    def __init__(self, n):\n        self.n = n\n    def rows(self):\n        return [{what}]\n"
    )
    first = module(tmp_path / "source_one.py", code.format(name="A", what="self.n"))
    before = cache.fingerprint(first.A(1))
    assert cache.fingerprint(first.A(1)) == before
    assert cache.fingerprint(first.A(2)) != before
    changed = module(tmp_path / "source_one.py", code.format(name="A", what="-self.n").replace("n)", "n )"))
    assert cache.fingerprint(changed.A(1)) != before


def test_a_source_may_name_its_content_itself():
    class Named:
        def __init__(self, content: str) -> None:
            self.content, self.place = content, object()

        def fingerprint(self) -> str:
            return self.content

    assert cache.fingerprint(Named("a")) == cache.fingerprint(Named("a")) != cache.fingerprint(Named("b"))
