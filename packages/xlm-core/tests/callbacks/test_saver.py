import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_run import Hook, collate, digest, final_state, make_run, train
from xlm import files
from xlm.callbacks import EMA, Saver
from xlm.callbacks.slurm import job, requeue
from xlm.checkpoint import AtomicCheckpointIO, checkpoints, newest_valid
from xlm.data.datamodule import DataModule
from xlm.data.managers import DatasetManager
from xlm.data.sources import Rows
from xlm.data.tokenizers import ByteTokenizer
from xlm.errors import UserError
from xlm.files import lock

pytestmark = pytest.mark.filterwarnings("ignore")


PLUGINS = [AtomicCheckpointIO(), LightningEnvironment()]


class Killed(BaseException):
    """What no callback expects."""


def train_until(folder, hook, stop, **options):
    """Train and die in ``hook`` when ``stop(trainer)``; gives the batches that were trained on."""

    def die(trainer):
        if stop(trainer):
            raise Killed

    trainer, harness, data = make_run(folder, callbacks=[Hook(hook, die)], **options)
    with pytest.raises(Killed):
        trainer.fit(harness, datamodule=data, ckpt_path=newest_valid(Path(folder) / "checkpoints"), weights_only=True)
    return harness.loss.seen


def metrics(folder):
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def steps(folder):
    return [int(path.stem) for path in checkpoints(Path(folder) / "checkpoints")]


# Where a run may die: hook, and when. Steps are optimizer steps; batch k is the first not yet trained on.
DEATHS = {
    "in the middle": ("on_train_batch_start", lambda t: t.global_step == 5),
    "between two micro-batches": ("on_train_batch_start", lambda t: t.fit_loop.total_batch_idx == 7),
    "before the optimizer": ("on_before_optimizer_step", lambda t: t.global_step == 4),
    "after the step, before its save": ("on_train_batch_end", lambda t: t.global_step == 4),
    "in a validation": ("on_validation_batch_end", lambda t: t.global_step == 6),
    "before any save": ("on_train_batch_end", lambda t: t.global_step == 1),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("death", DEATHS)
def test_a_killed_run_goes_on_to_the_bit(tmp_path, death, accumulate):
    options = {"steps": 9, "every": 2, "validate": 3, "accumulate": accumulate}
    _, straight, _ = train(tmp_path / "straight", **options)
    hook, stop = DEATHS[death]
    train_until(tmp_path / "killed", hook, stop, **options)
    done = max(steps(tmp_path / "killed"), default=0)
    _, resumed, _ = train(tmp_path / "killed", workers=2, **options)
    assert resumed.loss.seen == straight.loss.seen[done * accumulate :]
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "straight")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "straight")
    assert resumed.results == straight.results


def test_three_deaths_in_one_run_change_nothing(tmp_path):
    options = {"steps": 12, "every": 1, "validate": 5}
    train(tmp_path / "straight", **options)
    for step, workers in ((3, 0), (4, 2), (9, 0)):
        hook, stop = "on_train_batch_end", lambda t, step=step: t.global_step == step + 1
        train_until(tmp_path / "killed", hook, stop, workers=workers, **options)
    train(tmp_path / "killed", workers=2, **options)
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "straight")


def test_a_finished_run_that_is_started_again_changes_nothing(tmp_path):
    _, first, _ = train(tmp_path, best=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    trainer, again, _ = train(tmp_path, best=True)
    assert trainer.global_step == 6
    assert again.loss.seen == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert digest(list(again.model.parameters())) == digest(list(first.model.parameters()))
    assert again.weights == "ema"


@pytest.mark.parametrize("validate", [3, 4, 0])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_finished_run_may_be_made_longer(tmp_path, validate, accumulate):
    options = {"every": 2, "validate": validate, "accumulate": accumulate}
    at = []
    note = Hook("on_validation_start", lambda t: at.append(t.global_step))
    _, straight, _ = train(tmp_path / "straight", steps=11, **options)
    train(tmp_path / "longer", steps=6, **options)
    _, resumed, _ = train(tmp_path / "longer", steps=11, callbacks=[note], **options)
    assert resumed.loss.seen == straight.loss.seen[6 * accumulate :]
    assert final_state(tmp_path / "longer") == final_state(tmp_path / "straight")
    assert at == {3: [9, 11], 4: [8, 11], 0: []}[validate]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (1, 4)])
@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_may_accumulate_otherwise(tmp_path, before, after, step):
    options = {"steps": 8, "every": 1, "validate": 3, "dropout": 0.0}
    at = []
    note = Hook("on_validation_start", lambda t: at.append(t.global_step))
    _, straight, _ = train(tmp_path / "straight", **options)
    train_until(tmp_path / "run", "on_train_batch_start", lambda t: t.global_step == step, accumulate=before, **options)
    _, resumed, _ = train(tmp_path / "run", accumulate=after, callbacks=[note], **options)
    batches = resumed.loss.seen
    joined = [sum(batches[i : i + after], []) for i in range(0, len(batches), after)]  # noqa: RUF017
    assert joined == straight.loss.seen[step:]
    assert at == [at for at in (3, 6, 8) if at > step]
    found, expected = (list(run.model.parameters()) for run in (resumed, straight))
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


def real_data(folder, *, accumulate, workers):
    """The real data module over texts of one to nine bytes."""
    texts = [{"text": "abcdefghi"[: 1 + n % 9]} for n in range(20)]

    def manager():
        return DatasetManager(source=Rows(rows=texts), kind="loss", roles=["lm"], event_space="open")

    managers = {"train": {"texts": manager()}, "val": {"texts": manager()}}
    sizes = {"global_batch_size": 8, "device_batch_size": 8 // accumulate, "max_length": 16, "num_workers": workers}
    data = DataModule(dataset_managers=managers, cache_dir=str(folder / "cache"), **sizes)
    data.prepare(ByteTokenizer())

    def make(**context):
        return lambda examples: collate(
            [{**row, "input_ids": np.asarray(row["input_ids"]) % 7 + 1} for row in examples]
        )

    data.bind({"lm": make})
    return data


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_real_data_module_goes_on_to_the_bit_with_other_workers(tmp_path, accumulate):
    def part(folder, workers, callbacks=()):
        trainer, harness, _ = make_run(folder, steps=9, every=2, accumulate=accumulate, callbacks=callbacks)
        data = real_data(tmp_path, accumulate=accumulate, workers=workers)
        checkpoint = newest_valid(folder / "checkpoints")
        trainer.fit(harness, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return harness

    def die(trainer):
        if trainer.fit_loop.total_batch_idx == 6 * accumulate:
            raise Killed

    straight = part(tmp_path / "straight", 0)
    with pytest.raises(Killed):
        part(tmp_path / "killed", 2, [Hook("on_train_batch_start", die)])
    resumed = part(tmp_path / "killed", 0)
    assert resumed.loss.seen == straight.loss.seen[6 * accumulate :]
    assert final_state(tmp_path / "killed", "DataModule") == final_state(tmp_path / "straight", "DataModule")
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "straight")


def test_checkpoints_are_taken_every_n_steps_and_at_the_end_and_two_stay(tmp_path):
    saved = []
    note = Hook("on_save_checkpoint", lambda t: saved.append(t.global_step))
    train(tmp_path, steps=9, every=2, callbacks=[note])
    assert saved == [2, 4, 6, 8, 9]
    assert steps(tmp_path) == [9, 8]


def test_an_early_stop_is_saved(tmp_path):
    def stop(trainer):
        trainer.should_stop = trainer.global_step == 3

    train(tmp_path, steps=9, every=100, validate=3, callbacks=[Hook("on_validation_end", stop)])
    assert steps(tmp_path) == [3]


def test_a_second_run_in_one_folder_is_refused_and_the_folder_is_given_back(tmp_path):
    held = lock(tmp_path / "checkpoints")
    with pytest.raises(UserError, match="another run is writing there"):
        train(tmp_path)
    held.release()
    train(tmp_path)
    lock(tmp_path / "checkpoints").release()


def test_a_run_that_fails_gives_its_folder_back(tmp_path):
    train_until(tmp_path, "on_train_batch_end", lambda t: t.global_step == 3)
    lock(tmp_path / "checkpoints").release()


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path):
    leftover = tmp_path / "checkpoints/.000000077.ckpt.tmp"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    train(tmp_path)
    assert not leftover.exists()


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_free", lambda path: 5000)
    trainer, harness, data = make_run(tmp_path)
    with pytest.raises(UserError, match=r"9,216 bytes needed, 5,000 free in run_dir"):
        trainer.fit(harness, datamodule=data)
    assert harness.loss.seen == []


@pytest.mark.parametrize("name", ["every", "keep"])
def test_counts_below_one_are_named(tmp_path, name):
    with pytest.raises(UserError, match=rf"callbacks\.saver\.{name}"):
        Saver(tmp_path, **{name: 0})


# Signals, sent by the run to itself


def leave(folder, hook, at, signals, code, **options):
    """Die by a signal sent from ``hook`` at step ``at``; gives the step of the newest checkpoint."""

    def send(trainer):
        if trainer.global_step == at:
            for number in signals:
                signal.raise_signal(number)

    trainer, harness, data = make_run(folder, callbacks=[Hook(hook, send)], **options)
    with pytest.raises(SystemExit) as left:
        trainer.fit(harness, datamodule=data, ckpt_path=newest_valid(Path(folder) / "checkpoints"), weights_only=True)
    assert left.value.code == code
    return max(steps(folder), default=0)


SIGNALS = {
    "step": ("on_train_batch_start", 4, 5),
    "before the optimizer": ("on_before_optimizer_step", 4, 5),
    "step before a validation": ("on_before_optimizer_step", 5, 6),
    "validation": ("on_validation_batch_start", 6, 6),
    "save": ("on_save_checkpoint", 4, 5),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("place", SIGNALS)
def test_sigterm_saves_once_at_the_step_boundary_and_the_resumed_run_is_equal(tmp_path, place, accumulate):
    hook, at, saved = SIGNALS[place]
    options = {"steps": 9, "every": 2, "validate": 3, "accumulate": accumulate}
    _, straight, _ = train(tmp_path / "straight", **options)
    assert leave(tmp_path / "left", hook, at, [signal.SIGTERM], 143, **options) == saved
    _, resumed, _ = train(tmp_path / "left", **options)
    assert final_state(tmp_path / "left") == final_state(tmp_path / "straight")
    assert metrics(tmp_path / "left") == metrics(tmp_path / "straight")
    assert resumed.results == straight.results


def test_sigterm_twice_is_sigterm(tmp_path):
    assert leave(tmp_path, "on_train_batch_start", 4, [signal.SIGTERM] * 2, 143) == 5


def test_sigint_once_saves_and_twice_leaves_at_once(tmp_path):
    assert leave(tmp_path / "once", "on_train_batch_start", 4, [signal.SIGINT], 130, every=100) == 5
    assert leave(tmp_path / "twice", "on_train_batch_start", 4, [signal.SIGINT] * 2, 130, every=100) == 0


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A scontrol that notes how it is called."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    script.chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return script


def test_under_slurm_sigusr1_saves_queues_the_job_again_once_and_the_second_start_goes_on(tmp_path, slurm):
    straight = train(tmp_path / "straight", steps=6)[1]
    sent = [signal.SIGUSR1, signal.SIGUSR1]
    assert leave(tmp_path / "run", "on_train_batch_start", 4, sent, 0, steps=6, plugins=PLUGINS) == 5
    assert (tmp_path / "called").read_text() == "requeue 17\n"
    _, resumed, _ = train(tmp_path / "run", steps=6, plugins=PLUGINS)
    assert resumed.loss.seen == straight.loss.seen[5:]


def test_without_scontrol_the_checkpoint_is_kept_and_the_exit_code_says_terminated(tmp_path, slurm, caplog):
    slurm.unlink()
    saved = leave(tmp_path / "run", "on_train_batch_start", 4, [signal.SIGUSR1], 143, plugins=PLUGINS)
    assert "not queued again (No such file or directory: scontrol)" in caplog.text
    assert saved == 5


def test_a_refusal_of_slurm_is_shown(slurm, caplog):
    slurm.write_text("#!/bin/sh\necho 'Invalid job id' >&2; exit 1\n")
    assert not requeue()
    assert "Invalid job id" in caplog.text


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "17"}, "17"),
        ({"SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}, "17_3"),
        ({"SLURM_JOB_ID": "17; rm -r"}, None),
    ],
)
def test_the_job_is_known_by_its_variables(monkeypatch, variables, expected):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert job() == expected


def test_handlers_are_put_back_after_the_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(tmp_path)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_order_of_callbacks_does_not_matter_to_the_average(tmp_path):
    trainer, _, _ = make_run(tmp_path)
    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds.index(EMA) < kinds.index(Saver)


def program(folder, **options):
    folder.mkdir(exist_ok=True, parents=True)
    script = Path(__file__).parents[1] / "toy_run.py"
    command = [sys.executable, str(script), json.dumps({"folder": str(folder), **options})]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def batches(folder):
    return [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_sigkill_and_sigterm_of_a_process_with_workers_lose_nothing(tmp_path):
    options = {"steps": 9, "every": 2, "accumulate": 2, "workers": 0}
    train(tmp_path / "straight", **options)
    killed = program(tmp_path / "run", signal=["on_before_optimizer_step", 5, "SIGKILL"], **{**options, "workers": 2})
    assert killed.returncode == -signal.SIGKILL
    assert steps(tmp_path / "run") == [4, 2]
    terminated = program(tmp_path / "run", signal=["on_train_batch_start", 6, "SIGTERM"], **{**options, "workers": 2})
    assert terminated.returncode == 143, terminated.stderr
    assert steps(tmp_path / "run") == [7, 6]
    first, second = batches(tmp_path / "run")[:11], batches(tmp_path / "run")[11:]
    assert [step for step, _ in second] == [4, 5, 5, 6, 6, 7]
    assert second[:3] == first[8:]
    train(tmp_path / "run", **options)
    assert final_state(tmp_path / "run") == final_state(tmp_path / "straight")
