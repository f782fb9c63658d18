from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from xlm.data.datamodule import DataModule
from xlm.data.managers import DatasetManager
from xlm.data.tables import Hub, TableFiles, Template
from xlm.data.tokenizers import ByteTokenizer
from xlm.errors import UserError

PAIRS = {"prompt": "{q}", "target": "{a}"}


@pytest.fixture
def file(tmp_path: Path):
    def write(content: str, name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode())
        return str(path)

    return write


def parquet_file(path: Path, **columns: list) -> str:
    parquet.write_table(pa.table(columns), path)
    return str(path)


def test_a_template_joins_columns_text_and_whole_numbers_with_what_stands_between():
    template = Template("{{{n}}} {my title}: {body}!", key="text")
    assert template.columns == ["n", "my title", "body"]
    assert template.fill({"n": 7, "my title": "{x}", "body": "", "more": None}, "row 1") == "{7} {x}: !"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("text", r'names no column in source\.prompt \(text\); fix: name one, as in "\{text\}"'),
        ("a {b", "is no template"),
        ("{}", "more or less than a name"),
        ("{a:>3}", "more or less than a name"),
        ("{a!r}", "more or less than a name"),
    ],
)
def test_a_template_that_says_nothing_or_computes_is_refused(template, message):
    with pytest.raises(UserError, match=message):
        Template(template, key="prompt")


def test_a_template_reaches_no_attribute_and_no_item():
    for template in ("{a.__class__}", "{a[0]}"):
        with pytest.raises(UserError, match="has no column"):
            Template(template, key="text").fill({"a": "x"}, "row 1")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": None}, "has null instead of text in column 'text' in .*line 2"),
        ({"text": 0.5}, "has float instead of text"),
        ({"text": True}, "has bool instead of text"),
        ({"text": ["x"]}, "has list instead of text"),
        ({"body": "x", "id": "y"}, "has no column 'text'.*body, id"),
    ],
)
def test_a_row_without_its_text_is_named(file, row, message):
    with pytest.raises(UserError, match=message):
        TableFiles(path=file('{"text": "fine"}\n' + json.dumps(row), "a.jsonl")).rows()


def test_json_lines_become_texts_or_pairs(file):
    path = file('{"q": "2+2=", "a": 4}\r\n\n{"a": "\\u00e9", "q": "\u2028"}\n', "a.jsonl")
    assert TableFiles(path=path, **PAIRS).rows() == [
        {"prompt": "2+2=", "target": "4"},
        {"prompt": "\u2028", "target": "é"},
    ]
    assert TableFiles(path=path, text="{q}{a}").rows()[0] == {"text": "2+2=4"}
    for line, message in [
        ('{"text": "x"', "is no JSON .*line 1"),
        ('["x"]', "is no JSON object"),
        ("[" * 10**5, "is no JSON"),
    ]:
        with pytest.raises(UserError, match=message):
            TableFiles(path=file(line, "b.jsonl")).rows()


def test_csv_values_may_hold_commas_quotes_line_ends_and_the_word_null(file):
    path = file('q,a\r\n"1,\r\n""2""",null\r\nx,\r\n', "a.csv")
    assert TableFiles(path=path, **PAIRS).rows() == [
        {"prompt": '1,\r\n"2"', "target": "null"},
        {"prompt": "x", "target": ""},
    ]
    assert TableFiles(path=file("q\ta\n1,2\t3\n", "a.tsv"), **PAIRS).rows() == [{"prompt": "1,2", "target": "3"}]


def test_csv_rows_of_another_width_or_with_open_quotes_are_named(file):
    with pytest.raises(UserError, match=r"has null instead of text in column 'a' in .*line 3"):
        TableFiles(path=file("q,a\n1,2\n3\n", "a.csv"), **PAIRS).rows()
    with pytest.raises(UserError, match=r"more values than the 2 columns .*line 2"):
        TableFiles(path=file("q,a\n1,2,3\n", "b.csv"), **PAIRS).rows()
    with pytest.raises(UserError, match="is no CSV"):
        TableFiles(path=file('q,a\n1,"2\n', "c.csv"), **PAIRS).rows()
    with pytest.raises(UserError, match=r"is no CSV .*line 3"):
        TableFiles(path=file('q,a\n1,2\n1,"2"x\n', "d.csv"), **PAIRS).rows()


def test_csv_takes_texts_longer_than_pythons_limit(file):
    assert len(TableFiles(path=file("text\n" + "x" * 200_000, "a.csv")).rows()[0]["text"]) == 200_000


def test_parquet_reads_the_columns_that_are_asked_for_and_names_those_that_are_there(tmp_path):
    path = parquet_file(tmp_path / "a.parquet", q=["x", "y"], a=[1, 2], picture=[b"1", b"2"])
    assert TableFiles(path=path, **PAIRS).rows() == [{"prompt": "x", "target": "1"}, {"prompt": "y", "target": "2"}]
    with pytest.raises(UserError, match=r"has no column 'text'.*q, a, picture"):
        TableFiles(path=path).rows()
    with pytest.raises(UserError, match=r"has null instead of text in column 'q' in .*row 1"):
        TableFiles(path=parquet_file(tmp_path / "b.parquet", q=["x", None]), text="{q}").rows()
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:100])
    with pytest.raises(UserError, match="is no Parquet file"):
        TableFiles(path=str(tmp_path / "c.parquet"), text="{q}").rows()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"bytes", "bytes"),
        (datetime(2026, 1, 1), "datetime"),
        (Decimal("1.5"), "Decimal"),
        ({"a": "x"}, "dict"),
        (["x"], "list"),
        (0.5, "float"),
        (True, "bool"),
    ],
)
def test_a_column_of_parquet_that_is_no_text_is_named_with_its_type(tmp_path, value, found):
    path = parquet_file(tmp_path / "a.parquet", q=["x", "y"], a=[value, value])
    with pytest.raises(UserError, match=rf"has {found} instead of text in column 'a' in .*row 0"):
        TableFiles(path=path, **PAIRS).rows()


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_is_renamed_in_a_later_file_is_named_with_the_file_and_its_columns(tmp_path, ending):
    for name, column in (("a", "text"), ("b", "body")):
        path = tmp_path / f"{name}{ending}"
        if ending == ".parquet":
            parquet_file(path, **{column: ["x"]})
        else:
            path.write_text(f"{column}\nx\n" if ending == ".csv" else json.dumps({column: "x"}))
    with pytest.raises(UserError, match=rf"has no column 'text' in .*b\{ending}.*columns: body"):
        TableFiles(path=str(tmp_path)).rows()


@pytest.mark.parametrize("content", ["", "\n", "text\n", "\ufefftext\r\n"])
def test_a_table_without_rows_or_without_anything_is_refused(file, content):
    with pytest.raises(UserError, match="holds no rows"):
        TableFiles(path=file(content, "a.csv")).rows()


def test_a_byte_order_mark_is_not_part_of_the_first_column_and_other_encodings_are_named(file, tmp_path):
    assert TableFiles(path=file("\ufefftext\nx\n", "a.csv")).rows() == [{"text": "x"}]
    (tmp_path / "b.csv").write_bytes("text\né\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8: byte 0xe9 at offset 5 in .*b\.csv"):
        TableFiles(path=str(tmp_path / "b.csv")).rows()


@pytest.mark.parametrize("split", ["val", "test"])
def test_too_few_rows_leave_a_split_empty_and_the_data_set_is_named(file, tmp_path, split):
    source = TableFiles(path=file('{"text": "one"}\n{"text": "two"}', "a.jsonl"), split=split)
    assert source.rows() == []
    data = DataModule(
        dataset_managers={split: {"texts": DatasetManager(source=source, kind="loss", roles=["lm"])}},
        global_batch_size=1,
        max_length=4,
        event_space="open",
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare(ByteTokenizer())
    with pytest.raises(UserError, match=rf"the data set {split}\.texts is empty"):
        data.bind({"lm": lambda: None})


def test_a_folder_gives_its_files_of_that_kind_in_the_order_of_their_names(file, tmp_path):
    for name in ("b", "a"):
        file(f'{{"text": "{name}"}}', f"{name}.jsonl")
    file("no rows", "readme.md")
    assert [row["text"] for row in TableFiles(path=str(tmp_path)).rows()] == ["a", "b"]
    assert [row["text"] for row in TableFiles(path=str(tmp_path), pattern="b*").rows()] == ["b"]


def test_rows_are_split_by_their_content(file):
    path = file("\n".join(f'{{"text": "{i}"}}' for i in range(40)), "a.jsonl")
    parts = [TableFiles(path=path, split=split, val_fraction=0.25).rows() for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [28, 10, 2]


def test_a_file_without_rows_and_columns_that_exclude_each_other_are_refused(file):
    with pytest.raises(UserError, match="holds no rows"):
        TableFiles(path=file("\n", "a.jsonl")).rows()
    with pytest.raises(UserError, match=r"excludes source\.prompt"):
        TableFiles(path="x", text="{text}", prompt="{q}")


def test_a_fingerprint_names_content_ending_and_templates_but_not_the_place(file):
    def fingerprint(path: str, text: str = "{a}") -> str:
        return TableFiles(path=path, text=text).fingerprint()

    first = fingerprint(file("a,b\n1,2", "1.csv"))
    assert fingerprint(file("a,b\n1,2", "2.csv")) == first
    others = [fingerprint(file("a,b", "3.csv")), fingerprint(file("a,b\n1,2", "1.tsv"))]
    assert len({first, *others, fingerprint(file("a,b\n1,2", "1.csv"), text="{b}")}) == 4


def test_a_file_of_another_kind_is_refused_with_the_kinds_that_there_are(file):
    with pytest.raises(UserError, match=r"is no table: its ending must be one of \.jsonl, \.csv, \.tsv, \.parquet"):
        TableFiles(path=file("x", "a.txt")).rows()


@pytest.fixture
def repository(file, tmp_path: Path) -> str:
    """A local stand-in: a folder laid out as a repository of the Hub."""
    file("text,n\na,1\nb,2\nc,3\n", "repository/train.csv")
    file("text,n\nd,4\n", "repository/validation.csv")
    return str(tmp_path / "repository")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_data_set_gives_its_split_up_to_the_limit(repository, streaming):
    rows = Hub(name=repository, text="{n} {text}", streaming=streaming, limit=2).rows()
    assert rows == [{"text": "1 a"}, {"text": "2 b"}]
    assert Hub(name=repository, hub_split="validation").rows() == [{"text": "d"}]


def test_streaming_without_an_end_is_refused(repository):
    with pytest.raises(UserError, match=r"needs source\.limit"):
        Hub(name=repository, streaming=True)
    with pytest.raises(UserError, match="must be at least 1"):
        Hub(name=repository, limit=0)


def test_a_hub_data_set_names_missing_columns_and_splits(repository):
    with pytest.raises(UserError, match=r"has no column 'body'.*text, n"):
        Hub(name=repository, text="{body}").rows()
    with pytest.raises(UserError, match=r"no such data set, configuration or split .*hub_split"):
        Hub(name=repository, hub_split="nosuch").rows()


def test_a_hub_that_does_not_answer_is_asked_once_and_then_the_cache(repository, monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub

    asked: list[str] = []

    def no_answer(self: object, name: str, timeout: float) -> None:
        asked.append(name)
        raise ConnectionError

    def cached(path: str, **_: object) -> list[dict[str, str]]:
        assert datasets.config.HF_HUB_OFFLINE
        return [{"text": path}]

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_answer)
    with pytest.raises(UserError, match=r"cannot be reached and nothing is cached .*source\.name \(nobody/nothing\)"):
        Hub(name="nobody/nothing").rows()
    assert asked == ["nobody/nothing"]
    assert not datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(datasets, "load_dataset", cached)
    assert Hub(name="nobody/cached").rows() == [{"text": "nobody/cached"}]


def test_offline_by_choice_the_hub_is_not_asked_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    import datasets
    import huggingface_hub

    def no_question(self: object, name: str, timeout: float) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", no_question)
    with pytest.raises(UserError, match=r"nothing is cached .*source\.name \(nobody/nothing\); fix: connect"):
        Hub(name="nobody/nothing").rows()
    assert huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("damage", ["truncated", "gone", "half written"])
def test_a_damaged_cache_of_the_datasets_library_is_named_with_its_folder(repository, tmp_path, damage):
    Hub(name=repository).rows()
    (arrow,) = (tmp_path / "cache").rglob("*train*.arrow")
    if damage == "truncated":
        arrow.write_bytes(arrow.read_bytes()[:40])
    elif damage == "gone":
        arrow.unlink()
    else:
        (arrow.parent / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"is damaged .*source\.name .*fix: delete the data set's folder in .*cache"):
        Hub(name=repository).rows()
