from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from xlm.callbacks import Replay
from xlm.errors import UserError
from xlm.tasks.sudoku import Sudoku
from xlm.testing.factories import tiny_tokenizer


class LeftToRight:
    """Reveals the third letter at each of three hidden places."""

    trace = False

    def predict(self, batch):
        assert self.trace
        third = len(tiny_tokenizer()) - 6
        events = [
            {"step": step, "row": 0, "action": "reveal", "position": step, "token": third, "probability": 1.0}
            for step in range(3)
        ]
        return {"trace": events}

    def to_dict(self, batch, preds):
        hidden = [tiny_tokenizer().mask_token_id] * 3
        return [{"index": 7, "start_ids": hidden, "trace": preds["trace"]}]


def shown(source: object) -> str:
    out = io.StringIO()
    tokenizer, predictor = tiny_tokenizer(), LeftToRight()
    manager = SimpleNamespace(full_name="test.toy", source=source)
    replay = Replay(n=1, frames=2, console=Console(file=out, width=100))
    replay._show(SimpleNamespace(predictor=predictor, tokenizer=tokenizer), manager, {})
    assert predictor.trace is False
    return out.getvalue()


def test_the_first_and_the_last_state_are_shown_with_dots_for_hidden_tokens():
    text = shown(object())
    letter = tiny_tokenizer().decode([len(tiny_tokenizer()) - 6])
    assert "test.toy 7" in text
    assert "···" in text
    assert "after 3" in text
    assert letter * 3 in text
    assert "after 1" not in text


def test_a_source_that_can_draw_draws_the_frames():
    assert "<···>" in shown(SimpleNamespace(render=lambda text: f"<{text}>"))


def test_sudoku_draws_whole_grids_only():
    source = Sudoku(split="test", size=4)
    assert "| 1 2 | 3 4 |" in source.render("12343.12.1434321")
    assert source.render("1234") == "1234"


@pytest.mark.parametrize("options", [{"n": 0}, {"frames": 1}])
def test_nothing_to_show_is_refused(options):
    with pytest.raises(UserError, match=r"callbacks\.replay"):
        Replay(**options)
