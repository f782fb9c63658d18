"""``xlm check`` shows what every family reads, in every role, and tells what is given from what is to be predicted."""

from __future__ import annotations

import pytest
from xlm.cli import main

SMALL = ["model.d_model=16", "model.n_layers=1", "model.n_heads=1"]
FAMILIES = ("arlm", "ilm", "mdlm", "mlm")


def shown(family: str, task: str, source: str, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    few = [f"datamodule.dataset_managers.{split}.{source}.source.n=8" for split in ("train", "val", "test")]
    assert main(["check", f"model_type={family}", f"datamodule={task}", *SMALL, *few, *overrides]) == 0
    return capsys.readouterr().out


def cells(out: str, key: str) -> list[str]:
    """Texts of the rows of a key, the same over line ends."""
    return [line.split("│")[3].strip() for line in out.splitlines() if f"│ {key} " in line and line.count("│") == 4]


def targets(out: str) -> list[str]:
    return [text for key in ("target_ids", "full_ids") for text in cells(out, key) if text[:5] != "torch"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_stands_before_the_brackets_and_its_answer_within_them(family, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    few = "datamodule.dataset_managers.{}.star_prediction.source.n=8"
    out = shown(family, "star_small", "star", capsys, few.format("val"), few.format("test"))
    for text in targets(out):
        prompt, _, rest = text.partition("⟦")
        answer = rest.removesuffix("⟧").replace("[EOS]", "")
        assert len(prompt.replace("[BOS]", "").split()) == 14
        assert len(answer.split()) == 6
    assert len(targets(out)) == 4
    assert "role seq2seq_prediction" in out
    prompts = cells(out, "input_ids")[-4:]
    assert all(len(text.replace("[BOS]", "").replace("·", "").split()) == 14 for text in prompts)


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_template_the_free_places_stand_within_brackets(family, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    few = "datamodule.dataset_managers.{}.sudoku_prediction.source.n=8"
    out = shown(family, "sudoku_4x4", "sudoku", capsys, few.format("val"), few.format("test"))
    text = targets(out)[0]
    assert "⟦" in text
    if family == "arlm":  # has no templates: the puzzle is the prompt
        assert len(text.partition("⟦")[0].replace("[BOS]", "")) == 16
    else:
        given = text.replace("[BOS]", "").split("⟦")
        assert 6 <= len("".join(part.rpartition("⟧")[2] for part in given)) <= 9  # the clues
    assert "role seq2seq_prediction" in out or "role infill_prediction" in out


@pytest.mark.parametrize("family", FAMILIES)
def test_of_a_text_without_a_prompt_everything_is_predicted_and_samples_start_empty(family, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    out = shown(family, "hmm", "hmm", capsys)
    assert all(text.replace("[BOS]", "").startswith("⟦") and text.endswith("⟧") for text in targets(out))
    assert "role unconditional" in out
    assert all(set(text.replace("[BOS]", "")) <= {"·"} for text in cells(out, "input_ids")[-4:])
