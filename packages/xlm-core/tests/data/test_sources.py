from __future__ import annotations

import os
from pathlib import Path

import pytest
from xlm.data.sources import Blank, Rows, StandardLibrary, TextFiles
from xlm.errors import UserError


def texts(source) -> list[str]:
    return [row["text"] for row in source.rows()]


@pytest.fixture
def file(tmp_path):
    def write(content: str | bytes, name: str = "a.txt") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("line", ["one", "two", "  three", "four"]),
        ("paragraph", ["one\r\ntwo", "  three", "four"]),
        ("file", ["one\r\ntwo\r\n\r\n  three\n \t\n\nfour\n"]),
    ],
)
def test_documents_are_lines_paragraphs_or_files(file, document, expected):
    path = file("one\r\ntwo\r\n\r\n  three\n \t\n\nfour\n")
    assert texts(TextFiles(path=path, document=document)) == expected


def test_a_byte_order_mark_is_no_text_and_nul_and_emoji_are(file):
    content = "\0\U0001f600\u2028\x0bx"
    assert texts(TextFiles(path=file(b"\xef\xbb\xbf" + content.encode()), document="line")) == [content]


def test_a_folder_is_read_with_what_lies_below_it_but_not_with_hidden_files(file, tmp_path):
    file("c", "b/c.txt"), file("a", "a.txt"), file("no", ".hidden/x.txt"), file("no", ".DS_Store"), file("b", "a/z.md")
    assert texts(TextFiles(path=str(tmp_path))) == ["a", "b", "c"]
    assert texts(TextFiles(path=str(tmp_path), pattern="*.txt")) == ["a", "c"]


def test_the_order_in_which_a_folder_lists_its_files_does_not_matter(file, tmp_path, monkeypatch):
    for name in "dbca":
        file(name, f"{name}.txt")
    source, listing = TextFiles(path=str(tmp_path)), Path.rglob
    before = (source.rows(), source.fingerprint())
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listing(self, pattern), reverse=True))
    assert (source.rows(), source.fingerprint()) == before
    assert texts(source) == ["a", "b", "c", "d"]


def test_bytes_that_are_not_utf8_are_named_with_file_and_offset(file):
    path = file(b"good\n\xff bad")
    with pytest.raises(UserError, match=rf"byte 0xff at offset 5 in {path}"):
        TextFiles(path=path).rows()


def test_bytes_that_are_not_utf8_can_be_replaced_and_are_counted(file, caplog):
    assert texts(TextFiles(path=file(b"a\xffb"), errors="replace")) == ["a\ufffdb"]
    assert "1 characters replaced" in caplog.text


@pytest.mark.parametrize("content", ["", "\n \n\n", "\ufeff"])
def test_a_file_without_text_is_refused(file, content):
    with pytest.raises(UserError, match="holds no text"):
        TextFiles(path=file(content)).rows()


def test_missing_empty_and_unreadable_places_are_named(file, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no such file or folder"):
        TextFiles(path=str(tmp_path / "nowhere")).rows()
    with pytest.raises(UserError, match=r"holds no file that fits \*"):
        TextFiles(path=str(tmp_path / "empty")).rows()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(file):
    path = file("x")
    os.chmod(path, 0)
    with pytest.raises(UserError, match="Permission denied"):
        TextFiles(path=path).rows()


def test_splits_are_disjoint_cover_everything_and_have_their_sizes(file):
    path = file("\n".join(str(i) for i in range(200)))
    parts = {
        split: texts(TextFiles(path=path, document="line", split=split, val_fraction=0.1, test_fraction=0.2))
        for split in ("train", "val", "test")
    }
    assert {split: len(part) for split, part in parts.items()} == {"train": 140, "val": 20, "test": 40}
    assert sorted(int(text) for part in parts.values() for text in part) == list(range(200))


def test_a_document_keeps_its_split_when_the_order_changes_or_it_is_repeated(file):
    lines = [str(i) for i in range(100)]
    forward = TextFiles(path=file("\n".join(lines), "f"), document="line", split="val")
    backward = TextFiles(path=file("\n".join([*reversed(lines), *lines]), "b"), document="line", split="val")
    assert set(texts(forward)) == set(texts(backward))
    assert len(texts(backward)) == 2 * len(texts(forward))


def test_three_documents_are_enough_for_three_splits(file):
    path = file("a\nb\nc")
    found = [texts(TextFiles(path=path, document="line", split=split)) for split in ("train", "val", "test")]
    assert [len(part) for part in found] == [1, 1, 1]


def test_a_fingerprint_names_content_and_reading_but_not_the_place(file):
    here, there, other = file("ab\ncd", "x/a"), file("ab\ncd", "y/a"), file("ab\nce", "z/a")
    first = TextFiles(path=here).fingerprint()
    assert TextFiles(path=there).fingerprint() == first
    assert TextFiles(path=other).fingerprint() != first
    assert TextFiles(path=here, document="line").fingerprint() != first
    assert TextFiles(path=here, split="val").fingerprint() != first


def test_the_standard_library_is_the_same_twice_within_its_size_and_without_tests():
    source = StandardLibrary(max_bytes=200_000)
    assert source.rows() == StandardLibrary(max_bytes=200_000).rows()
    assert 195_000 < sum(len(text.encode()) for text in texts(source)) <= 200_000
    assert not [path for path in source._files() if {"test", "tests"} & set(path.parts)]
    assert source.fingerprint() != StandardLibrary(max_bytes=100_000).fingerprint()


def test_the_standard_library_without_room_for_a_file_is_refused():
    with pytest.raises(UserError, match=r"source\.max_bytes"):
        StandardLibrary(max_bytes=1).rows()


def test_given_and_blank_rows_are_what_they_say():
    assert Rows(rows=[{"prompt": "a"}]).rows() == [{"prompt": "a"}]
    assert Blank(n=3).rows() == [{"text": ""}] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: TextFiles(path="x", val_fraction=1.5),
        lambda: TextFiles(path="x", val_fraction=0.5, test_fraction=0.5),
        lambda: StandardLibrary(max_bytes=0),
        lambda: Blank(n=0),
    ],
)
def test_values_out_of_range_are_refused_where_they_are_given(make):
    with pytest.raises(UserError, match=r"source\."):
        make()
