import json
import multiprocessing
import os
import resource
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from xlm import checkpoint, files
from xlm.checkpoint import (
    AtomicCheckpointIO,
    CheckpointError,
    checkpoints,
    newest_valid,
    read_checkpoint,
)
from xlm.errors import UserError
from xlm.files import DiskError, lock, remove_leftovers, write_atomically

sys.path.insert(0, str(Path(__file__).parent))

from saved import content, model, save


def flip_bit(path, place=-1000):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


def test_what_was_saved_is_read_back(tmp_path):
    path = save(tmp_path, 3)
    read = read_checkpoint(path)
    assert read["global_step"] == 3
    assert set(read["state_dict"]) == {"model.0.weight", "model.1.weight", "model.1.bias"}
    manifest = json.loads(path.with_suffix(".json").read_text())
    assert manifest["size"] == path.stat().st_size


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path):
    path = tmp_path / "a"
    write_atomically(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskError, match=r"No space left on device; 0 bytes needed, .* free"):
        write_atomically(path, broken)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_file_that_will_not_fit_is_not_begun(tmp_path):
    with pytest.raises(DiskError, match=r"1,\d{3},.* bytes needed, [\d,]+ free"):
        write_atomically(tmp_path / "a", lambda file: file.write(b"x"), needed=10**18 + 10**18 // 2)
    assert not list(tmp_path.iterdir())


def test_the_cause_that_torch_hides_is_named_when_the_disk_refuses_half_way(tmp_path):
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskError, match=r"2\.ckpt: .*File too large; 4,000,000 bytes needed, [\d,]+ free"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(10**6)}, tmp_path / "000000002.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_valid(tmp_path).name == "000000001.ckpt"
    assert not [path for path in tmp_path.iterdir() if "2" in path.name]


def test_a_run_may_choose_to_go_on_without_a_checkpoint(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(files, "_free", lambda path: 7)
    with pytest.raises(DiskError):
        save(tmp_path, 1)
    AtomicCheckpointIO(on_error="warn").save_checkpoint(content(model(), 1), tmp_path / "000000001.ckpt")
    assert "goes on without this checkpoint" in caplog.text
    assert newest_valid(tmp_path) is None
    with pytest.raises(UserError, match="stop or warn"):
        AtomicCheckpointIO(on_error="ignore")


def test_a_value_that_is_not_plain_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint/callbacks/mine/0 is a PosixPath"):
        AtomicCheckpointIO().save_checkpoint({"callbacks": {"mine": [tmp_path]}}, tmp_path / "000000001.ckpt")
    assert not list(tmp_path.iterdir())


def test_best_is_not_taken_for_a_step(tmp_path):
    paths = [save(tmp_path, step) for step in (9, 10, 100)]
    AtomicCheckpointIO().save_checkpoint(content(model(), 5), tmp_path / "best.ckpt")
    assert checkpoints(tmp_path) == paths[::-1]
    assert newest_valid(tmp_path) == paths[2]


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_valid(tmp_path) is None
    assert newest_valid(tmp_path / "absent") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9999])
def test_a_truncated_checkpoint_is_skipped_loudly(tmp_path, share, caplog):
    old, new = save(tmp_path, 10), save(tmp_path, 25)
    size = new.stat().st_size
    with open(new, "r+b") as file:
        file.truncate(int(size * share))
    assert newest_valid(tmp_path) == old
    (text,) = caplog.messages
    assert len(text.splitlines()) == 1
    assert f"has {int(size * share):,} bytes, its manifest says {size:,}" in text
    assert "15 steps are lost" in text
    with pytest.raises(UserError, match=rf"000000025.*fix: use .*{old.name}, the newest that is whole"):
        read_checkpoint(new)


def test_one_flipped_bit_is_found(tmp_path, caplog):
    old, new = save(tmp_path, 10), save(tmp_path, 20)
    flip_bit(new)
    assert newest_valid(tmp_path) == old
    assert "differs from its sha256" in caplog.text


def test_all_damaged_is_an_error_and_never_a_new_start(tmp_path):
    for step in (1, 2):
        flip_bit(save(tmp_path, step))
    with pytest.raises(UserError, match=r"all 2 checkpoints are damaged: 0*2\.ckpt differs from .*; 0*1\.ckpt"):
        newest_valid(tmp_path)


def test_without_its_manifest_a_checkpoint_counts_only_if_its_checksums_hold(tmp_path, caplog):
    old, new = save(tmp_path, 10), save(tmp_path, 20)
    new.with_suffix(".json").unlink()
    assert newest_valid(tmp_path) == new
    assert "has no manifest; its checksums hold" in caplog.text
    flip_bit(new, place=new.read_bytes().index(bytes(16)))
    new.write_bytes(new.read_bytes()[:-50])
    assert newest_valid(tmp_path) == old
    assert "has no manifest and is damaged" in caplog.text


def test_a_kill_between_a_file_and_its_manifest_leaves_no_wrong_manifest(tmp_path, monkeypatch, caplog):
    path = save(tmp_path, 1)

    def killed_before_the_manifest(name, write, **options):
        if name.suffix == ".json":
            raise KeyboardInterrupt
        return write_atomically(name, write, **options)

    monkeypatch.setattr(checkpoint, "write_atomically", killed_before_the_manifest)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    assert newest_valid(tmp_path) == path
    assert "no manifest; its checksums hold" in caplog.text


def test_a_garbled_manifest_is_no_manifest(tmp_path, caplog):
    old, new = save(tmp_path, 10), save(tmp_path, 20)
    new.with_suffix(".json").write_text('{"sha256": ')
    assert newest_valid(tmp_path) == old
    assert "unreadable manifest" in caplog.text


def test_links_pipes_and_folders_are_refused_without_hanging(tmp_path, caplog):
    old = save(tmp_path, 1)
    (tmp_path / "000000002.ckpt").symlink_to(old)
    os.mkfifo(tmp_path / "000000003.ckpt")
    (tmp_path / "000000004.ckpt").mkdir()
    assert newest_valid(tmp_path) == old
    assert "is not a regular file" in caplog.text


def test_a_pickle_that_runs_code_is_refused_and_named(tmp_path):
    class Bad:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    path = tmp_path / "000000001.ckpt"
    torch.save({"state_dict": Bad()}, path)
    with pytest.raises(UserError, match=r"wants to run posix\.system"):
        read_checkpoint(path)
    assert not (tmp_path / "marker").exists()
    with pytest.raises(UserError, match="wants to run"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)


def test_a_file_from_the_future_says_which_xlm_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 7)
    monkeypatch.setattr(checkpoint, "READABLE_SINCE", "3.2.0")
    path = save(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"it needs xlm >= 3\.2\.0"):
        read_checkpoint(path)


def test_files_that_are_no_checkpoints_are_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "absent.ckpt")
    other = tmp_path / "other.ckpt"
    torch.save({"weights": 1}, other)
    with pytest.raises(UserError, match="no checkpoint of xlm"):
        read_checkpoint(other)
    with pytest.raises(UserError, match="init_from"):
        read_checkpoint(tmp_path / "model.safetensors")


def test_only_the_leftovers_of_a_killed_writer_are_removed(tmp_path):
    save(tmp_path, 1)
    before = set(tmp_path.iterdir())
    (tmp_path / ".000000002.ckpt.tmp").write_bytes(b"half")
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == before


def test_one_folder_has_one_writer(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(UserError, match="another run is writing there"):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()


def test_a_folder_that_cannot_be_written_is_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="in run_dir"):
        lock(tmp_path / "file" / "run")


def test_removing_a_checkpoint_removes_its_manifest(tmp_path):
    path = save(tmp_path, 1)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


def save_for_ever(folder, acknowledge):
    torch.set_num_threads(1)
    for step in count(1):
        state = {"model.x": torch.full((100_000,), float(step))}
        path = folder / f"{step:09d}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"global_step": step, "state_dict": state}, path)
        for old in checkpoints(folder)[2:]:
            AtomicCheckpointIO().remove_checkpoint(old)
        acknowledge.send(step)


def test_kills_while_saving_never_lose_an_acknowledged_checkpoint(tmp_path):
    for trial in range(30):
        folder = tmp_path / str(trial)
        folder.mkdir()
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder, send))
        process.start()
        acknowledged = [receive.recv() for _ in range(3)]
        time.sleep(0.0007 * trial)  # so that kills fall into every part of a save
        process.kill()
        process.join()
        while receive.poll():
            acknowledged.append(receive.recv())
        newest = read_checkpoint(newest_valid(folder))
        assert newest["global_step"] >= acknowledged[-1] >= 3
        assert float(newest["state_dict"]["model.x"][0]) == newest["global_step"]
        assert len(list(folder.glob(".*.tmp"))) <= 1
