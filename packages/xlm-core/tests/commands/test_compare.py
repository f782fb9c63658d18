"""Finished runs side by side, from results files that were written by hand."""

from __future__ import annotations

import json
import math

import pytest


def likelihood(nats=1.0, *, space="open", sequences=4, tokens=16, n_bytes=32, **more):
    bits = None if n_bytes is None else nats * tokens / n_bytes / math.log(2)
    return {
        "loss": nats,
        "nats_per_token": nats,
        "nats_per_token_se": 0.125,
        "mc_se": None,
        "perplexity": math.exp(nats),
        "perplexity_se": 0.25,
        "bits_per_byte": bits,
        "bits_per_byte_se": None if bits is None else 0.5,
        "n_tokens": tokens,
        "n_sequences": sequences,
        "kind": "exact",
        "estimator": "chain rule",
        "event_space": space,
        "n_calls": 1.0,
        "weights": "raw",
        "step": 3,
        **more,
    }


def answers(exact=0.5, examples=4):
    return {"exact_match": exact, "exact_match_se": 0.1, "n_examples": examples, "n_calls": 7.5, "step": 3}


@pytest.fixture
def finished(toy):
    """Write a run of these results."""

    def write(name, *, about=None, **results):
        folder = toy / name
        folder.mkdir(parents=True)
        facts = {"family": "toy", "parameters": 1234567, "tokens": 2500.0, "step": 3, **(about or {})}
        content = {**{key.replace("_", ".", 1): values for key, values in results.items()}, **facts}
        (folder / "results.json").write_text(json.dumps(content))
        return folder

    return write


def cells(out):
    """Rows of all tables, as lists of texts."""
    rows = [line for line in out.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in row.replace("┃", "│").strip("│").split("│")] for row in rows]


def row(out, label):
    (found,) = [row[1:] for row in cells(out) if row[0] == label]
    return found


def test_runs_stand_side_by_side_with_their_numbers_and_errors(xlm, finished):
    finished("a", test_texts=likelihood(1.5))
    drawn = {"kind": "exact", "mc_se": 0.0625, "n_calls": 12.5, "estimator": "any_order"}
    finished("b", test_texts=likelihood(1.25, **drawn), about={"family": "other", "tokens": 1e6})
    out = xlm("compare", "runs=[a, b]")
    assert cells(out)[0] == ["", "a", "b"]
    assert row(out, "family") == ["toy", "other"]
    assert row(out, "parameters") == ["1,234,567"] * 2
    assert row(out, "tokens trained") == ["2,500", "1,000,000"]
    assert row(out, "data set") == ["test.texts"] * 2
    assert row(out, "nats/token") == ["1.5 ± 0.12", "1.25 ± 0.12 (Monte Carlo 0.0625)"]
    assert row(out, "perplexity") == ["4.4817 ± 0.25", "3.4903 ± 0.25"]
    assert row(out, "bits/byte") == ["1.082 ± 0.5", "0.90168 ± 0.5"]
    assert (row(out, "kind"), row(out, "estimator")) == (["exact"] * 2, ["chain rule", "any_order"])
    assert row(out, "network calls a sequence") == ["1", "12.5"]
    assert row(out, "weights") == ["raw, step 3"] * 2
    assert "caution" not in out


def test_every_event_space_has_a_table_of_its_own_and_the_reader_is_told(xlm, finished):
    finished("a", test_texts=likelihood(space="open"))
    finished("b", test_texts=likelihood(space="window"))
    finished("c", test_texts=likelihood(space="window"))
    out = xlm("compare", "runs=[a,b,c]")
    assert [head for head in cells(out) if not head[0] and any(head)] == [["", "a"], ["", "b", "c"]]
    assert out.index("event space: open") < out.index("event space: window")
    assert "caution: test.texts: a and b, c are in the event spaces open and window: their numbers are not" in out


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"sequences": 5}, "4 and 5 sequences): their numbers are not comparable"),
        ({"tokens": 17}, "16 and 17 tokens): bits per byte may be compared, nats per token and perplexity not"),
        ({"n_bytes": 33}, "32 and 33 bytes): their numbers are not comparable"),
    ],
)
def test_numbers_of_other_data_are_in_another_block_and_the_reader_is_told(xlm, finished, other, said):
    finished("a", test_texts=likelihood(1.5))
    finished("b", test_texts=likelihood(1.25, **other))
    out = xlm("compare", "runs=[a,b]")
    blocks = [numbers[1:] for numbers in cells(out) if numbers[0] == "nats/token"]
    assert blocks == [["1.5 ± 0.12", ""], ["", "1.25 ± 0.12"]]
    assert f"caution: test.texts: a and b are of different data ({said}" in out


def test_data_whose_bytes_one_run_does_not_know_are_the_same_where_the_rest_agrees(xlm, finished):
    finished("a", test_texts=likelihood(n_bytes=None))
    finished("b", test_texts=likelihood(nats=2.0))
    out = xlm("compare", "runs=[a,b]")
    assert row(out, "bytes") == ["32", "32"]
    assert row(out, "bits/byte") == ["n/a", "1.4427 ± 0.5"]


def test_different_data_sets_are_different_blocks_without_a_caution(xlm, finished):
    finished("a", test_texts=likelihood(), test_more=likelihood())
    finished("b", test_texts=likelihood())
    out = xlm("compare", "runs=[a,b]")
    assert [names[1:] for names in cells(out) if names[0] == "data set"] == [["test.more", ""], ["test.texts"] * 2]
    assert "caution" not in out


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (("exact", "bound"), "exact (a) and bound (b); a bound is at least the exact value"),
        (("exact", "estimate"), "exact (a) and estimate (b); estimate is no likelihood of the sampler, and not comp"),
        (("pseudo", "bound"), "pseudo (a) and bound (b); a bound is at least the exact value; pseudo is no likelihood"),
        (("bound", "bound"), None),
    ],
)
def test_kinds_that_differ_are_a_caution(xlm, finished, kinds, said):
    for name, kind in zip("ab", kinds, strict=True):
        finished(name, test_texts=likelihood(kind=kind))
    out = xlm("compare", "runs=[a,b]")
    assert (f"caution: test.texts, open: kinds differ: {said}" in out) if said else ("caution" not in out)


def test_predictions_have_a_table_of_their_own(xlm, finished):
    finished("a", test_texts=likelihood(), test_answers=answers(0.5))
    finished("b", test_answers=answers(0.25))
    finished("c", test_answers=answers(0.75, examples=8))
    out = xlm("compare", "runs=[a,b,c]").partition("predictions")[2]
    assert cells(out)[0] == ["", "a", "b", "c"]
    assert [row[1:] for row in cells(out) if row[0] == "exact_match"] == [
        ["0.5 ± 0.1", "0.25 ± 0.1", ""],
        ["", "", "0.75 ± 0.1"],
    ]
    assert "test.answers: a, b and c are of different data (4 and 8 examples)" in out
    assert next(row[1:] for row in cells(out) if row[0] == "network calls an example") == ["7.5", "7.5", ""]


def test_an_evaluation_knows_the_training_of_its_run(xlm, toy, finished):
    run = finished("run", test_texts=likelihood(step=3))
    about = {"checkpoint": "run", "tokens": None, "parameters": None, "family": None}
    for name, step in {"last": 3, "early": 1}.items():
        folder = finished(f"run/eval/{name}", test_texts=likelihood(step=step), about={"checkpoint": str(run)})
        content = json.loads((folder / "results.json").read_text())
        written = {key: value for key, value in content.items() if key not in about or key == "checkpoint"}
        (folder / "results.json").write_text(json.dumps(written))
        (folder / "config.yaml").write_text("family: toy")
    out = xlm("compare", "runs=[run/eval/last,run/eval/early]")
    assert row(out, "family") == ["toy", "toy"]
    assert row(out, "parameters") == ["1,234,567"] * 2
    assert row(out, "tokens trained") == ["2,500", "n/a"]  # those of an early checkpoint are not known


def test_infinite_numbers_are_shown(xlm, finished):
    infinite = {"nats_per_token": "inf", "nats_per_token_se": None, "perplexity": "inf", "perplexity_se": None}
    finished("a", test_texts=likelihood(**infinite, bits_per_byte="inf", bits_per_byte_se=None))
    assert row(xlm("compare", "runs=[a]"), "nats/token") == ["inf"]


def test_the_split_can_be_chosen(xlm, finished):
    finished("a", test_texts=likelihood(1.0), val_texts=likelihood(2.0))
    assert row(xlm("compare", "runs=[a]", "split=val"), "data set") == ["val.texts"]


def test_a_file_is_written_where_asked_and_only_there(xlm, toy, finished):
    finished("a", test_texts=likelihood(1.5), test_answers=answers())
    finished("b", test_texts=likelihood(1.25, kind="bound"))
    xlm("compare", "runs=[a,b]")
    assert sorted(path.name for path in toy.iterdir()) == ["a", "b"]
    assert xlm("compare", "runs=[a,b]", "output=c.json").splitlines()[-1] == "c.json"
    written = json.loads((toy / "c.json").read_text())
    assert written["runs"]["b"] == {"path": str(toy / "b"), "family": "toy", "parameters": 1234567, "tokens": 2500.0}
    texts, predictions = written["blocks"]
    assert texts["values"]["b"]["nats_per_token"] == 1.25
    assert (texts["event_space"], texts["size"]) == ("open", {"sequences": 4, "tokens": 16, "bytes": 32})
    assert (predictions["event_space"], list(predictions["values"])) == (None, ["a"])
    assert len(written["caveats"]) == 1


def test_paths_are_taken_literally(xlm, finished):
    finished("it's (a) run=1, ${really}", test_texts=likelihood(1.5))
    finished("sub/b", test_texts=likelihood(1.25))
    out = xlm("compare", 'runs=["it\'s (a) run=1, ${really}",sub/b/results.json]')
    assert cells(out)[0] == ["", "it's (a) run=1, ${really}", "b"]


def test_runs_of_the_same_name_are_told_apart(xlm, finished):
    for folder in ("one/run", "two/run"):
        finished(folder, test_texts=likelihood())
    assert cells(xlm("compare", "runs=[one/run,two/run]"))[0] == ["", "one/run", "two/run"]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "missing: runs; fix: add runs=[RUN1,RUN2]"),
        (["runs=[]"], "missing: runs"),
        (["runs=[a,nowhere]"], "there is no such run in runs (nowhere)"),
        (["runs=[a,empty]"], "has no results.json in runs (empty); fix: finish it with"),
        (["runs=[a,a/]"], "is given twice in runs (a"),
        (["runs=[a,a/results.json]"], "is given twice in runs (a"),
        (["runs=[a,broken]"], "cannot be read: "),
        (["runs=[a]", "split=val"], "no run has results of it in split (val); fix: use split=test"),
        (["runs=[a]", "split=train"], "expected Literal['test', 'val'], got 'train' in split"),
        (["runs=[a]", "outptu=x"], "unknown key in outptu (x); fix: did you mean output?"),
        (["runs=[a]", "output=no/such/x.json"], "there is no such folder in output (no/such)"),
    ],
)
def test_a_mistake_is_one_line(xlm, toy, finished, words, error):
    finished("a", test_texts=likelihood())
    (toy / "empty").mkdir()
    (toy / "broken").mkdir()
    (toy / "broken" / "results.json").write_text("{")
    said = xlm("compare", *words, code=2)
    assert error in said
    assert len(said.splitlines()) == 1


def test_a_trained_run_and_its_evaluation_can_be_compared(xlm, toy, trained):
    xlm("eval", f"checkpoint={trained}", "run_dir=again")
    out = xlm("compare", f"runs=[{trained},again]")
    assert row(out.partition("predictions")[0], "family") == ["toy", "toy"]
    assert row(out.partition("predictions")[0], "parameters") == ["288", "288"]
    (nats,) = {*row(out, "nats/token")}
    assert "±" in nats
    assert "caution" not in out
