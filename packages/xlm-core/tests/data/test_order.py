from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
import torch
from xlm.data.order import Place, Plan, Sequential, TrainLoader, make_loader, micro_batches
from xlm.errors import UserError
from xlm.noise import Stream, noise_key, permutation

PLAN = Plan(size=10, global_batch_size=8, seed=3)


def fetch(indices, positions, noise_keys):
    columns = zip(indices.tolist(), positions.tolist(), noise_keys.tolist(), strict=True)
    return [{"index": index, "position": position, "noise_key": key} for index, position, key in columns]


def collate(examples):
    return [(example["position"], example["index"], example["noise_key"]) for example in examples]


def loader(place: Place = Place(), steps: int = 5, plan: Plan = PLAN, workers: int = 0) -> TrainLoader:  # noqa: B008
    return TrainLoader(fetch, plan, place, steps, collate, num_workers=workers)


def test_every_example_comes_once_in_every_epoch_although_batches_cross_epochs():
    indices = PLAN.indices(np.arange(40))
    assert [sorted(indices[start : start + 10]) for start in range(0, 40, 10)] == [list(range(10))] * 4
    assert indices[10:20].tolist() == permutation(3, 1, 10).tolist()
    assert indices[:10].tolist() != indices[10:20].tolist()


def test_a_global_batch_may_be_larger_than_the_data():
    [places] = islice(micro_batches(Plan(size=3, global_batch_size=8, seed=0), Place(), 0), 1)
    assert sorted(places.indices[:3]) == sorted(places.indices[3:6]) == [0, 1, 2]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (1, 4), (4, 2), (2, 2)])
def test_ranks_and_micro_batches_together_read_the_same_global_batches(world, accumulate):
    ranks = [islice(micro_batches(PLAN, Place(r, world, accumulate), 0), 5 * accumulate) for r in range(world)]
    parts = [places.positions.tolist() for micro in zip(*ranks, strict=True) for places in micro]
    assert [position for part in parts for position in part] == list(range(40))
    assert {len(part) for part in parts} == {8 // (world * accumulate)}


def test_the_noise_key_is_that_of_the_position():
    [first, second] = islice(loader(), 2)
    assert [key for _, _, key in first + second] == [noise_key(3, Stream.TRAIN, n) for n in range(16)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_the_whole_run_and_has_its_length(workers):
    batches = list(loader(Place(1, 2, 2), workers=workers))
    expected = islice(micro_batches(PLAN, Place(1, 2, 2), 0), 10)
    assert len(loader(Place(1, 2, 2))) == len(batches) == 10
    assert [[p for p, _, _ in batch] for batch in batches] == [places.positions.tolist() for places in expected]


@pytest.mark.parametrize(("accumulate", "workers"), [(1, 0), (4, 0), (1, 2)])
def test_a_run_goes_on_where_it_stopped_also_with_other_workers_and_accumulation(accumulate, workers):
    whole = [row for batch in loader() for row in batch]
    first = loader(Place(0, 1, 2))
    begun = [row for batch in islice(first, 6) for row in batch]
    second = loader(Place(0, 1, accumulate), workers=workers)
    second.load_state_dict(first.state_dict())
    assert begun + [row for batch in second for row in batch] == whole
    assert second.state_dict()["seen"] == 40


def test_a_finished_run_has_nothing_left():
    done = loader()
    done.load_state_dict({"seen": 40, **PLAN._asdict()})
    assert list(done) == []


def test_a_checkpoint_inside_an_accumulation_window_is_refused():
    inside = loader(Place(0, 1, 2))
    list(islice(inside, 3))
    with pytest.raises(RuntimeError, match="accumulation window"):
        inside.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 11}, r"size 11, now it is 10 in datamodule \(10\)"),
        ({"global_batch_size": 16}, r"global_batch_size 16, now it is 8 in datamodule\.global_batch_size"),
        ({"seed": 4}, r"seed 4, now it is 3 in seed"),
    ],
)
def test_the_state_of_another_plan_is_refused_with_old_and_new(change, message):
    with pytest.raises(UserError, match=message):
        loader().load_state_dict({"seen": 8, **PLAN._asdict(), **change})


def test_reading_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader())
    assert torch.equal(torch.get_rng_state(), before)


def worker_pid(examples):
    return os.getpid()


def test_a_worker_ignores_sigterm_unless_the_main_process_sends_it():
    batches = iter(make_loader(Sequential(fetch, 20, 0), worker_pid, batch_size=1, num_workers=1))
    worker = next(batches)
    subprocess.run(["kill", "-TERM", str(worker)], check=True)
    time.sleep(0.2)
    assert {next(batches) for _ in range(10)} == {worker}
    [process] = multiprocessing.active_children()
    process.terminate()
    process.join(timeout=10)
    assert process.exitcode == 0


def test_a_process_ends_although_a_worker_is_still_waiting_for_work():
    code = (
        "from xlm.data.order import Sequential, make_loader\n"
        "rows = Sequential(lambda *columns: [0] * len(columns[0]), 100, 0)\n"
        "alive = iter(make_loader(rows, len, batch_size=1, num_workers=1))\n"
        "print(next(alive))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)


def test_ranks_evaluate_every_example_once_with_the_key_of_its_index():
    ranks = [list(make_loader(Sequential(fetch, 5, 7, rank=r, world=2), collate, batch_size=2)) for r in range(2)]
    assert [[index for _, index, _ in batch] for batch in ranks[0]] == [[0, 2], [4]]
    rows = sorted(row for rank in ranks for batch in rank for row in batch)
    assert rows == [(i, i, noise_key(7, Stream.EVAL, i)) for i in range(5)]
