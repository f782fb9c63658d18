"""A finished run under other samplers, on other data, by one device."""

from __future__ import annotations

import json

import pytest
import yaml


def evaluated(run):
    """Results of the newest evaluation."""
    folder = max((run / "eval").iterdir())
    return folder, json.loads((folder / "results.json").read_text())


def test_an_evaluation_repeats_the_runs_own_test(xlm, trained, results):
    out = xlm("eval", f"checkpoint={trained}")
    folder, found = evaluated(trained)
    assert found["test.pairs"] == results(trained)["test.pairs"]
    assert (found["weights"], found["test.pairs"]["step"]) == ("ema", 3)
    assert str(folder / "results.json") in out
    assert str(folder / "predictions" / "test.answers.jsonl") in out


def test_a_data_set_can_be_added_to_a_finished_run(xlm, toy, trained):
    added = "+dataset_manager@datamodule.dataset_managers.test.extra=toy_pairs"
    xlm("eval", f"checkpoint={trained}", added, "run_dir=e", "~datamodule.dataset_managers.test.answers")
    found = json.loads((toy / "e" / "results.json").read_text())
    assert found["test.extra"] == found["test.pairs"]
    assert "test.answers" not in found
    assert (
        yaml.safe_load((toy / "e" / "config.yaml").read_text())["choices"][added.partition("=")[0][1:]] == "toy_pairs"
    )


def test_raw_and_averaged_weights_can_be_told_apart(xlm, toy, trained):
    for weights in ("raw", "ema"):
        xlm("eval", f"checkpoint={trained}", f"weights={weights}", f"run_dir={weights}")
    raw, ema = (json.loads((toy / name / "results.json").read_text()) for name in ("raw", "ema"))
    assert (raw["test.pairs"]["weights"], ema["test.pairs"]["weights"]) == ("raw", "ema")
    assert raw["test.pairs"]["nats_per_token"] != ema["test.pairs"]["nats_per_token"]


def test_a_checkpoint_file_can_be_evaluated(xlm, toy, trained):
    (newest,) = (trained / "checkpoints").glob("*.ckpt")
    xlm("eval", f"checkpoint={newest}", "run_dir=f")
    assert json.loads((toy / "f" / "results.json").read_text())["test.pairs"]["step"] == 3


def test_the_validation_data_can_be_evaluated(xlm, toy, trained):
    xlm("eval", f"checkpoint={trained}", "split=val", "run_dir=v")
    found = json.loads((toy / "v" / "results.json").read_text())
    assert "val.pairs" in found
    assert "test.pairs" not in found


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model.d_model=32"], "shapes the network"),
        (["tokenizer=word"], "cannot be changed on a finished run"),
        (["split=train"], "expected Literal['test', 'val'], got 'train' in split"),
        (["splt=val"], "did you mean split?"),
        (["predictor=toy_gready"], "did you mean toy_greedy?"),
        (["predictor.top_q=1"], "did you mean predictor.top_p?"),
        (["weights=best"], "got 'best' in weights"),
        (["model.max_length=7"], "shapes the network"),
        (["datamodule.max_length=9", "model.max_length=8"], "shapes the network"),
    ],
)
def test_a_mistake_is_refused(xlm, trained, words, error):
    assert error in xlm("eval", f"checkpoint={trained}", *words, code=2)


def test_an_evaluation_takes_no_other_directory_than_its_own(xlm, toy, trained):
    before = (trained / "config.yaml").read_bytes(), (trained / "results.json").read_bytes()
    said = xlm("eval", f"checkpoint={trained}", f"run_dir={trained}", code=2)
    assert "holds a training run in run_dir" in said
    assert ((trained / "config.yaml").read_bytes(), (trained / "results.json").read_bytes()) == before
    (toy / "mine").mkdir()
    (toy / "mine" / "thesis.txt").write_text("years of work")
    assert "holds other files" in xlm("eval", f"checkpoint={trained}", "run_dir=mine", code=2)
    for _ in range(2):
        xlm("eval", f"checkpoint={trained}", "run_dir=again")


def test_a_checkpoint_that_is_missing_or_cut_short_is_one_line(xlm, toy, trained):
    assert "does not exist in checkpoint (nowhere)" in xlm("eval", "checkpoint=nowhere", code=2)
    (toy / "empty").mkdir()
    assert "no run in checkpoint (empty)" in xlm("eval", "checkpoint=empty", code=2)
    broken = toy / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    (broken / "config.yaml").write_text((trained / "config.yaml").read_text())
    (broken / "tokenizer").symlink_to(trained / "tokenizer")
    assert "there is no checkpoint" in xlm("eval", "checkpoint=broken", code=2)
    (whole,) = (trained / "checkpoints").glob("*.ckpt")
    (broken / "checkpoints" / whole.name).write_bytes(whole.read_bytes()[:-100])
    assert "damaged" in xlm("eval", "checkpoint=broken", code=2)


def test_a_tokenizer_of_another_size_is_refused(xlm, toy, trained):
    other = toy / "other"
    other.mkdir()
    (other / "checkpoints").symlink_to(trained / "checkpoints")
    (other / "config.yaml").write_text((trained / "config.yaml").read_text().replace("CharTokenizer", "ByteTokenizer"))
    xlm("train", "experiment=toy_short", "tokenizer=byte", "trainer.max_steps=1", "run_dir=bytes")
    (other / "tokenizer").symlink_to(toy / "bytes" / "tokenizer")
    said = xlm("eval", "checkpoint=other", code=2)
    assert "embed.weight is [9, 16] in the file, [260, 16] in the model" in said


def test_a_secret_that_was_not_kept_is_asked_for(xlm, toy, trained):
    hidden = toy / "hidden"
    hidden.mkdir()
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["logger"]["csv"]["api_key"] = "<redacted>"
    (hidden / "config.yaml").write_text(yaml.safe_dump(config))
    said = xlm("eval", "checkpoint=hidden", code=2)
    assert "logger.csv.api_key (" not in said
    assert "give logger.csv.api_key=... again" in said


def test_a_sampler_can_be_swept_on_a_finished_run(xlm, toy, trained):
    xlm("eval", "-m", f"checkpoint={trained}", "predictor=toy_plain", "predictor.top_p=0.5,1.0", "run_dir=swept")
    saved = [yaml.safe_load((toy / "swept" / n / "config.yaml").read_text()) for n in ("0", "1")]
    assert [config["predictor"]["top_p"] for config in saved] == [0.5, 1.0]
    assert all((toy / "swept" / n / "results.json").exists() for n in ("0", "1"))
