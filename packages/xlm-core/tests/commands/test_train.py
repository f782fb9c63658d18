"""A run from its words to its directory: what is written, when it goes on, and when it is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from xlm.callbacks import QuietWandbLogger
from xlm.commands import rundir
from xlm.config import compose
from xlm.errors import UserError
from xlm.weights import load_weights

SHORT = ("experiment=toy_short", "callbacks.saver.every=1", "callbacks.saver.keep=9")


def steps(run):
    return sorted(int(path.stem) for path in (run / "checkpoints").glob("[0-9]*.ckpt"))


def steps_of_rows(run):
    with open(run / "metrics.csv") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_run_directory_holds_all_that_says_what_the_run_was(xlm, trained, results):
    assert {path.name for path in trained.iterdir()} >= {
        "config.yaml",
        "overrides.yaml",
        "tokenizer",
        "checkpoints",
        "metrics.csv",
        "predictions",
        "results.json",
        "model.safetensors",
        "model_ema.safetensors",
    }
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["family"], config["seed"], config["trainer"]["max_steps"]) == ("toy", 5, 3)
    assert yaml.safe_load((trained / "overrides.yaml").read_text())[:2] == [
        "experiment=toy_short",
        "harness.ema_decay=0.9",
    ]
    assert len((trained / "predictions" / "test.answers.jsonl").read_text().splitlines()) == 4
    with open(trained / "metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)][-1] == 3


def test_results_hold_numbers_by_data_set_and_what_made_them(trained, results):
    found = results(trained)
    assert found["test.pairs"]["kind"] == "exact"
    assert found["test.pairs"]["n_tokens"] == 16  # cd, ca, d, abc and their prompts: 4 rows of 4
    assert found["test.answers"]["n_examples"] == 4
    assert (found["weights"], found["step"]) == ("ema", 3)
    assert found["versions"]["xlm-core"]
    assert found["peak_memory"] > 1e7
    assert found["seconds"] > 0
    assert found["tokens_per_s"] > 0
    assert "git_commit" in found


def test_the_end_is_a_table_and_the_paths(xlm, toy):
    out = xlm("train", *SHORT, "run_dir=here")
    assert "nats_per_token" in out
    assert out.splitlines()[-3:] == ["here/model.safetensors", "here", "here/results.json"]


def test_the_weights_beside_the_checkpoints_are_those_of_the_last_one(trained):
    for kind, name in {"raw": "model", "ema": "model_ema"}.items():
        plain, last = load_weights(trained / f"{name}.safetensors").tensors, load_weights(trained, kind).tensors
        assert plain.keys() == last.keys()
        assert all((plain[key] == last[key]).all() for key in last)


def test_the_weights_are_there_whatever_the_test_ends_with(xlm, toy, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("lightning.pytorch.Trainer.test", fails)
    xlm("train", "experiment=toy_short", "run_dir=cut", code=1)
    assert (toy / "cut" / "model.safetensors").is_file()


def test_the_default_directory_names_date_family_and_task(xlm, toy):
    xlm("train", *SHORT, "trainer.max_steps=1")
    (run,) = (toy / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_toy_toy_pairs_[0-9a-f]{6}", run.name)


def test_a_job_that_its_cluster_starts_again_finds_its_run(xlm, toy, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    xlm("train", *SHORT, "trainer.max_steps=1")
    xlm("train", *SHORT, "trainer.max_steps=1")
    (run,) = (toy / "runs").iterdir()
    assert run.name.endswith("_77")


@pytest.mark.parametrize(("given", "named"), [("night-3", "night-3"), ("none", f"torchrun{os.getppid()}")])
def test_the_ranks_of_one_torchrun_choose_one_directory(toy, monkeypatch, given, named):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", given)
    config = compose(["experiment=toy_short"])
    assert rundir.choose_run_dir(config).name.endswith(f"_toy_toy_pairs_{named}")


def test_the_same_words_go_on_with_the_same_run(xlm, toy, results):
    xlm("train", *SHORT, "run_dir=a")
    before = (toy / "a" / "checkpoints" / "000000003.ckpt").read_bytes()
    found, rows = results(toy / "a"), steps_of_rows(toy / "a")
    xlm("train", *SHORT, "run_dir=a")
    assert (toy / "a" / "checkpoints" / "000000003.ckpt").read_bytes() == before
    again = results(toy / "a")
    assert again["step"] == 3
    for name in ("seconds", "steps", "tokens", "tokens_per_s", "peak_memory", "wall_seconds"):
        assert again[name] == found[name]  # of the training
    assert again["val.pairs"]["nats_per_token"] == pytest.approx(found["val.pairs"]["nats_per_token"], rel=1e-6)
    assert again["test.pairs"] == found["test.pairs"]
    assert steps_of_rows(toy / "a") == rows


def test_a_resumed_run_equals_one_that_was_never_stopped(xlm, toy, results, caplog):
    xlm("train", *SHORT, "run_dir=straight", "trainer.max_steps=4", "lr_scheduler=constant")
    xlm("train", *SHORT, "run_dir=parts", "trainer.max_steps=2", "lr_scheduler=constant")
    xlm("train", "resume=parts", "trainer.max_steps=4")
    assert "going on from" in caplog.text
    straight, parts = (load_weights(toy / name).tensors for name in ("straight", "parts"))
    assert all((straight[name] == parts[name]).all() for name in straight)
    assert results(toy / "straight")["test.pairs"] == results(toy / "parts")["test.pairs"]
    config = yaml.safe_load((toy / "parts" / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 4
    assert yaml.safe_load((toy / "parts" / "overrides.yaml").read_text())[-1] == "trainer.max_steps=4"


def test_a_directory_with_another_configuration_is_refused_naming_the_keys(xlm, trained):
    said = xlm("train", "experiment=toy_short", f"run_dir={trained}", "seed=9", code=2)
    assert "holds a run with another configuration (seed: 5 there, 9 here; harness.ema_decay: 0.9 there" in said


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["model.d_model=32"], r"shapes the network.*it is 16 in .*model\.d_model \(32\)"),
        (["tokenizer=byte"], r"cannot be changed on a finished run in tokenizer"),
        (["model=toy_tiny", "model_type=toy", "seed=8"], r"seed 5, now it is 8"),
        (["datamodule.global_batch_size=4"], r"global_batch_size 2, now it is 4"),
        (["init_from=x"], r"excludes init_from"),
        (["run_dir=elsewhere"], r"excludes run_dir"),
    ],
)
def test_a_resumed_run_keeps_what_makes_it_itself(xlm, trained, words, error):
    before = (trained / "config.yaml").read_text()
    assert re.search(error, xlm("train", f"resume={trained}", *words, code=2))
    assert (trained / "config.yaml").read_text() == before


def test_init_from_takes_weights_and_nothing_else(xlm, toy, trained, results):
    xlm("train", *SHORT, f"init_from={trained}", "optimizer.lr=0", "run_dir=b", "weights=raw")
    old, new = load_weights(trained, "raw").tensors, load_weights(toy / "b").tensors
    assert all((old[name] == new[name]).all() for name in old)
    assert results(toy / "b")["step"] == 3


def test_weights_of_another_model_are_refused(xlm, toy, trained):
    said = xlm("train", *SHORT, f"init_from={trained}", "model.d_model=32", "run_dir=b", code=2)
    assert "the weights are of another model" in said
    assert not (toy / "b").exists()


def test_the_weights_that_are_tested_can_be_chosen(xlm, toy, results):
    xlm("train", *SHORT, "harness.ema_decay=0.9", "weights=raw", "run_dir=raw", "optimizer.lr=0.1")
    xlm("train", *SHORT, "harness.ema_decay=0.9", "run_dir=ema", "optimizer.lr=0.1")
    raw, ema = results(toy / "raw"), results(toy / "ema")
    assert (raw["test.pairs"]["weights"], ema["test.pairs"]["weights"]) == ("raw", "ema")
    assert raw["test.pairs"]["nats_per_token"] != ema["test.pairs"]["nats_per_token"]


def test_the_monitor_of_the_best_checkpoint_is_checked_before_training(xlm, toy):
    words = (*SHORT, "run_dir=c", "callbacks=[default,best]")
    said = xlm("train", *words, "callbacks.best.monitor=val/pear/loss", code=2)
    assert "names no validation data set in callbacks.best.monitor (val/pear/loss); fix: choose of: val/pairs/" in said
    assert not list(toy.iterdir())
    xlm("train", *words, "callbacks.best.monitor=val/pairs/loss")
    assert (toy / "c" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize(
    "word", ["trainer.max_step=3", "model.dropout=2", "datamodule.max_length=3", "model.max_length=7"]
)
def test_a_mistake_leaves_no_directory(xlm, toy, word):
    xlm("train", *SHORT, "run_dir=c", word, code=2)
    assert [path.name for path in toy.iterdir()] == []


def test_a_directory_of_other_files_is_refused(xlm, toy):
    (toy / "mine").mkdir()
    (toy / "mine" / "thesis.txt").write_text("years of work")
    assert "holds other files" in xlm("train", *SHORT, "run_dir=mine", code=2)
    (toy / "file").touch()
    assert "is a file" in xlm("train", *SHORT, "run_dir=file", code=2)


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(xlm, toy, monkeypatch):
    monkeypatch.setattr("pathlib.Path.touch", refuse)
    assert "cannot be written (Read-only" in xlm("train", *SHORT, "run_dir=d", code=2)


def refuse(*_):
    raise OSError(30, "Read-only file system")


def test_epochs_become_steps(xlm, toy, results):
    xlm("train", *SHORT, "run_dir=e", "trainer.max_epochs=2")  # 4 examples, 2 a step
    assert results(toy / "e")["step"] == 4


def test_a_step_is_a_step_whatever_the_accumulation(xlm, toy, results):
    xlm("train", *SHORT, "run_dir=whole", "datamodule.global_batch_size=4")
    xlm("train", *SHORT, "run_dir=split", "datamodule.global_batch_size=4", "datamodule.device_batch_size=1")
    whole, split = results(toy / "whole"), results(toy / "split")
    assert whole["step"] == split["step"] == 3
    assert whole["test.pairs"]["nats_per_token"] == pytest.approx(split["test.pairs"]["nats_per_token"], abs=1e-5)
    for run in ("whole", "split"):
        with open(toy / run / "metrics.csv") as file:
            rows = [int(row["step"]) for row in csv.DictReader(file) if row["val/pairs/loss"]]
        assert rows == [2, 3]  # every two steps, and at the end


def test_secrets_are_not_written(xlm, toy, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("SCALE", "1.0")
    xlm("train", *SHORT, "run_dir=f", "loss.scale='${oc.decode:${oc.env:SCALE}}'", "trainer.max_steps=1")
    written = [path for path in (toy / "f").rglob("*") if path.is_file()]
    assert not [path for path in written if b"hf_abcdefghij" in path.read_bytes()]
    assert "${oc.decode:${oc.env:SCALE}}" in (toy / "f" / "config.yaml").read_text()


def test_loggers_stand_side_by_side_and_none_is_none(xlm, toy):
    for words in ("logger=[csv,tensorboard]", "logger=tensorboard"):
        assert set(compose(["experiment=toy_short", words]).logger) == {"csv", "tensorboard"}
    xlm("train", *SHORT, "run_dir=g", "logger=tensorboard", "trainer.max_steps=1")
    assert (toy / "g" / "metrics.csv").exists()
    assert list((toy / "g" / "tensorboard").rglob("events.*"))
    xlm("train", *SHORT, "run_dir=h", "logger=none", "trainer.max_steps=1")
    assert not (toy / "h" / "metrics.csv").exists()


def test_weights_and_biases_says_where_its_files_are_and_nothing_else(toy):
    pytest.importorskip("wandb")
    words = [*SHORT, "run_dir=w", "logger=wandb", "trainer.max_steps=1"]
    command = [sys.executable, "-m", "xlm.cli", "train", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    (files,) = (toy / "w" / "wandb").glob("offline-run-*")
    said = [line for line in (done.stdout + done.stderr).splitlines() if "wandb" in line]
    assert said == [f"Weights & Biases: wandb sync {files.relative_to(toy)}"]
    assert "val/pairs/loss" in (toy / "w" / "metrics.csv").read_text()


def test_weights_and_biases_that_is_not_installed_is_the_users_mistake(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"not installed in logger\.wandb; fix: pip install 'xlm-core\[wandb\]'"):
        QuietWandbLogger(save_dir=tmp_path)


def test_debug_overfit_learns_its_batch(xlm, toy, results):
    fast = ["optimizer.lr=0.05", "lr_scheduler=constant", "lr_scheduler.warmup_steps=0", "callbacks.saver.every=60"]
    short = ["trainer.max_steps=60", "trainer.log_every_n_steps=1"]
    xlm("train", "experiment=toy_short", "debug=overfit", "run_dir=o", *fast, *short)
    with open(toy / "o" / "metrics.csv") as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses[0] > 1.5  # about log 8, the vocabulary
    assert losses[-1] < 0.5
    learnt = results(toy / "o")["test.pairs"]
    assert learnt["optimum_nats_per_token"] <= learnt["nats_per_token"] < 0.5
    xlm("eval", "checkpoint=o", "run_dir=e")
    assert results(toy / "e")["test.pairs"]["nats_per_token"] == learnt["nats_per_token"]


def test_the_run_directory_of_one_run_is_not_that_of_the_next(xlm, toy):
    xlm("train", *SHORT, "trainer.max_steps=1", "run_dir=first")
    assert "XLM_RUN_DIR" not in os.environ
    xlm("train", *SHORT, "trainer.max_steps=1", "run_dir=second")
    assert (toy / "second" / "results.json").exists()


def test_a_replaced_option_is_recorded(xlm, toy):
    option = toy / "configs" / "lightning_train" / "noise_schedule" / "linear.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("_target_: xlm.noise.LinearSchedule")
    xlm("train", *SHORT, "trainer.max_steps=1", "run_dir=i")
    assert json.loads((toy / "i" / "results.json").read_text())["replaced_options"] == ["noise_schedule/linear"]


def test_a_sweep_is_checked_as_a_whole_and_then_run_one_by_one(xlm, toy, results):
    said = xlm("train", "-m", *SHORT, "run_dir=sweep", "trainer.max_steps=1", "model.d_model=16,15", code=2)
    assert "model.d_model (15)" in said
    assert not (toy / "sweep").exists()
    xlm("train", "-m", *SHORT, "run_dir=my sweep", "trainer.max_steps=1", "seed=1,2", "model.d_ff=8")
    assert [results(toy / "my sweep" / n)["seed"] for n in ("0", "1")] == [1, 2]
    assert [path.name for path in toy.iterdir()] == ["my sweep"]


def test_a_sweep_whose_run_fails_ends_with_1_after_the_others(xlm, toy):
    (toy / "s" / "0").mkdir(parents=True)
    (toy / "s" / "0" / "thesis.txt").write_text("years of work")
    said = xlm("train", "-m", *SHORT, "run_dir=s", "trainer.max_steps=1", "seed=1,2", code=1)
    assert "run 0: holds other files" in said
    assert (toy / "s" / "1" / "results.json").exists()


@pytest.mark.slow
def test_two_processes_are_one_run(toy, results):
    words = ["experiment=toy_short", "trainer.accelerator=cpu", "lr_scheduler=constant"]
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "xlm.cli", "train", *words, f"trainer.devices={devices}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    runs = list((toy / "runs").iterdir())
    assert len(runs) == 2  # both processes of the second are in one
    one, two = (results(run)["test.pairs"] for run in runs)
    assert one["nats_per_token"] == pytest.approx(two["nats_per_token"], abs=1e-6)
    assert one["n_sequences"] == two["n_sequences"] == 4


def test_debug_profile_prints_where_a_step_goes_and_evaluates_nothing(xlm, toy, results):
    words = ["debug=profile", "trainer.max_steps=3", "callbacks.profile.warmup=1", "run_dir=p"]
    out = xlm("train", "experiment=toy_short", *words)
    assert "mean of 2 after 1 of warm-up" in out
    for part in ("data", "forward", "head and loss", "backward", "optimizer", "other", "step"):
        assert f"│ {part} " in out
    assert not any(name.startswith(("val.", "test.")) for name in results(toy / "p"))
