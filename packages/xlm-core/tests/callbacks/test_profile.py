from __future__ import annotations

import sys
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_run import Hook, make_run, train
from xlm.callbacks import Profile
from xlm.callbacks.profile import PARTS, Stopwatch
from xlm.errors import UserError
from xlm.weights import load_weights

pytestmark = pytest.mark.filterwarnings("ignore")


def profiled(folder, warmup=2, **options):
    """(the callback after a run, what it printed, seconds of the run)."""
    console = Console(file=StringIO(), width=100)
    profile = Profile(warmup, console)
    started = time.perf_counter()
    train(folder, callbacks=[profile], **options)
    return profile, console.file.getvalue(), time.perf_counter() - started


def rows(text):
    cells = [[cell.strip() for cell in line.split("│")[1:5]] for line in text.splitlines() if "│" in line]
    return {cell[0]: cell[1:] for cell in cells if cell[0]}


def test_the_table_has_a_row_for_every_part_and_their_shares_add_up_to_the_step(tmp_path):
    profile, text, _ = profiled(tmp_path)
    table = rows(text)
    assert list(table) == [*PARTS, "step"]
    assert sum(float(table[part][1].rstrip("%")) for part in PARTS) == pytest.approx(100, abs=0.5)
    assert float(table["step"][0]) == pytest.approx(sum(profile.milliseconds.values()), rel=0.01)
    assert all(milliseconds > 0 for milliseconds in profile.milliseconds.values())
    assert "mean of 4 after 2 of warm-up" in text


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_all_of_its_micro_batches_without_validation(tmp_path, accumulate):
    profile, _, seconds = profiled(tmp_path, warmup=0, steps=4, validate=1, accumulate=accumulate)
    assert len(profile.watch.steps) == 4
    assert sum(sum(step.values()) for step in profile.watch.steps) < seconds


def test_every_moment_belongs_to_the_innermost_part(monkeypatch, tmp_path):
    now = iter(range(100))
    monkeypatch.setattr("xlm.callbacks.profile.time.perf_counter", lambda: float(next(now)))
    _, harness, _ = make_run(tmp_path)
    watch = Stopwatch()
    watch.begin(harness)
    watch.start("[Strategy]S.training_step")  # of a validation: not within a step
    for _ in range(2):
        watch.start("[Loop].train_dataloader_next")  # 0, 1
        watch.stop("[Loop].train_dataloader_next")  # data until 2
        watch.start("[LightningModule]Harness.optimizer_step")  # other until 3
        watch.start("[Strategy]S.training_step")  # optimizer until 4
        harness.model(torch.zeros(1, 1, dtype=torch.int64))  # loss until 5, forward until 6
        watch.stop("[Strategy]S.training_step")  # loss until 7
        watch.start("[Strategy]S.backward")  # optimizer until 8
        watch.stop("[Strategy]S.backward")  # backward until 9
        watch.stop("[LightningModule]Harness.optimizer_step")  # optimizer until 10
        watch.stop("[LightningModule]Harness.on_train_batch_end")  # other until 11
        watch.start("[Strategy]S.batch_to_device")  # of a validation
        watch.stop("[Strategy]S.batch_to_device")
    watch.end()
    expected = {"data": 1, "forward": 1, "head and loss": 2, "backward": 1, "optimizer": 3, "other": 3}
    assert watch.steps == [expected, expected]


def test_a_profiled_run_ends_with_the_weights_of_any_other_and_leaves_the_network_as_it_was(tmp_path):
    console = Console(file=StringIO())
    _, harness, _ = train(tmp_path / "one", callbacks=[Profile(1, console)])
    train(tmp_path / "other")
    one, other = (load_weights(tmp_path / name / "checkpoints", "raw").tensors for name in ("one", "other"))
    assert_close(one, other, rtol=0, atol=0)
    assert "forward" not in vars(harness.model)


def test_a_compiled_loss_is_one_part_with_the_network(tmp_path):
    _, harness, _ = make_run(tmp_path, compile=True)
    watch = Stopwatch()
    watch.begin(harness)
    assert "forward" not in vars(harness.model)
    assert list(watch._zero) == ["data", "forward, head and loss", "backward", "optimizer", "other"]


def test_a_run_that_stops_within_the_warm_up_prints_no_table(tmp_path):
    def stop(trainer):
        trainer.should_stop = True

    console = Console(file=StringIO())
    train(tmp_path, callbacks=[Profile(3, console), Hook("on_train_batch_end", stop)])
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("warmup", "error"), [(6, "leaves none of trainer.max_steps = 6"), (-1, "must not be negative")]
)
def test_a_warm_up_that_leaves_no_step_is_refused(tmp_path, warmup, error):
    with pytest.raises(UserError, match=rf"{error} in callbacks\.profile\.warmup \({warmup}\)"):
        train(tmp_path, callbacks=[Profile(warmup)], steps=6)
