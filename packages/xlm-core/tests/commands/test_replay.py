"""A row of a file of traces, played in a terminal and into a pipe."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from rich.text import Text
from xlm.commands.replay import Frame, frames, play, shown
from xlm.data.tokenizers import ByteTokenizer, WordTokenizer
from xlm.testing.factories import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PAD, MASK, BOS, EOS, A, B, C = range(7)


def event(step, action, position, token, probability=0.5):
    return {"step": step, "action": action, "position": position, "token": token, "probability": probability}


def row(start, events, **columns):
    return {"ids": [], "prediction": "", "n_calls": 2, "start_ids": start, "trace": events, **columns}


REMASKED = row(
    [A, MASK, MASK],
    [event(0, "reveal", 1, B), event(0, "reveal", 2, C), event(3, "remask", 1, MASK), event(4, "reveal", 1, EOS)],
)


def test_frames_say_what_is_given_hidden_old_new_and_hidden_again():
    states = [(state.step, state.kinds, state.written, state.remasked) for state in frames(REMASKED, MASK)]
    assert states == [
        (None, ["given", "hidden", "hidden"], 0, 0),
        (0, ["given", "new", "new"], 2, 0),
        (3, ["given", "remasked", "old"], 0, 1),
        (4, ["given", "new", "old"], 1, 0),
    ]


def test_a_token_hidden_again_is_hidden_in_the_next_frame():
    events = [event(0, "remask", 0, MASK), event(1, "reveal", 1, B)]
    *_, last = frames(row([A, MASK], events), MASK)
    assert last.kinds == ["hidden", "new"]


def test_inserted_tokens_move_what_is_marked():
    events = [event(0, "insert", 1, B), event(0, "insert", 1, C), event(1, "insert", 1, A)]
    *_, before, last = frames(row([BOS], events), MASK)
    assert (before.ids, before.kinds) == ([BOS, C, B], ["given", "new", "new"])
    assert (last.ids, last.kinds) == ([BOS, A, C, B], ["given", "new", "old", "old"])


def text(tokenizer, ids, kinds=None) -> Text:
    return shown(tokenizer, Frame(0, ids, kinds or ["old"] * len(ids), 0, 0))


def test_each_kind_has_a_style_of_its_own():
    styles = [span.style for span in text(TOKENIZER, [A, MASK, B, MASK], ["given", "hidden", "new", "remasked"]).spans]
    assert len(set(styles)) == 4


def test_control_tokens_have_marks_and_control_characters_are_escaped():
    assert text(TOKENIZER, [BOS, A, MASK, MASK, EOS]).plain == "a··∎"
    tokenizer = ByteTokenizer().build([])
    assert text(tokenizer, [*b"a\x1b[31m", tokenizer.mask_token_id]).plain == "a\\x1b[31m·"


def test_words_keep_their_spaces_whatever_is_marked():
    tokenizer = WordTokenizer().build(["one two"])
    one, two = (tokenizer.convert_tokens_to_ids(word) for word in ("one", "two"))
    ids = [one, tokenizer.mask_token_id, two, one]
    assert text(tokenizer, ids, ["given", "hidden", "new", "old"]).plain == "one · two one"


def test_a_text_that_looks_like_the_mask_token_stays_as_it_is():
    tokenizer = ByteTokenizer().build([])
    assert text(tokenizer, list(b"[MASK]")).plain == "[MASK]"


def played(terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=60, height=20, color_system="standard", _environ={})
    play(REMASKED, TOKENIZER, "row 0 of 1", 0.0, console)
    return out.getvalue()


def test_into_a_pipe_goes_a_line_a_step():
    assert played(terminal=False).splitlines() == [
        "row 0 of 1: 2 network calls; · is hidden, ∎ ends the text",
        "start   +0  -0  a··",
        "    0   +2  -0  abc",
        "    3   +0  -1  a·c",
        "    4   +1  -0  a∎c",
    ]


def test_in_a_terminal_the_text_changes_in_place():
    out = played(terminal=True)
    assert "\x1b[1A" in out  # back to the line above
    assert out.count("step 4 of 4") >= 1
    assert "\x1b[1;30;42mbc" in out  # what is new stands out


def test_line_ends_do_not_break_the_lines_of_a_pipe():
    out, tokenizer = io.StringIO(), ByteTokenizer().build([])
    traced = row([], [event(0, "append", 0, ord("\n")), event(1, "append", 1, ord("\t"))])
    play(traced, tokenizer, "row", 0.0, Console(file=out, width=60))
    assert out.getvalue().splitlines()[-1] == "    1   +1  -0  \\n\\t"


def test_a_generated_file_is_played_by_the_run_that_wrote_it(xlm, toy, trained):
    words = ("predictor=toy_traced", "num_samples=3", "trace=true", "output=o.jsonl", "prompt=ab")
    xlm("generate", f"checkpoint={trained}", *words)
    (toy / "o.jsonl").write_text("\n" + (toy / "o.jsonl").read_text())  # empty lines do not count
    written = json.loads((toy / "o.jsonl").read_text().splitlines()[3])
    title, start, *steps = xlm("replay", "file=o.jsonl", f"checkpoint={trained}", "row=2", "delay=0").splitlines()
    assert title.startswith(f"row 2 of 3: {written['n_calls']} network calls")
    assert start.endswith(" ab")
    assert len(steps) == len(written["ids"])
    assert steps[-1].endswith(f" ab{written['prediction']}")


def test_delays_stand_between_steps_in_a_terminal_only(monkeypatch):
    naps = []
    monkeypatch.setattr("xlm.commands.replay.time.sleep", naps.append)
    for terminal in (True, False):
        play(REMASKED, TOKENIZER, "row", 0.5, Console(file=io.StringIO(), force_terminal=terminal, _environ={}))
    assert naps == [0.5] * 3


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "missing: file, checkpoint; fix: add file=OUT.jsonl checkpoint=RUN"),
        (["file=o.jsonl"], "missing: checkpoint"),
        (["file=nowhere"], "there is no such file in file (nowhere)"),
        (["fiel=o.jsonl"], "did you mean file?"),
        (["row=-1"], "must not be negative in row (-1)"),
        (["row=10"], "there is no such row, o.jsonl has 10 in row (10); fix: rows are counted from 0"),
        (["row=one"], "expected int, got 'one' in row"),
        (["delay=-0.1"], "must be 0 or more in delay (-0.1)"),
        (["delay=nan"], "delay"),
        (["checkpoint=nowhere"], "does not exist in checkpoint (nowhere)"),
        (["file=empty.jsonl"], "empty.jsonl is empty in row (0)"),
        (["row=1"], "no JSON: Expecting value: line 1 column 11 (char 10) in o.jsonl:2; fix: generate the file anew"),
        (["row=2"], "does not say how the text came about in o.jsonl:3; fix: generate it with trace=true"),
        (["row=3"], "does not say how the text came about"),
        (["row=4"], "holds events that do not fit its text in o.jsonl, row 4"),
        (["row=5"], "holds events that do not fit its text"),
        (["row=6"], "holds events that do not fit its text"),
        (["row=7"], "holds events that do not fit its text"),
        (["row=8"], "has another tokenizer than the run that generated the file in checkpoint"),
        (["row=9"], "has another tokenizer"),
    ],
)
def test_a_mistake_is_one_line(xlm, toy, trained, words, error):
    rows = [
        json.dumps(row([], [event(0, "append", 0, 1)])),
        '{"trace": ',
        json.dumps({"prediction": "a", "ids": [1]}),
        "[1]",
        json.dumps(row([1], [event(0, "reveal", 1, 1)])),  # there is no second token
        json.dumps(row([1], [event(0, "rewrite", 0, 1)])),
        json.dumps(row([1], [event(1, "reveal", 0, 1), event(0, "reveal", 0, 1)])),  # steps do not go back
        json.dumps(row([1], [{"step": 0}])),
        json.dumps(row([1], [event(0, "reveal", 0, 999)])),  # the run knows 9 tokens
        json.dumps(row([1], [event(0, "append", 1, 2)], ids=[2], prediction="x")),
    ]
    (toy / "o.jsonl").write_text("\n".join(rows))
    (toy / "empty.jsonl").write_text("")
    given = {word.partition("=")[0] for word in words}
    default = {"file": "o.jsonl", "checkpoint": str(trained)} if words and words != ["file=o.jsonl"] else {}
    out = xlm("replay", *words, *(f"{key}={value}" for key, value in default.items() if key not in given), code=2)
    assert error in out
    assert len(out.splitlines()) == 1
