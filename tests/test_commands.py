"""What a user does with a family, from training to text, through the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from xlm.cli import main
from xlm.weights import load_weights

SMALL = ["model.d_model=32", "model.n_layers=2", "model.n_heads=2", "trainer.precision=32-true", "callbacks=default"]
FEW = ["trainer.max_steps=8", "trainer.val_check_interval=4", "datamodule.global_batch_size=8"]
KINDS = {"arlm": "exact", "ilm": "bound", "mdlm": "bound", "mlm": "bound"}


def train(run: Path, family: str, *overrides: str) -> dict:
    words = [f"model_type={family}", *SMALL, *FEW, "trainer.enable_progress_bar=false", f"run_dir={run}", *overrides]
    assert main(["train", *words]) == 0
    return json.loads((run / "results.json").read_text())


@pytest.fixture(scope="session", params=sorted(KINDS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def text_run(family: str, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp(family) / "text"
    options = ["datamodule.max_length=32", "tokenizer=bpe", "tokenizer.vocab_size=300", "trainer.max_steps=30"]
    train(run, family, "datamodule=text", f"datamodule.path={text_file}", *options)
    return run


@pytest.fixture(scope="session")
def sudoku_run(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp(family) / "sudoku"
    few = [f"datamodule.dataset_managers.{split}.sudoku.source.n=16" for split in ("train", "val", "test")]
    few += [f"datamodule.dataset_managers.{split}.sudoku_prediction.source.n=16" for split in ("val", "test")]
    train(run, family, "datamodule=sudoku_4x4", *few)
    return run


def generated(run: Path, output: Path, *overrides: str) -> list[dict]:
    assert main(["generate", f"checkpoint={run}", f"output={output}", *overrides]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_run_reports_its_likelihood_with_unit_error_kind_and_event_space(family, text_run):
    text = json.loads((text_run / "results.json").read_text())["test.text"]
    assert (text["kind"], text["event_space"]) == (KINDS[family], "window")
    assert text["perplexity"] == pytest.approx(torch.tensor(text["nats_per_token"]).exp().item(), rel=1e-4)
    assert text["bits_per_byte"] > 0
    assert text["nats_per_token_se"] > 0


def test_training_lowers_the_likelihood_of_held_out_text_in_nats(text_run):
    rows = [line.split(",") for line in (text_run / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("val/text/loss")
    losses = [float(row[column]) for row in rows[1:] if len(row) > column and row[column]]
    assert losses[-1] < losses[0]


def test_prompts_of_unequal_length_give_the_same_text_in_every_batch_size(text_run, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    texts = ["the", "the quick brown fox", "lazy dog while seven wizards", "a", "judge the"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    options = [f"prompts={prompts}", "seed=3", "max_new_tokens=8"]
    one, eight = (generated(text_run, tmp_path / f"{n}.jsonl", *options, f"batch_size={n}") for n in (1, 8))
    assert [row["prediction"] for row in one] == [row["prediction"] for row in eight]
    assert [row["prompt"] for row in one] == [row["prompt"] for row in eight]
    assert len({row["prediction"] for row in one}) > 1


def test_a_template_keeps_its_text_or_names_the_roles_that_are_missing(family, text_run, tmp_path, capsys):
    template = tmp_path / "template.json"
    template.write_text(json.dumps(["the quick ", {"gap": 3}, " jumps over"]))
    output = tmp_path / "filled.jsonl"
    if family != "arlm":
        text = generated(text_run, output, f"template={template}")[0]["prediction"]
        assert text.startswith("the quick ")
        assert text.endswith(" jumps over")
    else:
        assert main(["generate", f"checkpoint={text_run}", f"template={template}"]) == 2
        assert "template" in capsys.readouterr().err


def test_a_gap_of_free_length_is_filled_by_insertion_and_refused_by_the_others(family, text_run, tmp_path, capsys):
    template = tmp_path / "template.json"
    template.write_text(json.dumps(["the quick ", {"gap": None}, " jumps over"]))
    output = tmp_path / "filled.jsonl"
    if family == "ilm":
        text = generated(text_run, output, f"template={template}")[0]["prediction"]
        assert text.startswith("the quick ")
        assert text.endswith(" jumps over")
    else:
        assert main(["generate", f"checkpoint={text_run}", f"template={template}"]) == 2
        assert "template" in capsys.readouterr().err


def test_an_evaluation_can_be_added_to_a_finished_run(sudoku_run, tmp_path):
    added = "+dataset_manager@datamodule.dataset_managers.test.extra=sudoku_4x4_prediction"
    limit = "trainer.limit_test_batches=1"
    assert main(["eval", f"checkpoint={sudoku_run}", added, limit, f"run_dir={tmp_path / 'eval'}"]) == 0
    results = json.loads(next((tmp_path / "eval").glob("**/results.json")).read_text())
    assert {"exact_match", "token_accuracy", "validity"} <= set(results["test.extra"])


def test_the_same_training_twice_gives_the_same_weights(family, tmp_path):
    options = ["datamodule=sudoku_4x4", "trainer.max_steps=3", "model.dropout=0.1", "trainer.limit_test_batches=1"]
    options += ["trainer.limit_val_batches=1"]
    weights = []
    for name in ("once", "again"):
        train(tmp_path / name, family, *options)
        weights.append(load_weights(tmp_path / name).tensors)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["trainer.max_step=3"], "trainer.max_steps"),
        (["trainer.max_steps=abc"], "trainer.max_steps"),
        (["model=nosuch"], "mdlm_tiny"),
        (["model.n_heads=3", "model.d_model=32"], "n_heads"),
        (["predictor.top_p=1.5"], "predictor.top_p"),
        (["datamodule=text"], "datamodule.path"),
        (["datamodule=text", "datamodule.path=/nowhere/at/all"], "/nowhere/at/all"),
        (["datamodule.global_batch_size=10", "datamodule.device_batch_size=4"], "datamodule.global_batch_size"),
        (["model.max_length=4"], "max_length"),
        (["resume=/nowhere/at/all"], "resume"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_run_directory(overrides, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "model_type=mdlm", "datamodule=sudoku_4x4", *FEW, *overrides]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "; fix: " in lines[0]
    assert not (tmp_path / "runs").exists()
