"""check, prepare_data and info."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from torch import tensor
from xlm.commands import info
from xlm.commands.check import _decoded
from xlm.commands.tables import show_results, visible
from xlm.config import search
from xlm.testing.factories import tiny_tokenizer

TOY = ("model_type=toy", "datamodule=toy_pairs")


def test_check_shows_a_decoded_batch_and_takes_one_step(xlm, toy):
    out = xlm("check", *TOY)
    assert "input_ids" in out
    assert "[BOS]ddab" in out
    assert "[BOS]ddabc" not in out  # the last token is predicted, not read
    assert "gradient norm" in out
    assert [path.name for path in toy.iterdir()] == []


def test_hidden_tokens_are_dots_in_a_check_and_padding_is_not_shown():
    tokenizer = tiny_tokenizer()
    ids = tensor([[tokenizer.bos_token_id, 4, tokenizer.mask_token_id, 5], [4, *[tokenizer.pad_token_id] * 3]])
    (_, _, first), (_, _, second) = _decoded({"input_ids": ids, "n_tokens": ids[:, 0]}, tokenizer)
    letters = [tokenizer.decode([id_]) for id_ in (4, 5)]
    assert first == f"{tokenizer.bos_token}{letters[0]}·{letters[1]}"
    assert second == letters[0]


def test_a_check_puts_brackets_round_what_is_to_be_predicted_and_not_round_inputs():
    tokenizer = tiny_tokenizer()
    ids = tensor([[4, 5, tokenizer.mask_token_id, 6, tokenizer.pad_token_id]])
    predicted = tensor([[False, True, True, False, False]])
    rows = _decoded({"input_ids": ids, "target_ids": ids, "n_tokens": ids[:, 0], "predicted": predicted}, tokenizer)
    a, b, c = (tokenizer.decode([id_]) for id_ in (4, 5, 6))
    assert rows == [[0, "input_ids", f"{a}{b}·{c}"], [0, "target_ids", f"{a}⟦{b}·⟧{c}"]]


def test_a_check_shows_a_batch_of_every_role(xlm, toy):
    out = xlm("check", *TOY)
    assert "training" in out.splitlines()
    assert "test.answers, role seq2seq_prediction" in out


def test_check_refuses_a_mistake(xlm, toy):
    assert "must lie in [0, 1)" in xlm("check", *TOY, "model.dropout=3", code=2)


def test_a_first_step_that_is_not_finite_fails_the_check(xlm, toy):
    assert "the first step is not finite" in xlm(
        "check", *TOY, "loss.scale=1", "loss._target_=xlm_toy.parts.NaNLoss", code=1
    )


def test_prepare_data_says_what_it_made(xlm, toy):
    out = xlm("prepare_data", *TOY)
    assert "tokenizer: 9 ids" in out  # a, b, c, d, unknown, and four control tokens
    for name in ("train.pairs", "val.pairs", "test.pairs", "test.answers"):
        assert name in out
    assert str(toy.parent / "cache") in out


def test_info_shows_who_can_be_trained_on_what(xlm, toy):
    out = xlm("info")
    assert "toy" in out
    assert "(being written)" in out
    line = next(line for line in out.splitlines() if "sudoku_4x4" in line)
    assert "seq2seq" in line
    assert "torch" in out


def test_the_matrix_has_the_first_role_that_a_family_has():
    assert info.view([["infill", "seq2seq"]], ["lm", "seq2seq"]) == "seq2seq"
    assert info.view([["infill", "seq2seq"]], ["infill", "seq2seq"]) == "infill"
    assert info.view([["infill"], ["lm"]], ["lm"]) == ""
    assert info.view([], ["lm"]) == ""


def test_roles_are_read_through_the_defaults_of_options(toy):
    assert info.roles_of_task("sudoku_4x4", search.options()) == [["infill", "seq2seq"]]
    assert info.roles_of_task("stdlib", search.options()) == [["lm"]]


def test_control_characters_become_visible():
    assert visible("a\x1b[2Jb\r\n\tc\u202ed") == "a\\x1b[2Jb\\r\n\tc\\u202ed"


def test_a_monte_carlo_error_is_shown_where_something_was_drawn():
    exact, drawn = {"nats_per_token": 1.0, "mc_se": None}, {"nats_per_token": 2.0, "mc_se": 0.5}
    for results, shown in (({"test.a": exact}, False), ({"test.a": exact, "test.b": drawn}, True)):
        console = Console(file=StringIO(), width=80)
        show_results(results, console)
        assert ("mc_se" in console.file.getvalue()) is shown


def test_a_number_that_has_no_value_is_told_from_one_that_was_not_asked_for():
    console = Console(file=StringIO(), width=80)
    space = {"event_space": "open"}
    show_results({"test.a": {**space, "bits_per_byte": None}, "test.b": {**space, "loss": 1.0}}, console)
    cells = {line.split("│")[1].strip(): line for line in console.file.getvalue().splitlines() if "│" in line}
    assert [cell.strip() for cell in cells["bits_per_byte"].split("│")[2:4]] == ["n/a", ""]
    assert [cell.strip() for cell in cells["loss"].split("│")[2:4]] == ["", "1"]


def test_a_number_with_parts_has_a_table_of_its_own():
    console = Console(file=StringIO(), width=80)
    show_results({"val.a": {"loss": 1.0, "by_rate": {"0.0-0.1": 2.5}}, "val.b": {"by_rate": {"0.9-1.0": 3.5}}}, console)
    before, _, after = console.file.getvalue().partition("by_rate")
    assert "loss" in before
    assert [line.split("│")[1:4] for line in after.splitlines() if "│" in line] == [
        [" 0.0-0.1 ", " 2.5   ", "       "],
        [" 0.9-1.0 ", "       ", " 3.5   "],
    ]
