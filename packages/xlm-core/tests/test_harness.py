import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parent))

from toy_run import (
    EXACT,
    CriticLoss,
    Hook,
    ToyLoss,
    ToyModel,
    batch_of_step,
    collate,
    digest,
    fetch,
    make_run,
    poison,
    schedule,
    toy_rows,
    train,
    weights,
)
from xlm.errors import UserError
from xlm.files import lock
from xlm.harness import Harness
from xlm.weights import load_weights
from xlm.window import NonFiniteError

pytestmark = pytest.mark.filterwarnings("ignore")


def bare_loop(steps=3, clip_norm=None):
    """The whole global batch at once, without Lightning: what every split of it must equal."""
    model = ToyModel()
    loss = ToyLoss(model)
    loss.configure(torch.zeros(()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    scheduler = schedule(optimizer, steps)
    losses, norms = [], []
    for step in range(steps):
        optimizer.zero_grad()
        value = loss.loss_fn(batch_of_step(step))["loss"]
        value.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf)))
        optimizer.step()
        scheduler.step()
        losses.append(float(value))
    return list(model.parameters()), losses, norms


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_any_split_of_a_global_batch_has_the_gradient_of_the_mean_over_its_tokens(tmp_path, accumulate):
    rows = []
    note = Hook("on_train_batch_end", lambda trainer: rows.append(dict(trainer.lightning_module.step_metrics())))
    _, harness, _ = train(tmp_path, accumulate=accumulate, callbacks=[note], **EXACT)
    expected, losses, norms = bare_loop()
    assert_close(weights(harness), expected, rtol=1e-12, atol=1e-12)
    ends = rows[accumulate - 1 :: accumulate]
    assert_close([row["train/loss"] for row in ends], losses, rtol=1e-12, atol=0)
    assert_close([row["train/grad_norm"] for row in ends], norms, rtol=1e-6, atol=0)
    assert_close([row["train/half"] for row in ends], [loss / 2 for loss in losses], rtol=1e-12, atol=0)
    assert [row["train/lr"] for row in ends] == [0.1, 0.1 / 2, 0.1 / 3]


def test_the_mean_over_micro_batches_would_have_been_another_gradient():
    batch = batch_of_step(0)
    loss = ToyLoss(ToyModel())
    loss.configure(torch.zeros(()))
    halves = [{"ids": batch["ids"][rows], "index": batch["index"][rows]} for rows in (slice(4), slice(4, 8))]
    naive = sum(loss.loss_fn(half)["loss"] for half in halves) / 2
    assert abs(naive - loss.loss_fn(batch)["loss"]) > 1e-3


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_logged(tmp_path):
    _, harness, _ = train(tmp_path, accumulate=2, **{**EXACT, "clip_norm": 0.1})
    expected, _, norms = bare_loop(clip_norm=0.1)
    assert min(norms) > 0.1
    assert_close(weights(harness), expected, rtol=1e-5, atol=1e-6)
    assert_close(harness.metrics["train/grad_norm"], norms[-1], rtol=1e-6, atol=0)


def test_a_loss_without_a_denominator_is_averaged_over_micro_batches(tmp_path):
    def without(harness):
        fn = harness.loss.loss_fn
        harness.loss.loss_fn = lambda batch: {"loss": fn(batch)["loss"]}
        return harness

    trainer, harness, data = make_run(tmp_path, accumulate=2, **{**EXACT, "steps": 1})
    trainer.fit(without(harness), datamodule=data)
    batch = batch_of_step(0)
    loss = ToyLoss(ToyModel())
    loss.configure(torch.zeros(()))
    halves = [{"ids": batch["ids"][rows], "index": batch["index"][rows]} for rows in (slice(4), slice(4, 8))]
    expected = sum(float(loss.loss_fn(half)["loss"]) for half in halves) / 2
    assert_close(harness.metrics["train/loss"], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_predicts_nothing_has_no_gradient_and_no_loss(tmp_path, accumulate):
    trainer, harness, data = make_run(tmp_path, accumulate=accumulate, **{**EXACT, "steps": 1})
    fn, before = harness.loss.loss_fn, weights(harness)

    def nothing(batch):
        return {"loss": fn(batch)["loss"] * 0, "loss_denominator": torch.tensor(0)}

    harness.loss.loss_fn = nothing
    trainer.fit(harness, datamodule=data)
    assert harness.metrics["train/loss"] == harness.metrics["train/grad_norm"] == 0
    assert harness.results["val.texts"]["loss"] == 0
    decay = 1 - 0.1 * 0.01  # AdamW's, all that is left
    assert_close(weights(harness), [weight * decay for weight in before], rtol=1e-6, atol=0)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_step_rank_and_sample(
    tmp_path, monkeypatch, deferred
):
    monkeypatch.setattr(Harness, "_may_defer", lambda *_: deferred)
    _, straight, _ = train(tmp_path / "straight", validate=0, **{**EXACT, "steps": 2})
    trainer, harness, data = make_run(tmp_path / "bad", validate=0, log_every_n_steps=100, **{**EXACT, "steps": 6})
    bad = poison(harness, step=2, row=5)
    with pytest.raises(NonFiniteError) as error:
        trainer.fit(harness, datamodule=data)
    assert str(error.value).startswith(f"the loss is not finite at step 3 (rank 0, samples {bad[0]})")
    assert digest(weights(harness)) == digest(weights(straight))
    assert [path.name for path in (tmp_path / "bad/checkpoints").glob("*.ckpt")] == ["000000002.ckpt"]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("steps", [3, 6])
def test_a_bad_step_is_never_saved_even_when_it_is_judged_late(tmp_path, monkeypatch, every, steps):
    monkeypatch.setattr(Harness, "_may_defer", lambda *_: True)
    options = {**EXACT, "steps": steps}
    trainer, harness, data = make_run(tmp_path, validate=0, every=every, log_every_n_steps=100, **options)
    poison(harness, step=2, row=0)
    with pytest.raises(NonFiniteError, match="at step 3"):
        trainer.fit(harness, datamodule=data)
    assert not (tmp_path / "checkpoints/000000003.ckpt").exists()


def test_a_deferred_judgement_changes_nothing_while_all_is_well(tmp_path, monkeypatch):
    _, direct, _ = train(tmp_path / "a", **EXACT)
    monkeypatch.setattr(Harness, "_may_defer", lambda *_: True)
    _, deferred, _ = train(tmp_path / "b", **EXACT)
    assert digest(weights(direct)) == digest(weights(deferred))
    assert direct.metrics == deferred.metrics


def test_an_infinite_gradient_of_a_finite_loss_names_the_samples_of_the_step(tmp_path):
    trainer, harness, data = make_run(tmp_path, validate=0, **EXACT)
    harness.model.head.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteError, match=r"the gradient is not finite at step 1 \(rank 0, samples (\d+, ){7}\d+\)"):
        trainer.fit(harness, datamodule=data)


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(tmp_path):
    drawn = []
    note = Hook("on_train_batch_end", lambda trainer: drawn.append(torch.rand(()).item()))
    _, first, _ = train(tmp_path / "a", callbacks=[note], accumulate=2)
    torch.manual_seed(5)
    _, second, _ = train(tmp_path / "b", callbacks=[note], accumulate=2)
    assert digest(weights(first)) == digest(weights(second))
    assert len(set(drawn)) == 12
    assert drawn[:12] == drawn[12:]


def test_the_last_step_is_validated_whatever_the_interval(tmp_path):
    at = []
    note = Hook("on_validation_start", lambda trainer: at.append(trainer.global_step))
    train(tmp_path, steps=7, validate=3, accumulate=2, callbacks=[note])
    assert at == [3, 6, 7]


def test_a_validation_never_falls_into_an_accumulation_window(tmp_path):
    seen = []
    note = Hook("on_validation_start", lambda t: seen.append((t.global_step, t.lightning_module.between_steps)))
    train(tmp_path, steps=6, accumulate=2, val_check_interval=3, callbacks=[note])
    assert seen == [(2, True), (4, True), (6, True)]


def test_limits_on_batches_are_honoured(tmp_path):
    trainer, harness, _ = train(tmp_path, steps=6, limit_train_batches=4, val_check_interval=1.0, limit_val_batches=2)
    assert trainer.global_step == 6
    assert [len(batch) for batch in harness.loss.seen] == [8] * 6
    assert harness.results["val.answers"]["n_examples"] == 4
    _, harness, _ = train(tmp_path / "none", limit_val_batches=0)
    assert harness.results == {}
    trainer, _, _ = train(tmp_path / "dev", fast_dev_run=True)
    assert trainer.global_step == 1


def texts_nll(harness, n=7):
    batch = collate(fetch(toy_rows(n), *[torch.arange(n).numpy()] * 3))
    with torch.no_grad():
        return ToyLoss(harness.model).rows(batch)


def test_validation_divides_sums_by_sums_over_the_whole_data_set(tmp_path):
    _, harness, _ = train(tmp_path, ema=None, dropout=0.0)
    nll, n_tokens = texts_nll(harness)
    result = harness.results["val.texts"]
    expected = float(nll.sum() / n_tokens.sum())
    assert_close([result["loss"], result["nats_per_token"], 2 * result["half"]], [expected] * 3, rtol=1e-12, atol=0)
    assert_close(result["bits_per_byte"], expected / (2 * math.log(2)), rtol=1e-12, atol=0)
    assert (result["kind"], result["event_space"], result["step"], result["weights"]) == ("estimate", "open", 6, "raw")
    assert harness.trainer.callback_metrics["val/texts/loss"] == pytest.approx(expected)


def test_a_tests_likelihood_comes_from_the_predictor_alone(tmp_path):
    trainer, harness, data = make_run(tmp_path, ema=None, dropout=0.0)
    harness.likelihood_draws = 3
    harness.loss.configure(harness)
    loss = harness.loss.loss_fn
    harness.loss.loss_fn = lambda batch: {**loss(batch), "nll": torch.full((len(batch["index"]),), 1e9)}
    trainer.test(harness, datamodule=data, verbose=False)
    nll, n_tokens = texts_nll(harness)
    result = harness.results["test.texts"]
    assert_close(result["nats_per_token"], float(nll.sum() / n_tokens.sum()), rtol=1e-12, atol=0)
    assert_close(result["mc_se"], math.sqrt(7) / int(n_tokens.sum()), rtol=1e-12, atol=0)
    assert (result["kind"], result["estimator"], result["n_calls"]) == ("exact", "toy", 6.0)


def test_a_loss_that_says_its_nll_is_exact_is_reported_so(tmp_path):
    trainer, harness, data = make_run(tmp_path, ema=None, dropout=0.0, steps=1)
    harness.loss.nll_kind = "exact"
    trainer.fit(harness, datamodule=data)
    result = harness.results["val.texts"]
    assert (result["kind"], result["estimator"]) == ("exact", "the training loss")


def test_a_loss_that_estimates_no_likelihood_is_validated_by_one_draw_of_the_predictor(tmp_path):
    trainer, harness, data = make_run(tmp_path, ema=None, dropout=0.0)
    harness.likelihood_draws = 3
    loss = harness.loss.loss_fn
    harness.loss.loss_fn = lambda batch: {name: loss(batch)[name] for name in ("loss", "loss_denominator", "half")}
    trainer.fit(harness, datamodule=data)
    nll, n_tokens = texts_nll(harness)
    result = harness.results["val.texts"]
    expected = float(nll.sum() / n_tokens.sum())
    assert_close([result["loss"], result["nats_per_token"]], [expected] * 2, rtol=1e-12, atol=0)
    assert (result["kind"], result["estimator"], result["n_calls"]) == ("exact", "toy", 2.0)


@pytest.mark.parametrize("split", ["test", "predict", "val"])
def test_every_split_evaluates_both_kinds_and_writes_predictions_in_order(tmp_path, split):
    trainer, harness, data = make_run(tmp_path)
    run = {"test": trainer.test, "predict": trainer.predict, "val": trainer.validate}[split]
    run(harness, datamodule=data)
    assert set(harness.results) == {f"{split}.texts", f"{split}.answers"}
    assert harness.results[f"{split}.answers"]["validity"] == 3 / 7
    assert harness.results[f"{split}.answers"]["n_calls"] == 3.0
    with open(tmp_path / f"predictions/{split}.answers.jsonl", newline="\n", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert [row["index"] for row in rows] == list(range(7))
    assert rows[0]["prompt"] == "\u2028é"  # a line separator to str.splitlines
    assert harness.samples[f"{split}.answers"] == [{"target": "x" * (i + 1), **rows[i]} for i in range(2)]
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == [f"{split}.answers.jsonl"]


def test_what_was_logged_is_in_one_file_with_one_row_a_step(tmp_path):
    _, harness, _ = train(tmp_path, steps=4, validate=2)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "1", "2", "3", "4"]
    assert harness.metrics["parameters"] == 2 * 6 * 8
    assert {"train/loss", "train/lr", "val/texts/nats_per_token", "val/answers/validity"} <= set(lines[0].split(","))
    tokens = sum(len(toy_rows(20)[i]) for batch in harness.loss.seen for i in batch)
    assert float(harness.tokens) == tokens


def test_steps_between_log_steps_are_not_written(tmp_path):
    train(tmp_path, steps=5, log_every_n_steps=2, validate=0)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "0", "2", "4", "5"]


def test_the_loss_is_configured_once_a_run_with_the_module_on_its_device(tmp_path):
    trainer, harness, data = make_run(tmp_path)
    trainer.fit(harness, datamodule=data)
    assert harness.loss.configured == 1
    trainer.test(harness, datamodule=data, verbose=False)
    assert harness.loss.configured == 2


def test_the_parts_are_no_submodules_so_parameters_are_counted_and_saved_once(tmp_path):
    _, harness, _ = make_run(tmp_path)
    assert set(harness.state_dict()) == {"model.embed.weight", "model.head.weight"}
    assert harness.n_parameters == 96


@pytest.mark.parametrize(
    ("options", "key"),
    [({"clip_norm": 0.0}, "harness.clip_norm"), ({"gradient_clip_val": 1.0}, "trainer.gradient_clip_val")],
)
def test_options_that_cannot_be_are_named(tmp_path, options, key):
    with pytest.raises(UserError, match=key):
        train(tmp_path, **options)


def test_a_schedule_without_an_end_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        train(tmp_path, max_steps=-1, max_epochs=1)


@pytest.mark.parametrize("name", ["likelihood_draws", "log_samples"])
def test_counts_out_of_range_are_named(name):
    parts = {"loss": ToyLoss(None), "predictor": None, "tokenizer": None, "optimizer": lambda model: None}
    with pytest.raises(UserError, match=rf"harness\.{name}"):
        Harness(model=ToyModel(), **parts, **{name: -1})


def test_a_checkpoint_of_another_vocabulary_names_both_sizes(tmp_path):
    train(tmp_path, steps=2)
    trainer, harness, data = make_run(tmp_path, steps=4)
    harness.tokenizer = range(11)
    with pytest.raises(UserError, match="knows 8 tokens, the tokenizer 11"):
        trainer.fit(harness, datamodule=data, ckpt_path=tmp_path / "checkpoints/000000002.ckpt")


def test_a_checkpoint_of_another_model_lists_what_differs(tmp_path):
    train(tmp_path, steps=2)
    trainer, harness, data = make_run(tmp_path, steps=4)
    harness.model.head = torch.nn.Linear(7, 8, bias=False)
    with pytest.raises(UserError, match=r"head.weight is \[8, 6\] in the file, \[8, 7\] in the model"):
        trainer.fit(harness, datamodule=data, ckpt_path=tmp_path / "checkpoints/000000002.ckpt")


def test_a_checkpoint_of_weights_only_is_not_resumed(tmp_path):
    trainer, harness, data = train(tmp_path, steps=2, ema=None)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    trainer, harness, data = make_run(tmp_path, steps=4, ema=None)
    with pytest.raises(UserError, match=r"holds weights only in .*fix: begin a new run with init_from="):
        trainer.fit(harness, datamodule=data, ckpt_path=tmp_path / "weights.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("configured", [True, False])
def test_a_compiled_loss_has_the_values_and_gradients_of_the_eager_one(tmp_path, configured, monkeypatch):
    if not configured:
        monkeypatch.delattr(ToyLoss, "configure")
        monkeypatch.setattr(ToyLoss, "scale", 1.0, raising=False)
    runs = [train(tmp_path / str(compile), compile=compile, **EXACT)[1] for compile in (False, True)]
    assert_close(weights(runs[1]), weights(runs[0]), rtol=1e-10, atol=1e-12)
    for name in ("train/loss", "train/grad_norm"):
        assert_close(runs[1].metrics[name], runs[0].metrics[name], rtol=1e-10, atol=0)
    assert hasattr(runs[1]._train_loss, "_torchdynamo_orig_callable")


@pytest.mark.slow
def test_two_processes_are_one_and_agree_when_something_happens_to_one_of_them(tmp_path):
    held = lock(tmp_path / "locked/checkpoints")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).parent / "toy_run.py"
    command = [sys.executable, str(script), json.dumps({"folder": str(tmp_path), "two": True})]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, env={**shared, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "".join(errors)
    held.release()
    first, second = (json.loads((tmp_path / f"report{rank}.json").read_text()) for rank in range(2))

    options = {"dropout": 0.0, "steps": 4, "log_every_n_steps": 2}
    trainer, one, data = train(tmp_path / "one", **options)
    trainer.test(one, datamodule=data, verbose=False)
    parts = zip(first["seen"][::2], second["seen"][::2], first["seen"][1::2], second["seen"][1::2], strict=True)
    assert [[index for part in four for index in part] for four in parts] == one.loss.seen
    found, expected = (load_weights(tmp_path / name / "checkpoints", "raw").tensors for name in ("two", "one"))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    train(tmp_path / "one_with_two_networks", loss=CriticLoss, **options)
    names = ("two_networks", "one_with_two_networks")
    critic, alone = (load_weights(tmp_path / name / "checkpoints", "raw").auxiliary for name in names)
    assert_close(critic, alone, rtol=1e-12, atol=1e-12)
    assert first["results"] == second["results"]
    for name, result in one.results.items():
        for key, value in result.items():
            expected_value = pytest.approx(value, rel=1e-9) if isinstance(value, (float, dict)) else value
            assert first["results"][name][key] == expected_value, (name, key)
    for name in ("val.answers.jsonl", "test.answers.jsonl"):
        assert (tmp_path / "two/predictions" / name).read_text() == (tmp_path / "one/predictions" / name).read_text()
    assert rows(tmp_path / "two/metrics.csv") == pytest.approx(rows(tmp_path / "one/metrics.csv"), rel=1e-6)

    assert first["nan"] == second["nan"]
    bad = ", ".join(map(str, second["bad"]))
    said = f"NonFiniteError: the loss is not finite at step 3 (rank 1, samples {bad})"
    assert first["nan"].startswith(said)
    assert [path.name for path in (tmp_path / "nan/checkpoints").glob("*.ckpt")] == ["000000002.ckpt"]
    assert (first["term"], second["term"], first["again"], second["again"]) == (143, 143, 0, 0)
    found = load_weights(tmp_path / "term/checkpoints", "raw").tensors
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert "another run is writing there" in first["locked"]
    assert first["locked"] == second["locked"]


def rows(path):
    head, *lines = (line.split(",") for line in path.read_text().splitlines())
    return {(line[0], name): float(cell) for line in lines for name, cell in zip(head, line, strict=True) if cell}
