from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from xlm.data.managers import DatasetManager
from xlm.data.sources import Rows, TextFiles
from xlm.data.tokenizers import ByteTokenizer, CharTokenizer, WordTokenizer
from xlm.errors import UserError

BYTES = ByteTokenizer().build(())
PAIRS = [{"prompt": "2+2=", "target": "4"}, {"prompt": "", "target": "é"}]
GRID = [{"text": "1234", "fixed": "1001", "prompt": "1..4", "target": "1234"}]


def manager(rows: Any, *roles: str, kind: str = "loss", **options: Any) -> DatasetManager:
    source = rows if hasattr(rows, "rows") else Rows(rows=rows)
    found = DatasetManager(source=source, kind=kind, roles=roles, **options)
    found.split, found.name = "val", "cats"
    return found


@pytest.fixture
def build(tmp_path):
    def build(found: DatasetManager, family: tuple[str, ...] | None = None, tokenizer: Any = BYTES) -> DatasetManager:
        found.resolve(family or found.roles, "window")
        lengths = {"max_length": 8, "max_prompt_length": 5, "max_target_length": 5}
        found.build(tokenizer, vocab_size=len(tokenizer), cache_dir=tmp_path, **lengths)
        return found

    return build


def test_the_first_role_that_the_family_has_is_taken(build):
    assert build(manager(GRID, "infill", "seq2seq"), ("lm", "seq2seq", "infill")).role == "infill"
    assert build(manager(GRID, "infill", "seq2seq"), ("lm", "seq2seq")).role == "seq2seq"


def test_no_common_role_is_an_error_that_names_both():
    with pytest.raises(UserError, match=r"roles infill, seq2seq; the family has lm in .*managers\.val\.cats\.roles"):
        manager(GRID, "infill", "seq2seq").resolve(["lm"], "window")


@pytest.mark.parametrize(
    ("role", "given", "expected"),
    [
        ("lm", None, "window"),
        ("lm", "open", "open"),
        ("seq2seq", None, "open"),
        ("infill", None, "window"),
        ("infill_prediction", "open", "window"),
        ("unconditional", None, "open"),
    ],
)
def test_the_event_space_follows_from_the_role_and_for_lm_from_the_configuration(role, given, expected):
    kind = "loss" if role in ("lm", "seq2seq", "infill") else "prediction"
    found = manager(GRID, role, kind=kind, event_space=given)
    found.resolve([role], "window")
    assert found.event_space == expected


def test_an_infill_row_has_its_text_as_target(build):
    found = build(manager(GRID, "infill_prediction", kind="prediction"))
    assert found.examples([0]) == [{**GRID[0], "index": 0, "target": "1234"}]
    assert found.n_bytes([0]).tolist() == [2]


def test_a_pair_keeps_its_text_and_counts_the_bytes_of_its_target(build):
    found = build(manager(PAIRS, "seq2seq"))
    assert found.examples([1, 0]) == [{**PAIRS[1], "index": 1}, {**PAIRS[0], "index": 0}]
    assert found.n_bytes([0, 1]).tolist() == [1, 2]


def test_a_packed_window_shows_what_it_holds(build):
    found = build(manager([{"text": "ab"}, {"text": "defghi"}], "lm"))
    assert found.examples([0]) == [{"index": 0, "text": "ab[EOS]defgh"}]


def test_bytes_are_unknown_where_tokens_lose_some_of_the_text(build):
    rows = [{"text": "a b c d e f g h"}]
    assert build(manager(rows, "lm"), tokenizer=WordTokenizer().build(["a b c d e f g h"])).n_bytes([0]) is None
    assert build(manager(rows, "lm"), tokenizer=CharTokenizer().build(["a b"])).n_bytes([0]) is None
    assert build(manager(rows, "lm"), tokenizer=CharTokenizer().build(["a b c d e f g h"])).n_bytes([0]).tolist() == [8]


def test_a_limit_keeps_the_first_rows(build):
    assert len(build(manager(PAIRS, "seq2seq", limit=1))) == 1
    assert len(build(manager(PAIRS, "seq2seq", limit=7))) == 2


def test_rows_may_come_as_a_data_set(build):
    class Given:
        def rows(self) -> Dataset:
            return Dataset.from_list(PAIRS)

    assert build(manager(Given(), "seq2seq")).examples([1])[0]["target"] == "é"


def test_rows_made_before_are_found_without_asking_the_source(build, monkeypatch):
    before = build(manager(PAIRS, "seq2seq"))
    monkeypatch.setattr(Rows, "rows", lambda self: pytest.fail("asked the source"))
    again = build(manager(PAIRS, "seq2seq"))
    assert again.examples([0]) == before.examples([0])
    assert again.report == before.report != {}


@pytest.mark.parametrize(
    "other",
    [
        lambda build: build(manager(PAIRS[:1], "seq2seq")),
        lambda build: build(manager(PAIRS, "seq2seq", on_too_long="truncate")),
        lambda build: build(manager(PAIRS, "seq2seq"), tokenizer=CharTokenizer().build(["2+=4é"])),
        lambda build: build(manager(PAIRS, "seq2seq_prediction", kind="prediction")),
    ],
)
def test_other_data_options_or_tokenizers_have_rows_of_their_own(build, other, tmp_path):
    build(manager(PAIRS, "seq2seq"))
    other(build)
    assert len(list((tmp_path / "datasets").glob("*/rows.arrow"))) == 2


def test_a_truncated_file_of_rows_is_made_again(build, tmp_path):
    build(manager(PAIRS, "seq2seq"))
    [file] = (tmp_path / "datasets").glob("*/rows.arrow")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert len(build(manager(PAIRS, "seq2seq"))) == 2
    assert file.stat().st_size == len(content)


@pytest.mark.parametrize("rows", [[], [{"text": ""}], [{"text": "short"}]])
def test_a_data_set_without_rows_is_named(build, rows):
    with pytest.raises(UserError, match=r"the data set val\.cats is empty: .*dataset_managers\.val\.cats"):
        build(manager(rows, "lm"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "answer": "b"}], "no column 'target' .*prompt, answer"),
        (
            [{"prompt": "a", "target": None}, {"prompt": "a", "target": "b"}],
            "1 nulls instead of text in column 'target'",
        ),
        ([{"prompt": "a", "target": 4}], "int64 instead of text in column 'target'"),
        ([{"prompt": "a", "target": "x\ud800"}], "rows of val.cats are no text"),
        ([{"prompt": "a", "target": "b"}, {"prompt": 3, "target": "b"}], "rows of val.cats are no text"),
    ],
)
def test_a_column_that_is_missing_or_no_text_is_named(build, rows, message):
    with pytest.raises(UserError, match=message):
        build(manager(rows, "seq2seq"))


def test_a_length_that_the_role_needs_is_asked_for(tmp_path):
    found = manager(PAIRS, "seq2seq")
    found.resolve(["seq2seq"], "window")
    with pytest.raises(UserError, match=r"datamodule\.max_target_length \(null\)"):
        found.build(
            BYTES, vocab_size=260, max_length=9, max_prompt_length=4, max_target_length=None, cache_dir=tmp_path
        )


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"roles": []}, "roles"),
        ({"roles": ["lm", "unconditional"]}, "roles"),
        ({"roles": ["lm"], "kind": "prediction"}, "roles"),
        ({"roles": ["seq2seq", "lm"], "on_too_long": "split"}, "on_too_long"),
        ({"roles": ["lm"], "limit": 0}, "limit"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(options, key):
    with pytest.raises(UserError, match=rf"dataset_manager\.{key}"):
        DatasetManager(**{"source": Rows(rows=[]), "kind": "loss", **options})


def test_texts_for_a_tokenizer_are_those_of_every_view():
    assert sorted(manager(GRID, "infill").texts()) == ["1..4", "1234", "1234"]


def test_what_was_counted_is_reported(build, tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree")
    report = build(manager(TextFiles(path=str(tmp_path / "a.txt")), "lm")).report
    assert report == {
        "rows": 1,
        "documents": 3,
        "tokens": 11,
        "bytes": 11,
        "dropped_tokens": 6,
        "dropped_bytes": 5,
    }
