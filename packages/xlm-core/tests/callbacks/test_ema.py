import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_run import Hook, make_run, train
from xlm.callbacks import EMA
from xlm.checkpoint import newest_valid
from xlm.errors import UserError
from xlm.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def parameters(harness):
    return [parameter.detach().clone() for parameter in harness.model.parameters()]


def history(folder, **options):
    """The run, and its raw weights before the first and after each step."""
    raw = []

    def note(trainer):
        raw.append(parameters(trainer.lightning_module))

    hooks = [Hook("on_train_start", note), Hook("on_before_zero_grad", lambda trainer: None)]
    steps = Hook("on_train_batch_end", lambda trainer: trainer.lightning_module.between_steps and note(trainer))
    trainer, harness, data = train(folder, callbacks=[*hooks, steps], **options)
    return trainer, harness, data, raw


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_recursion_with_its_warm_up(tmp_path, accumulate):
    _, harness, _, raw = history(tmp_path, ema=0.5, steps=9, accumulate=accumulate)
    average = raw[0]
    for step, weights in enumerate(raw[1:], start=1):
        decay = min(0.5, (1 + step) / (10 + step))
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights, strict=True)]
    assert len(raw) == 10
    assert_close(parameters(harness), average, rtol=1e-10, atol=1e-12)


def test_buffers_are_those_of_the_newest_step_and_not_averaged(tmp_path):
    trainer, harness, data = make_run(tmp_path, ema=0.9, steps=4, validate=2)
    harness.model.register_buffer("steps", torch.zeros((), dtype=torch.long))
    validated = []

    def count(trainer):
        if trainer.lightning_module.between_steps:
            harness.model.steps += 1

    trainer.callbacks.insert(0, Hook("on_train_batch_start", count))
    trainer.callbacks.append(
        Hook("on_validation_batch_start", lambda trainer: validated.append(int(harness.model.steps)))
    )
    trainer.fit(harness, datamodule=data)
    assert sorted(set(validated)) == [2, 4]
    assert harness.model.steps == 4
    checkpoint = newest_valid(tmp_path / "checkpoints")
    assert load_weights(checkpoint, "ema").tensors["steps"] == load_weights(checkpoint, "raw").tensors["steps"] == 4


def test_validation_and_the_end_hold_the_average_and_training_the_raw_weights(tmp_path):
    at = {}
    hooks = [
        Hook("on_validation_batch_start", lambda t: at.setdefault(t.global_step, t.lightning_module.weights)),
        Hook("on_train_batch_start", lambda t: at.setdefault("training", set()).add(t.lightning_module.weights)),
    ]
    _, harness, _ = train(tmp_path, callbacks=hooks)
    assert at == {"training": {"raw"}, 3: "ema", 6: "ema"}
    assert harness.weights == "ema"
    assert harness.results["val.texts"]["weights"] == "ema"


def test_a_checkpoint_holds_both_also_the_last_one(tmp_path):
    _, harness, _, raw = history(tmp_path, ema=0.9)
    path = newest_valid(tmp_path / "checkpoints")
    assert_close(list(load_weights(path, "raw").tensors.values()), raw[-1], rtol=0, atol=0)
    assert_close(list(load_weights(path, "ema").tensors.values()), parameters(harness), rtol=0, atol=0)
    assert not torch.equal(raw[-1][0], parameters(harness)[0])


def test_a_test_after_training_is_of_the_average(tmp_path):
    trainer, harness, data = train(tmp_path)
    trainer.test(harness, datamodule=data, verbose=False)
    assert harness.results["test.texts"]["weights"] == "ema"
    assert harness.results["test.texts"]["loss"] == pytest.approx(harness.results["val.texts"]["loss"], rel=1e-12)


@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None)])
def test_a_run_is_not_resumed_with_an_average_that_it_did_not_have_nor_without_the_one_it_had(tmp_path, before, after):
    train(tmp_path, ema=before, steps=2)
    trainer, harness, data = make_run(tmp_path, ema=after, steps=4)
    with pytest.raises(UserError, match=r"harness\.ema_decay"):
        trainer.fit(harness, datamodule=data, ckpt_path=newest_valid(tmp_path / "checkpoints"))


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(UserError, match=r"harness\.ema_decay"):
        EMA(decay)
