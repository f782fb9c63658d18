import io
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_run import Hook, make_run, toy_rows, train
from xlm.callbacks import Progress, SampleLogger, Throughput
from xlm.checkpoint import newest_valid, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")


def console(*, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120)


def test_samples_are_shown_after_each_validation_as_they_are(tmp_path):
    out = console()
    train(tmp_path, callbacks=[SampleLogger(out)])
    text = out.file.getvalue()
    assert text.count("val.answers at step 3") == text.count("val.answers at step 6") == 1
    assert "│ xx" in text  # the target of the second example
    assert "xxx" not in text  # harness.log_samples is 2


def test_samples_go_to_loggers_that_take_text(tmp_path):
    taken = []
    trainer, harness, data = make_run(tmp_path, steps=3, callbacks=[SampleLogger(console())])
    trainer.logger.log_text = lambda **options: taken.append(options)
    trainer.fit(harness, datamodule=data)
    (sample,) = taken
    assert (sample["key"], sample["step"], sample["columns"]) == (
        "samples/val.answers",
        3,
        ["prompt", "prediction", "target"],
    )
    assert [row[2] for row in sample["data"]] == ["x", "xx"]


def test_hidden_tokens_of_a_prompt_are_dots_and_other_columns_are_as_they_were(tmp_path):
    out = console()
    logger = SampleLogger(out)
    trainer, harness, data = make_run(tmp_path, steps=3, callbacks=[logger])
    trainer.fit(harness, datamodule=data)
    harness.tokenizer = SimpleNamespace(mask_token="[MASK]")
    harness.samples = {"val.hidden": [{"prompt": "3[MASK][MASK]4", "prediction": "5[MASK]6"}]}
    logger.on_validation_end(trainer, harness)
    assert "3··4" in out.file.getvalue()
    assert "5[MASK]6" in out.file.getvalue()
    assert harness.samples["val.hidden"][0]["prompt"] == "3[MASK][MASK]4"


def test_markup_and_escapes_in_a_sample_stay_text(tmp_path):
    out = console(terminal=True)
    SampleLogger(out)._print("[bold]title", ["prediction"], [["[red]not a colour\x1b[31m"]])
    assert "[red]not a colour" in out.file.getvalue()
    assert "\x1b[31m" not in out.file.getvalue()


def test_the_rate_counts_real_tokens_over_seconds_without_validation(tmp_path):
    clock = Throughput()
    pause = Hook("on_validation_batch_start", lambda trainer: time.sleep(0.1))
    _, harness, _ = train(tmp_path, steps=4, validate=2, accumulate=2, callbacks=[clock, pause])
    tokens = sum(len(toy_rows(20)[index]) for batch in harness.loss.seen for index in batch)
    summary = clock.summary()
    assert (summary["tokens"], summary["steps"]) == (tokens, 4)
    assert 0 < summary["seconds"] < 1.0  # two validations of eight batches last 1.6 s
    assert summary["tokens_per_s"] == pytest.approx(tokens / summary["seconds"])
    assert harness.metrics["train/tokens_per_s"] > 0
    assert harness.metrics["train/seconds_per_step"] < 0.2


def saved_sums(folder):
    return read_checkpoint(newest_valid(folder / "checkpoints"))["callbacks"]["Throughput"]


def test_a_resumed_run_goes_on_counting_steps_tokens_and_seconds(tmp_path):
    first, second, third = Throughput(), Throughput(), Throughput()
    _, before, _ = train(tmp_path, steps=4, validate=2, callbacks=[first])
    first_part = saved_sums(tmp_path)
    _, after, _ = train(tmp_path, steps=6, validate=2, callbacks=[second])
    seen = [*before.loss.seen, *after.loss.seen]
    assert second.summary()["steps"] == 6
    assert second.tokens == sum(len(toy_rows(20)[index]) for batch in seen for index in batch)
    assert second.seconds > first_part["seconds"] > 0
    train(tmp_path, steps=6, validate=2, callbacks=[third])
    assert (third.steps, third.tokens) == (second.steps, second.tokens)
    assert third.seconds == saved_sums(tmp_path)["seconds"] > first_part["seconds"]


def test_a_run_that_is_resumed_from_a_checkpoint_without_sums_counts_from_there(tmp_path):
    train(tmp_path, steps=4, validate=0)
    clock = Throughput()
    _, harness, _ = train(tmp_path, steps=6, validate=0, callbacks=[clock])
    assert clock.summary()["steps"] == 2
    assert clock.tokens == sum(len(toy_rows(20)[index]) for batch in harness.loss.seen for index in batch)


def test_a_run_that_had_nothing_to_do_has_no_rate():
    assert Throughput().summary()["seconds"] == 0


def test_without_a_terminal_each_logged_step_is_a_plain_line(tmp_path):
    out = console()
    train(tmp_path, steps=5, log_every_n_steps=2, callbacks=[Throughput(), Progress(out)])
    lines = out.file.getvalue().splitlines()
    assert lines[0] == "96 parameters, 5 steps"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 2/5", "step 4/5", "step 5/5"]
    for number in ("loss ", "norm ", "lr ", " tokens/s"):
        assert number in lines[1]


def test_the_line_of_a_step_has_the_loss_of_that_step(tmp_path):
    out = console()
    losses = []
    note = Hook("on_train_batch_end", lambda t: losses.append(t.lightning_module.step_metrics()["train/loss"]))
    train(tmp_path, steps=3, validate=0, callbacks=[Progress(out), note])
    assert all(
        f"loss {loss:.4f}" in line for loss, line in zip(losses, out.file.getvalue().splitlines()[1:], strict=True)
    )


def test_a_long_evaluation_says_how_far_it_is(tmp_path):
    out = console()
    trainer, harness, data = make_run(tmp_path, callbacks=[Progress(out, seconds=0.0)])
    trainer.test(harness, datamodule=data, verbose=False)
    assert out.file.getvalue().splitlines() == [f"test {n}/8 batches" for n in range(1, 9)]
    out = console()
    trainer, harness, data = make_run(tmp_path, callbacks=[Progress(out, seconds=60.0)])
    trainer.predict(harness, datamodule=data)
    assert out.file.getvalue() == ""


def test_a_validation_within_a_training_counts_all_of_its_batches(tmp_path):
    out = console()
    train(tmp_path, callbacks=[Progress(out, seconds=0.0)])
    lines = [line for line in out.file.getvalue().splitlines() if line.startswith("validation")]
    assert lines
    done, total = zip(*(line.split()[1].split("/") for line in lines), strict=True)
    assert set(total) == {max(done, key=int)}


def test_on_a_terminal_there_is_a_bar_that_is_closed_whatever_happens(tmp_path):
    out = console(terminal=True)
    progress = Progress(out)

    def fail(trainer):
        assert progress._bar is not None
        if trainer.global_step == 5:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train(tmp_path, callbacks=[progress, Hook("on_train_batch_end", fail)])
    assert progress._bar is None
    assert "train" in out.file.getvalue()
    assert "validation" in out.file.getvalue()
    trainer, harness, data = make_run(tmp_path / "test", callbacks=[progress])
    trainer.validate(harness, datamodule=data, verbose=False)
    assert progress._bar is None
